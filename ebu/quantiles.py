"""Distributional EBU: backward targets and the loss of quantiles of the return.

The target network gives N quantiles Ẑ(s, a) of each next state's return. With bars for means over
the quantiles, and ȳ for the targets of `ebu.targets` made of the means,

    Z̃_k(a_{k+1}) = β Y_{k+1} + (1−β) Ẑ(s_{k+1}, a_{k+1})        quantile by quantile
    Y_k = r_k + γ Z̃_k(a*),   a* = argmax_a mean Z̃_k(a).

The mean of Y_k is ȳ_k, so the means decide at each step whether the propagated quantiles are
followed, and what remains is linear: Y_k = b_k + c_k Y_{k+1}, all N at once. The distributional
form of EBU is this project's own; quantile regression is from Dabney, Rowland, Bellemare, Munos,
*Distributional Reinforcement Learning with Quantile Regression*, AAAI 2018.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ebu.double_backward import double_backward_targets
from ebu.returns import linear_targets
from ebu.targets import backward_targets


@torch.no_grad()
def quantile_backward_targets(
    rewards: Tensor,
    quantiles: Tensor,
    actions: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    beta: float,
    lengths: Tensor | None = None,
    online_values: Tensor | None = None,
) -> Tensor:
    """Quantile targets (N, …, T) float32 of segments; their means are the scalar targets.

    | argument | shape | meaning |
    | --- | --- | --- |
    | quantiles | (N, …, T, A) | the target network's, of the next states |
    | online_values | (…, T, A) | with them, these choose the actions, as in double Q-learning |

    All else as in `ebu.targets`, rewards (…, T).
    """
    means = quantiles.mean(0)
    if online_values is None:
        choosing = means
        targets = backward_targets(
            rewards, means, actions, terminated, gamma=gamma, beta=beta, lengths=lengths
        )
    else:
        choosing = online_values
        targets = double_backward_targets(
            rewards,
            online_values,
            means,
            actions,
            terminated,
            gamma=gamma,
            beta=beta,
            lengths=lengths,
        )

    def of(chosen: Tensor) -> Tensor:
        index = chosen.expand(quantiles.shape[:-1]).unsqueeze(-1)
        return quantiles.gather(-1, index).squeeze(-1)

    # Of the next step; what rolls round to the last one has no weight there.
    taken = actions.long().roll(-1, -1).clamp(0, quantiles.shape[-1] - 1)
    best = choosing.argmax(-1)
    others = choosing.scatter(-1, taken.unsqueeze(-1), -torch.inf)
    propagated = beta * targets.roll(-1, -1) + (1.0 - beta) * choosing.gather(
        -1, taken.unsqueeze(-1)
    ).squeeze(-1)
    follows = (propagated >= others.amax(-1)) & (beta > 0.0)
    elsewhere = others.argmax(-1) if beta > 0.0 else best
    offset = torch.where(follows, (1.0 - beta) * of(taken), of(elsewhere))
    return linear_targets(
        rewards.expand(offset.shape),
        offset.double(),
        (beta * follows.double()).expand(offset.shape),
        of(best).double(),
        terminated,
        gamma=gamma,
        lengths=lengths,
    )


def quantile_huber(predicted: Tensor, targets: Tensor, *, delta: float) -> Tensor:
    """Quantile Huber losses (B,) of quantiles (N, B) against targets (M, B).

    Dabney et al. 2018, equations 9 and 10: the sum over the N predicted quantiles, at the middles
    τ_i = (i + ½) / N, of the mean over the M targets. The division by δ is not theirs, but that of
    Dabney, Ostrovski, Silver, Munos 2018, *Implicit Quantile Networks*, equation 3.
    """
    count = len(predicted)
    middles = (torch.arange(count, device=predicted.device) + 0.5) / count
    errors = targets[None] - predicted[:, None]
    huber = functional.huber_loss(errors, torch.zeros_like(errors), reduction="none", delta=delta)
    weights = (middles[:, None, None] - (errors.detach() < 0).float()).abs()
    return (weights * huber / delta).mean(1).sum(0)
