"""Epsilon-greedy: a draw for each environment, and the probability of what it chose."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents import LearnerConfig
from agents.agent import epsilon_greedy
from tests.made_up import TableLearner, agent_of, table_values

ROUNDS = 4_000
# Fixed seeds make these tests repeatable; a right sampler would fail at one seed in a million.
ERROR_RATE = 1e-6


def choices(
    values: torch.Tensor, *, epsilon: float, forced: list[bool], rounds: int = ROUNDS
) -> tuple[np.ndarray, np.ndarray]:
    """Actions and probabilities (rounds, N) of the same values again and again."""
    rng = np.random.default_rng(0)
    drawn = [
        epsilon_greedy(values, epsilon=epsilon, rng=rng, forced_random=np.array(forced))
        for _ in range(rounds)
    ]
    actions, probabilities = zip(*drawn, strict=True)
    return np.stack(actions), np.stack(probabilities)


VALUES = torch.tensor([[0.0, 1, 2, 3], [3, 2, 1, 0], [0, 5, 0, 0], [-3, -2, -1, -4], [1, 0, 0, 0]])
GREEDY = [3, 0, 1, 2, 0]


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 1.0])
def test_actions_come_as_often_as_their_probabilities_say(epsilon: float) -> None:
    forced = [False, True, False, True, False]
    actions, _ = choices(VALUES, epsilon=epsilon, forced=forced)
    statistic, degrees = 0.0, 0
    for j, greedy in enumerate(GREEDY):
        share = 1.0 if forced[j] else epsilon
        expected = np.full(4, share / 4) + (1 - share) * (np.arange(4) == greedy)
        counts = np.bincount(actions[:, j], minlength=4)
        assert not counts[expected == 0].any()
        possible = expected > 0
        statistic += float(
            ((counts - ROUNDS * expected) ** 2)[possible] @ (1 / (ROUNDS * expected[possible]))
        )
        degrees += int(possible.sum()) - 1
    assert scipy.stats.chi2.sf(statistic, degrees) > ERROR_RATE


def test_environments_explore_independently() -> None:
    actions, _ = choices(VALUES, epsilon=0.5, forced=[False] * 5)
    pairs = list(itertools.combinations(range(5), 2))
    for one, other in pairs:
        table = np.zeros((4, 4))
        np.add.at(table, (actions[:, one], actions[:, other]), 1)
        p_value = scipy.stats.chi2_contingency(table).pvalue
        assert p_value > ERROR_RATE / len(pairs)


@given(
    epsilon=st.floats(0, 1),
    forced=st.lists(st.booleans(), min_size=1, max_size=6),
    num_actions=st.integers(1, 18),
    seed=st.integers(0, 2**32),
)
def test_the_probability_of_the_chosen_action(
    epsilon: float, forced: list[bool], num_actions: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.normal(size=(len(forced), num_actions)))
    actions, probabilities = epsilon_greedy(
        values, epsilon=epsilon, rng=rng, forced_random=np.array(forced)
    )
    assert actions.dtype == np.int64
    assert probabilities.dtype == np.float32
    assert actions.shape == probabilities.shape == (len(forced),)
    for j, action in enumerate(actions):
        share = 1.0 if forced[j] else epsilon
        # Exploring may choose the greedy action as well: both ways to it count.
        is_greedy = action == int(values[j].argmax())
        expected = share / num_actions + ((1 - share) if is_greedy else 0)
        assert probabilities[j] == pytest.approx(expected, abs=1e-6)


def test_an_agent_acts_on_its_online_values() -> None:
    stacks = torch.randint(1, 50, (40, 3, 3)).float()
    actions, probabilities = agent_of("dqn", TableLearner()).act(
        stacks, epsilon=0.0, rng=np.random.default_rng(0)
    )
    assert np.array_equal(actions, table_values(stacks).argmax(dim=1).numpy())
    assert (probabilities == 1).all()


class TwoWeights(TableLearner):
    """Its averaged weights have other values than its newest."""

    def playing_values(self, states: Tensor) -> Tensor:
        return table_values(states, salt=1)


@pytest.mark.parametrize(("average_acts", "salt"), [(False, 0), (True, 1)])
def test_the_averaged_weights_act_in_training_if_they_are_asked_to(
    average_acts: bool, salt: int
) -> None:
    learner, stacks = TwoWeights(), torch.randint(1, 50, (40, 3, 3)).float()
    learner.config = LearnerConfig(average_acts=average_acts)
    agent = agent_of("dqn", learner)
    actions, _ = agent.act(stacks, epsilon=0.0, rng=np.random.default_rng(0))
    expected = table_values(stacks, salt)
    assert np.array_equal(actions, expected.argmax(dim=1).numpy())
    # What `q/predicted` is taken from.
    assert torch.equal(agent.last_values, expected)
    assert not torch.equal(table_values(stacks, 0).argmax(1), table_values(stacks, 1).argmax(1))


def test_acting_draws_from_the_generator_it_is_given_and_from_no_other() -> None:
    agent, stacks = agent_of("dqn", TableLearner()), torch.ones(6, 3, 3)
    before = agent.state_dict()
    first, again = (
        agent.act(stacks, epsilon=1.0, rng=np.random.default_rng(7))[0] for _ in range(2)
    )
    assert np.array_equal(first, again)
    assert agent.state_dict() == before
