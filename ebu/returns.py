"""Targets of the agents that EBU is compared with: pure functions of what was played.

Some are of single transitions, some of windows of consecutive ones, some of whole segments:

| name | shape | meaning |
| --- | --- | --- |
| r, a, μ | (B,), (B, n) or (…, T) | reward, action, the probability with which it was chosen |
| Q(s', ·), Q̂(s', ·) | (B, A) or (…, T, A) | online and target network's values of the next state |
| terminated | as r; (…) of segments | the value ends with the transition, or with the segment |
| joined | (B, n) bool | part of the window: no gap between it and the drawn transition |
| lengths | (…) | steps of each segment, in [1, T]; T for all if absent |

Results are float32 and have no gradient. Rewards are used as they are given.
"""

import torch
from torch import Tensor


@torch.no_grad()
def chosen_values(online_values: Tensor, target_values: Tensor) -> Tensor:
    """Q̂(s, argmax_a Q(s, a)) (…, 1) of action values (…, A): one network chooses, one values.

    van Hasselt, Guez, Silver, *Deep Reinforcement Learning with Double Q-learning*, AAAI 2016.
    """
    return target_values.gather(-1, online_values.argmax(-1, keepdim=True))


@torch.no_grad()
def n_step_targets(
    rewards: Tensor, last_next_values: Tensor, terminated: Tensor, joined: Tensor, *, gamma: float
) -> Tensor:
    """Σ_{i<m} γ^i r_i + γ^m max_a Q̂(s_m, a), uncorrected for what the policy would have done.

    Sutton 1988; the n-step target of Hessel et al. 2018 (Rainbow). A window holds m of at most n
    steps. If one of them terminated, the sum ends with its reward.

    | argument | shape | meaning |
    | --- | --- | --- |
    | rewards, terminated | (B, n) | of the drawn transition and those after it |
    | joined | (B, n) bool | the first m of each row |
    | last_next_values | (B, A) | Q̂ of the next state of the last joined step |

    Returns (B,), computed in the rewards' dtype. With n = 1 it is `one_step_targets`.
    """
    targets = last_next_values.amax(-1).to(rewards.dtype)
    for step in reversed(range(rewards.shape[1])):
        reward = rewards[:, step]
        further = torch.where(terminated[:, step], reward, reward + gamma * targets)
        targets = torch.where(joined[:, step], further, targets)
    return targets.float()


@torch.no_grad()
def peng_targets(
    rewards: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    trace_lambda: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """Peng's Q(λ): y_k = r_k + γ [(1 − λ) max_a Q̂(s_{k+1}, a) + λ y_{k+1}].

    Peng, Williams, *Incremental Multi-Step Q-Learning*, Machine Learning 22, 1996. The last step
    of a segment has r_k if it terminated, else r_k + γ max_a Q̂(s_{k+1}, a).
    rewards (…, T), next_values (…, T, A), terminated and lengths (…) → (…, T).
    """
    best = next_values.amax(-1).double()
    return linear_targets(
        rewards,
        (1.0 - trace_lambda) * best,
        torch.full_like(best, trace_lambda),
        best,
        terminated,
        gamma=gamma,
        lengths=lengths,
    )


@torch.no_grad()
def retrace_targets(
    rewards: Tensor,
    next_values: Tensor,
    actions: Tensor,
    probabilities: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    trace_lambda: float,
    target_epsilon: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """Retrace(λ): y_k = r_k + γ [E_π Q̂(s_{k+1}, ·) + c_{k+1} (y_{k+1} − Q̂(s_{k+1}, a_{k+1}))].

    Munos, Stepleton, Harutyunyan, Bellemare, *Safe and Efficient Off-Policy Reinforcement
    Learning*, NeurIPS 2016, equation 4 with c = λ min(1, π(a | s) / μ(a | s)). π is ε-greedy in Q̂.
    The last step of a segment has r_k if it terminated, else r_k + γ E_π Q̂(s_{k+1}, ·).
    rewards, actions, probabilities (…, T), next_values (…, T, A), terminated and lengths (…)
    → (…, T).
    """
    values = next_values.double()
    greedy_share, num_actions = 1.0 - target_epsilon, values.shape[-1]
    best, greedy = values.max(-1)
    expected = greedy_share * best + target_epsilon * values.mean(-1)
    # The step that comes next; what rolls round to the last step, or in from the padding, has no
    # weight there.
    following = actions.long().roll(-1, -1).clamp(0, num_actions - 1)
    chance = greedy_share * (following == greedy) + target_epsilon / num_actions
    trace = trace_lambda * (chance / probabilities.double().roll(-1, -1)).clamp(max=1.0)
    taken = values.gather(-1, following.unsqueeze(-1)).squeeze(-1)
    return linear_targets(
        rewards, expected - trace * taken, trace, expected, terminated, gamma=gamma, lengths=lengths
    )


def linear_targets(
    rewards: Tensor,
    offset: Tensor,
    trace: Tensor,
    end_value: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    lengths: Tensor | None,
) -> Tensor:
    """y_k = r_k + γ (offset_k + trace_k y_{k+1}); r_T or r_T + γ end_value_T at a segment's end.

    All but terminated and lengths (…) are (…, T). Each step is a map y → a + b·y; two of them
    compose to a third, so all targets come in log2 T rounds, in float64. After the round with
    distance d, entry k holds the composition of the maps k to k + 2d − 1, or to the end, whose map
    is constant. Padding has the map 0, so it changes no bit of what is before it.
    """
    steps = rewards.shape[-1]
    position = torch.arange(steps, device=rewards.device)
    stop = steps if lengths is None else lengths.unsqueeze(-1)
    ends, outside = position == stop - 1, position >= stop
    rewards = rewards.double()
    end = torch.where(terminated.bool().unsqueeze(-1), rewards, rewards + gamma * end_value)
    a = torch.where(ends, end, rewards + gamma * offset).masked_fill(outside, 0.0)
    b = (gamma * trace).masked_fill(ends | outside, 0.0)
    distance = 1
    while distance < steps:
        a[..., :-distance] += b[..., :-distance] * a[..., distance:]
        b[..., :-distance] = b[..., :-distance] * b[..., distance:]
        distance *= 2
    return a.float()


@torch.no_grad()
def optimality_bounds(
    rewards: Tensor,
    terminated: Tensor,
    joined: Tensor,
    taken: Tensor,
    bootstraps: Tensor,
    *,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The one-step target of a transition, and the bounds on Q(s, a) that its game sets.

    He, Liu, Schwing, Peng, *Learning to Play in a Day: Faster Deep Reinforcement Learning by
    Optimality Tightening*, ICLR 2017, with the returns of K steps on either side:

        L = max_{1 ≤ k ≤ K} Σ_{i ≤ k} γ^i r_{j+i} + γ^{k+1} max_a Q̂(s_{j+k+1}, a)
        U = min_{0 ≤ k < K} γ^{−k−1} (Q̂(s_{j−k−1}, a_{j−k−1}) − Σ_{i ≤ k} γ^i r_{j−k−1+i})

    | argument | shape | meaning |
    | --- | --- | --- |
    | rewards, terminated | (B, K + 1 + K) | of the steps j − K to j + K |
    | joined | (B, K + 1 + K) bool | as in the module's table |
    | taken | (B, K) | Q̂(s, a) of the steps j − K to j − 1 |
    | bootstraps | (B, 1 + K) | max_a Q̂(s', a) of the steps j to j + K |

    No bound crosses a step that terminated; L of a window with such a step after j is the return
    up to it. γ must be above 0. Returns the one-step target, L and U, (B,) each; L is −∞ and U is
    ∞ where nothing bounds.
    """
    middle = taken.shape[1]
    returns = torch.zeros_like(bootstraps[:, 0])
    lower, upper = torch.full_like(returns, -torch.inf), torch.full_like(returns, torch.inf)
    one_step = returns
    inside = torch.ones_like(joined[:, 0])
    for k in range(bootstraps.shape[1]):
        step = middle + k
        inside = inside & joined[:, step]
        returns = returns + gamma**k * rewards[:, step]
        bootstrapped = returns + gamma ** (k + 1) * bootstraps[:, k]
        bound = torch.where(terminated[:, step], returns, bootstrapped)
        if k == 0:
            one_step = bound
        else:
            lower = torch.where(inside, torch.maximum(lower, bound), lower)
        inside = inside & ~terminated[:, step]

    returns = torch.zeros_like(one_step)
    inside = torch.ones_like(inside)
    for k in range(middle):
        step = middle - k - 1
        inside = inside & joined[:, step] & ~terminated[:, step]
        returns = rewards[:, step] + gamma * returns
        bound = (taken[:, step] - returns) / gamma ** (k + 1)
        upper = torch.where(inside, torch.minimum(upper, bound), upper)
    return one_step, lower, upper


@torch.no_grad()
def tightened_targets(
    values: Tensor, one_step: Tensor, lower: Tensor, upper: Tensor, *, penalty: float
) -> Tensor:
    """Where (Q − y)² + λ (L − Q)²₊ + λ (Q − U)²₊ of He et al. 2017 pulls Q(s, a) to.

    Its gradient is that of w (Q − ŷ)², with ŷ the mean of y and of the bounds that Q breaks, of
    weights 1 and λ, and w the sum of these. (B,) each, values Q(s, a) of the online network;
    returns ŷ (B,).
    """
    total, weight = one_step, torch.ones_like(one_step)
    for bound, broken in ((lower, values < lower), (upper, values > upper)):
        total = total + penalty * torch.where(broken, bound, 0.0)
        weight = weight + penalty * broken
    return total / weight
