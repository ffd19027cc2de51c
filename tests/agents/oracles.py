"""Targets of every agent along what was played, written down from the papers a second time."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from agents.settings import (
    AgentConfig,
    EbuConfig,
    OptimalityTighteningConfig,
    QLambdaConfig,
    RetraceConfig,
    SegmentConfig,
    TransitionConfig,
)
from tests.made_up import NUM_ACTIONS, Place, Played, Seen, table_values

ONLINE_SALT = 1
"""The online network of `TwoTables` has the values of this salt, its target network those of 0."""


def value_of(state: np.ndarray, salt: int = 0) -> np.ndarray:
    """Made-up action values (A,) float64 of a state; by default the target network's."""
    return table_values(torch.from_numpy(state)[None], salt)[0].double().numpy()


def best_value(state: np.ndarray, double: bool) -> float:
    """The target network's value of the best action, which with `double` the online one chooses."""
    values = value_of(state)
    return float(values[value_of(state, ONLINE_SALT).argmax()] if double else values.max())


def n_step(played: Played, place: Place, config: TransitionConfig) -> float:
    """The sum along what was played, as far as it goes."""
    env, game, step = place
    y, discount = 0.0, 1.0
    for k in range(config.n_step):
        seen = played.seen.get((env, game, step + k))
        if seen is None:
            break
        y += discount * reward_of(seen, config)
        discount *= config.gamma
        if seen.terminated:
            return y
        last = seen
    return y + discount * best_value(last.next_state, config.double)


def reward_of(seen: Seen, config: AgentConfig) -> float:
    return float(np.clip(seen.reward, -1, 1)) if config.clip_rewards else seen.reward


def tightened(played: Played, place: Place, config: OptimalityTighteningConfig) -> float:
    """The one-step target and the bounds that the value violates, averaged with their weights."""
    env, game, step = place
    gamma = config.gamma

    def at(k: int) -> Seen | None:
        seen = played.seen.get((env, game, step + k))
        newest, stack = played.count - 1, played.env.stack
        if seen is None:
            return None
        first = seen.step - min(stack - 1, step + k - 1)
        return seen if first > newest - played.replay.ring_length else None

    total, ahead = 0.0, []
    for k in range(config.bound_steps + 1):
        seen = at(k)
        if seen is None:
            break
        total += gamma**k * reward_of(seen, config)
        if seen.terminated:
            ahead.append(total)
            break
        ahead.append(total + gamma ** (k + 1) * best_value(seen.next_state, False))
    total, back = 0.0, []
    for k in range(config.bound_steps):
        seen = at(-k - 1)
        if seen is None or seen.terminated:
            break
        total = reward_of(seen, config) + gamma * total
        back.append((float(value_of(seen.state)[seen.action]) - total) / gamma ** (k + 1))
    middle = played.seen[place]
    own = float(value_of(middle.state, ONLINE_SALT)[middle.action])
    terms, weights = [ahead[0]], [1.0]
    lower, upper = max(ahead[1:], default=-math.inf), min(back, default=math.inf)
    for bound, violated in ((lower, own < lower), (upper, own > upper)):
        if violated:
            terms.append(bound)
            weights.append(config.bound_penalty)
    return float(np.average(terms, weights=weights))


def ebu(segment: Sequence[Seen], config: EbuConfig) -> list[float]:
    """Algorithm 2 by its table as it is printed; with `double` a second table decides."""
    y = [0.0] * len(segment)
    for k in reversed(range(len(segment))):
        seen = segment[k]
        values = value_of(seen.next_state)
        choosing = value_of(seen.next_state, ONLINE_SALT) if config.double else values.copy()
        if k == len(segment) - 1:
            best = 0.0 if seen.terminated else float(values[choosing.argmax()])
        else:
            action = segment[k + 1].action
            for table in (values, choosing):
                table[action] = config.beta * y[k + 1] + (1 - config.beta) * table[action]
            best = float(values[choosing.argmax()])
        y[k] = reward_of(seen, config) + config.gamma * best
    return y


def peng(segment: Sequence[Seen], config: QLambdaConfig) -> list[float]:
    y = [0.0] * len(segment)
    for k in reversed(range(len(segment))):
        seen = segment[k]
        best = best_value(seen.next_state, False)
        if k == len(segment) - 1:
            back = 0.0 if seen.terminated else best
        else:
            back = (1 - config.trace_lambda) * best + config.trace_lambda * y[k + 1]
        y[k] = reward_of(seen, config) + config.gamma * back
    return y


def retrace(segment: Sequence[Seen], config: RetraceConfig) -> list[float]:
    """Targets of a segment that was played at random."""
    y = [0.0] * len(segment)
    for k in reversed(range(len(segment))):
        seen = segment[k]
        values = value_of(seen.next_state)
        policy = np.full(NUM_ACTIONS, config.target_epsilon / NUM_ACTIONS)
        policy[values.argmax()] += 1 - config.target_epsilon
        back = float(policy @ values)
        if k == len(segment) - 1:
            back = 0.0 if seen.terminated else back
        else:
            action = segment[k + 1].action
            trace = config.trace_lambda * min(1.0, policy[action] * NUM_ACTIONS)
            back += trace * (y[k + 1] - float(values[action]))
        y[k] = reward_of(seen, config) + config.gamma * back
    return y


def segments_of(played: Played) -> list[dict[Place, Seen]]:
    """What was played, cut at lost lives, by place; the last of a game still played is open."""
    found: list[dict[Place, Seen]] = []
    before: Place | None = None
    for place in sorted(played.seen):
        joined = before is not None and place == (*before[:2], before[2] + 1)
        if not joined or played.seen[before].terminated:  # type: ignore[index]
            found.append({})
        found[-1][place] = played.seen[place]
        before = place
    return found


def targets_of(played: Played, config: AgentConfig) -> dict[Place, float]:
    """The target of every transition that was played, whole games in the memory assumed."""
    if isinstance(config, TransitionConfig):
        return {place: n_step(played, place, config) for place in played.seen}
    if isinstance(config, OptimalityTighteningConfig):
        return {place: tightened(played, place, config) for place in played.seen}
    assert isinstance(config, SegmentConfig)
    oracle: Callable[..., list[float]] = peng
    if isinstance(config, EbuConfig):
        oracle = ebu
    elif isinstance(config, RetraceConfig):
        oracle = retrace
    return {
        place: target
        for segment in segments_of(played)
        for place, target in zip(segment, oracle([*segment.values()], config), strict=True)
    }
