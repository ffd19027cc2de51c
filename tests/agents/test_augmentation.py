"""Random shifts and intensities: what they show, how often, and that they resume."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from agents import AGENTS, LearnerConfig
from agents.augmentation import Augmentation
from benchmarks.noise import agent_for, noise_memory
from tests.made_up import CPU, same

ERROR_RATE = 1e-6


def augmentation(seed: int = 0, *, shift_pixels: int = 0, intensity: float = 0.0) -> Augmentation:
    config = replace(AGENTS["ebu"], shift_pixels=shift_pixels, intensity=intensity)
    return Augmentation(config, np.random.default_rng(seed))


def test_shifted_images_are_crops_of_images_padded_by_their_last_pixels() -> None:
    states = torch.randint(256, (6, 2, 9, 7), dtype=torch.uint8)
    shifts = torch.tensor([[0, 0], [2, 0], [0, -2], [1, 1], [-2, 2], [2, -1]])
    shifted = Augmentation.apply(states, shifts)
    assert shifted.dtype == torch.uint8
    padded = np.pad(states.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    for row, (down, right) in enumerate(shifts.tolist()):
        crop = padded[row, :, 2 + down : 11 + down, 2 + right : 9 + right]
        assert np.array_equal(shifted[row].numpy(), crop)


def test_shifts_are_uniform_and_independent() -> None:
    drawn = augmentation(shift_pixels=2).draw(40, 100)["shifts"].reshape(-1, 2)
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(drawn.T + 2), 1)
    assert scipy.stats.chisquare(counts.ravel()).pvalue > ERROR_RATE


def test_factors_are_normal_around_one_and_cut() -> None:
    factors = augmentation(intensity=0.05).draw(50, 100)["factors"]
    assert factors.dtype == np.float32
    assert np.abs(factors - 1).max() <= 0.1 + 1e-6
    inside = (factors[np.abs(factors - 1) < 0.0999] - 1) / 0.05
    assert scipy.stats.kstest(inside, scipy.stats.truncnorm(-1.998, 1.998).cdf).pvalue > ERROR_RATE
    states = torch.full((3, 4, 5, 5), 100, dtype=torch.uint8)
    brighter = Augmentation.apply(states, factors=torch.tensor([1.0, 0.9, 1.1]))
    torch.testing.assert_close(brighter[:, 0, 0, 0], torch.tensor([100.0, 90.0, 110.0]))


def test_it_goes_on_where_it_was_saved() -> None:
    one, other = (augmentation(seed, shift_pixels=4, intensity=0.1) for seed in (1, 2))
    one.draw(3, 5)
    other.load_state_dict(one.state_dict())
    assert same(
        {k: torch.from_numpy(v) for k, v in one.draw(2, 4).items()},
        {k: torch.from_numpy(v) for k, v in other.draw(2, 4).items()},
    )


def test_without_settings_nothing_is_drawn() -> None:
    idle = augmentation()
    assert idle.draw(3, 5) == idle.state_dict() == {}


@pytest.mark.parametrize("flags", [{}, {"n_step": 3}, {"double": True}, {"prioritized": True}])
def test_next_states_of_single_transitions_are_changed_by_draws_of_their_own(
    flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = noise_memory(CPU, capacity=500)
    method = replace(AGENTS["dqn"], shift_pixels=4, **flags)
    agent = agent_for(memory, method, LearnerConfig(network="net3"))
    drawn: list[torch.Tensor] = []
    changed: list[torch.Tensor] = []
    apply, target_values = Augmentation.apply, agent.learner.target_values

    def note(states: torch.Tensor, shifts: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        drawn.append(shifts)
        changed.append(apply(states, shifts, factors))
        return changed[-1]

    def values(states: torch.Tensor) -> torch.Tensor:
        # What was changed last are the next states.
        assert states is changed[-1]
        return target_values(states)

    monkeypatch.setattr(Augmentation, "apply", staticmethod(note))
    monkeypatch.setattr(agent.learner, "target_values", values)
    agent.learn(memory, 4)
    assert len(drawn) == 8
    assert not any(torch.equal(one, other) for one, other in combinations(drawn, 2))
