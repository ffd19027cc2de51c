"""What holds for every agent and for the combinations of their flags."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import agents.segment_target
from agents import AGENTS, Agent
from agents.annealing import Annealing
from agents.noisy import Noise, WeightNoise
from ebu.errors import UsageError
from ebu.run.settings import check_settings
from tests.agents.oracles import targets_of
from tests.made_up import (
    MIXED,
    Game,
    MadeUpGames,
    Place,
    Played,
    TwoTables,
    agent_of,
    one_stream,
    one_terminated_game,
    places,
    random_games,
    same,
    targets_by_row,
    through_disk,
)

COMBINATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in AGENTS if name != "adaptive_ebu"},
    "n-step double": ("nstep", {"double": True}),
    "prioritized one-step": ("dqn", {"prioritized": True}),
    "prioritized n-step": ("nstep", {"prioritized": True}),
    "prioritized n-step double": ("prioritized", {"n_step": 4}),
    "prioritized tightening": ("optimality_tightening", {"prioritized": True}),
    "ebu mixed": ("ebu", {"mix_segments": 4}),
    "ebu double": ("ebu", {"double": True}),
    "ebu prioritized": ("ebu", {"prioritized": True}),
    "ebu prioritized double mixed": (
        "ebu",
        {"prioritized": True, "double": True, "mix_segments": 4},
    ),
    "retrace prioritized": ("retrace", {"prioritized": True}),
    "q_lambda prioritized": ("q_lambda", {"prioritized": True, "mix_segments": 2}),
}
"""Agents and flags; adaptive_ebu, which needs several networks, has tests of its own."""
ANNEALED: dict[str, tuple[str, dict[str, Any]]] = {
    "n-step annealed": ("nstep", {"n_step_start": 6, "gamma_start": 0.2, "anneal_updates": 16}),
    "ebu annealed": ("ebu", {"beta_start": 1.0, "gamma_start": 0.2, "anneal_updates": 16}),
}
"""Agents whose targets change with every update, until they have made 16."""
NOISY: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name.split()[0], {"double": True}) for name in ("nstep noisy", "ebu noisy")
}
"""Agents of a noisy network."""
every_combination = pytest.mark.parametrize("combination", COMBINATIONS)


class FallibleTables(TwoTables):
    """Its update returns the online values, so that errors are those of a real learner."""

    def update(
        self, states: Any, actions: Any, targets: Any, weights: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        super().update(states, actions, targets)
        return torch.tensor(0.0), self.values(states).gather(1, actions[:, None]).squeeze(1)


class NoisyTables(FallibleTables):
    """Its values are those of the tables and the first number of its noise."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layers = [WeightNoise(nn.Linear(2, 2)) for _ in range(2)]
        self.noise = Noise(self.layers, (seed,))

    def values(self, states: Any) -> torch.Tensor:
        return super().values(states) + self.layers[0].of_inputs[0]

    def target_values(self, states: Any) -> torch.Tensor:
        return super().target_values(states) + self.layers[1].of_inputs[0]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | self.noise.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.noise.load_state_dict(state)


def combined(combination: str, learner: Any, seed: int = 0, **config: Any) -> Agent:
    name, flags = (COMBINATIONS | ANNEALED | NOISY)[combination]
    return agent_of(name, learner, seed, **{**flags, **config})


@every_combination
@pytest.mark.parametrize("clip_rewards", [True, False])
def test_targets_are_those_of_what_was_played(combination: str, clip_rewards: bool) -> None:
    played, _ = one_stream(*MIXED, Game(45), Game(45, truncated=True))
    learner = FallibleTables()
    agent = combined(combination, learner, clip_rewards=clip_rewards)
    expected = targets_of(played, agent.config)
    trained: set[Place] = set()
    while trained != set(played.seen):  # ends, cuts and lost lives among them
        agent.learn(played.replay, updates=10)
        for update in learner.noted:
            played.check(update)
            assert len(update.targets) == 8
            for place, target in zip(places(update.states), update.targets.tolist(), strict=True):
                assert target == pytest.approx(expected[place], rel=1e-4, abs=1e-4)
                trained.add(place)
        learner.noted.clear()


BY_HAND: list[tuple[str, dict[str, Any], list[float]]] = [
    # One terminated game of action 1: rewards 0, 0.5, 4, -0.5 are clipped to 0, 0.5, 1, -0.5.
    # Target values of every next state 2, 4, 1, online values 3, 5, 6; γ = 0.5.
    ("dqn", {}, [0 + 2, 0.5 + 2, 1 + 2, -0.5]),
    ("dqn", {"clip_rewards": False}, [0 + 2, 0.5 + 2, 4 + 2, -0.5]),
    # Action 2 looks best online, and is worth 1.
    ("double_dqn", {}, [0 + 0.5, 0.5 + 0.5, 1 + 0.5, -0.5]),
    ("prioritized", {}, [0 + 0.5, 0.5 + 0.5, 1 + 0.5, -0.5]),
    ("nstep", {"n_step": 2}, [0.25 + 1, 0.5 + 0.5 + 1, 1 - 0.25, -0.5]),
    ("nstep", {"n_step": 2, "double": True}, [0.25 + 0.25, 0.5 + 0.5 + 0.25, 1 - 0.25, -0.5]),
    ("prioritized", {"n_step": 2}, [0.25 + 0.25, 0.5 + 0.5 + 0.25, 1 - 0.25, -0.5]),
    # m = 2, q = 4: 1 + ½ max(2, ½·−½ + ½·4) = 2; ½ + ½ max(2, ½·2 + 2) = 2; ½ max(2, ½·2 + 2)
    ("ebu", {}, [1.5, 2, 2, -0.5]),
    ("ebu", {"prioritized": True}, [1.5, 2, 2, -0.5]),
    # y' = −½ online: ½·−½ + ½·5 = 2.25 < 6, so action 2, worth 1: 1 + ½ = 1.5; and so on.
    ("ebu", {"double": True}, [0.5, 1.0, 1.5, -0.5]),
    ("ebu", {"double": True, "prioritized": True}, [0.5, 1.0, 1.5, -0.5]),
    # ½ max q + ½ y': 1 + ½ (2 − ¼) = 1.875; ½ + ½ (2 + 0.9375) = 1.96875; ½ (2 + 0.984375)
    ("q_lambda", {"trace_lambda": 0.5}, [1.4921875, 1.96875, 1.875, -0.5]),
    # π = (0.1, 0.8, 0.1): E = 3.5, c = min(1, 0.8 / 1): 1 + ½ (3.5 + 0.8 (−0.5 − 4)) = 0.95;
    # ½ + ½ (3.5 + 0.8 (0.95 − 4)) = 1.03; ½ (3.5 + 0.8 (1.03 − 4)) = 0.562
    ("retrace", {"target_epsilon": 0.3}, [0.562, 1.03, 0.95, -0.5]),
    # Online Q(s, 1) = 5. No lower bound is above 5. The upper bounds of the last three are
    # 2 (4 − 0) = 8, 2 (4 − ½) = 7 and 2 (4 − 1) = 6: none is below 5.
    ("optimality_tightening", {"bound_steps": 1}, [2, 2.5, 3, -0.5]),
]


@pytest.mark.parametrize(("name", "flags", "expected"), BY_HAND)
def test_targets_by_hand(
    monkeypatch: pytest.MonkeyPatch, name: str, flags: dict[str, Any], expected: list[float]
) -> None:
    replay = one_terminated_game([0.0, 0.5, 4.0, -0.5], action=1)
    learner = TwoTables()
    online, target = torch.tensor([3.0, 5, 6]), torch.tensor([2.0, 4, 1])
    monkeypatch.setattr(learner, "values", lambda s: online.repeat(len(s), 1))
    monkeypatch.setattr(learner, "target_values", lambda s: target.repeat(len(s), 1))
    agent_of(name, learner, gamma=0.5, **flags).learn(replay, 20)
    targets = targets_by_row(learner.noted)
    found = [targets[step, step] for step in range(1, 5)]
    assert found == pytest.approx(expected, abs=1e-6)


@every_combination
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    longest=st.integers(1, 50),
    rounds=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 4)), min_size=4, max_size=12),
)
def test_nothing_overwritten_is_trained_on(
    combination: str, seed: int, longest: int, rounds: list[tuple[int, int]]
) -> None:
    played = Played(MadeUpGames(2, random_games(seed, longest)), capacity=120, seed=seed)
    learner = FallibleTables()
    agent = combined(combination, learner, seed)
    for steps, updates in rounds:
        played.play(steps)
        stored = len(played.replay.segments) if agent.needs_segments else 1
        agent.learn(played.replay, updates if stored else 0)
        for update in learner.noted:
            played.check(update)
        learner.noted.clear()


@pytest.mark.parametrize("combination", ANNEALED)
def test_annealed_targets_are_those_of_the_settings_at_the_update(combination: str) -> None:
    played, _ = one_stream(5, 9, 30, 6)
    learner = FallibleTables()
    agent = combined(combination, learner)
    annealing = Annealing(agent.config, 0)
    expected = [targets_of(played, annealing.at(update)[0]) for update in range(17)]
    agent.learn(played.replay, updates=40)
    for update, noted in enumerate(learner.noted):
        # A segment's targets are those of the update for which it was drawn.
        first = update if combination == "n-step annealed" else 0
        possible = expected[min(first, 16) : update + 1]
        for place, target in zip(places(noted.states), noted.targets.tolist(), strict=True):
            assert any(target == pytest.approx(each[place], abs=1e-4) for each in possible)
    assert agent.target.config is agent.config
    assert learner.noted[0].targets.tolist() != learner.noted[-1].targets.tolist()


@pytest.mark.parametrize("combination", [*COMBINATIONS, *ANNEALED, *NOISY])
@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_restored_agent_learns_the_same(tmp_path: Path, combination: str, before: int) -> None:
    played = Played(MadeUpGames(2, random_games(4, 30)), capacity=160)
    played.play(70)
    learner, other = (
        NoisyTables(seed) if combination in NOISY else FallibleTables() for seed in (0, 1)
    )
    agent, restored = combined(combination, learner, 0), combined(combination, other, 1)
    agent.learn(played.replay, before)
    # Saved with transitions that no update has drawn from yet.
    played.play(20)
    restored.load_state_dict(through_disk(agent.state_dict(), tmp_path))
    restored.check_memory(played.replay)
    assert same(agent.state_dict(), restored.state_dict())
    # Targets of a segment in progress that were computed again would be others.
    learner.salt = other.salt = 2
    for _ in range(4):
        played.play(20)
        for each in (agent, restored):
            each.learn(played.replay, 3)
    for one, two in zip(learner.noted[before:], other.noted, strict=True):
        assert all(map(torch.equal, one, two))
    assert same(agent.state_dict(), restored.state_dict())
    assert agent.metrics() == restored.metrics()


@pytest.mark.parametrize(
    "combination", ["ebu", "ebu double", "ebu mixed", "retrace", "q_lambda", "ebu prioritized"]
)
def test_targets_computed_together_are_those_of_each_segment_alone(
    monkeypatch: pytest.MonkeyPatch, combination: str
) -> None:
    played, _ = one_stream(*MIXED, Game(45), Game(45, truncated=True))
    learners = FallibleTables(), FallibleTables()
    for learner, together in zip(learners, ({"cpu"}, set[str]()), strict=True):
        monkeypatch.setattr(agents.segment_target, "TOGETHER", together)
        agent = combined(combination, learner)
        for updates in (1, 30, 7):
            agent.learn(played.replay, updates)
    for one, other in zip(*(learner.noted for learner in learners), strict=True):
        assert all(map(torch.equal, one, other))


def test_metrics_are_means_of_one_update_in_sixteen_since_they_were_last_asked_for() -> None:
    played, _ = one_stream(*MIXED)
    learner = TwoTables()
    agent = agent_of("dqn", learner)
    for parts in ([3], [2], [40], [10, 7, 16, 1]):
        before = len(learner.noted)
        for updates in parts:
            agent.learn(played.replay, updates)
        measured = torch.stack([update.targets for update in learner.noted[before::16]])
        metrics = agent.metrics()
        assert metrics["q/target"] == pytest.approx(float(measured.mean()), rel=1e-5)
        assert {"loss/huber", "q/mean", "q/max"} <= metrics.keys()
    assert "q/target" not in agent.metrics()


@pytest.mark.parametrize(
    ("name", "flags", "complaint"),
    [
        ("nstep", {"n_step": 0}, "--n-step must be positive"),
        ("optimality_tightening", {"gamma": 0.0}, "--gamma must be positive"),
        ("retrace", {"target_epsilon": 1.1}, "--target-epsilon must be between 0 and 1"),
        ("q_lambda", {"trace_lambda": float("nan")}, "--trace-lambda must be between 0 and 1"),
        ("ebu", {"beta": -0.1}, "--beta must be between 0 and 1"),
        ("ebu", {"mix_segments": 3}, "--mix-segments 3 must divide --batch-size 8"),
        ("ebu", {"priority_exponent": 0.5}, "--priority-exponent changes nothing"),
        ("prioritized", {"importance_updates": 0}, "--importance-updates must be positive"),
    ],
)
def test_settings_that_cannot_learn_are_refused(
    name: str, flags: dict[str, Any], complaint: str
) -> None:
    config = agent_of(name, TwoTables(), **flags).config

    def check() -> None:
        check_settings(config)
        config.check()

    with pytest.raises(UsageError, match=complaint):
        check()


def test_priorities_come_from_the_errors_of_the_learner() -> None:
    played, _ = one_stream(30)
    learner = FallibleTables()
    agent = agent_of("dqn", learner, prioritized=True, batch_size=30)
    agent.learn(played.replay, 200)
    tree = agent.sampler.state_dict()["leaves"]
    expected = targets_of(played, agent.config)
    for place, seen in played.seen.items():
        online = learner.values(torch.from_numpy(seen.state)[None])[0, seen.action]
        error = abs(expected[place] - float(online)) + 1e-6
        assert tree[seen.step] == pytest.approx(error**0.6, rel=1e-4)
    assert np.count_nonzero(tree) == 30
