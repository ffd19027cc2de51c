"""Adaptive EBU: which learner acts, whose weights are copied when, what each learner learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import Agent, EbuConfig, LearnerConfig, build_agent, build_learner
from agents.adaptive import ActingLearners, AdaptiveEbu
from agents.agent import policy_weights
from agents.learner import Learner
from agents.settings import AdaptiveEbuConfig
from ebu.commands.train_arguments import parse_arguments
from ebu.errors import UsageError
from ebu.run.reading import RefusedFileError
from ebu.sampling import Draw
from ebu.segment_sampling import SegmentSampler
from envs import VectorStep
from tests.made_up import CPU, GAMMA, NUM_ACTIONS, MadeUpGames, Played, random_games, same
from tests.made_up_runs import STEP_FRAMES, lines, real_run

STACK = 3
PRECISIONS = pytest.mark.parametrize("precision", ["float32", "bfloat16"])


def arguments(seed: int, precision: str = "float32") -> dict[str, Any]:
    return {
        "stack": STACK,
        "frame_shape": MadeUpGames.frame_shape,
        "num_actions": NUM_ACTIONS,
        "device": CPU,
        "precision": precision,
        "rng": np.random.default_rng(seed),
    }


def adaptive_of(
    learners: int = 3, *, precision: str = "float32", sync: int = 7, **config: Any
) -> AdaptiveEbu:
    method = AdaptiveEbuConfig(learners=learners, batch_size=8, gamma=GAMMA, **config)
    settings = LearnerConfig(target_sync_updates=sync, learning_rate=1e-3)
    learner = build_learner(method, settings, **arguments(1, precision))
    agent = build_agent(method, learner, np.random.default_rng(2))
    assert isinstance(agent, AdaptiveEbu)
    return agent


def step(
    rewards: list[float],
    *,
    over: tuple[int, ...] = (),
    cut: tuple[int, ...] = (),
    life_lost: tuple[int, ...] = (),
    started: tuple[int, ...] = (),
) -> VectorStep:
    """One step of as many environments as there are rewards; events name environments."""
    rows = np.arange(len(rewards))
    return VectorStep(
        np.zeros((len(rewards), 3), np.float32),
        np.array(rewards, np.float32),
        np.isin(rows, over),
        np.isin(rows, cut),
        np.isin(rows, life_lost),
        np.isin(rows, started),
    )


def reset(num_envs: int) -> VectorStep:
    return step([0.0] * num_envs, started=tuple(range(num_envs)))


def states_of(count: int, seed: int = 0) -> Tensor:
    shape = (count, STACK, *MadeUpGames.frame_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- which learner acts ----------------------------------------------------------------------


def test_a_game_that_starts_takes_the_next_learner() -> None:
    acting = ActingLearners(3)
    acting.add(reset(4))
    assert acting.players.tolist() == [0, 1, 2, 0]
    acting.add(step([0, 0, 0, 0], over=(2,)))
    assert acting.players.tolist() == [0, 1, 2, 0]
    acting.add(step([0, 0, 0, 0], started=(2,), cut=(0, 3)))
    assert acting.players.tolist() == [0, 1, 1, 0]
    # Of those that start at the same time the one with the lower index comes first.
    acting.add(step([0, 0, 0, 0], started=(0, 3)))
    assert acting.players.tolist() == [2, 1, 1, 0]


def test_a_state_of_other_environments_is_refused_when_it_is_loaded() -> None:
    saved, loaded = ActingLearners(3), ActingLearners(3)
    saved.add(reset(4))
    loaded.load_state_dict(saved.state_dict())
    loaded.check_streams(4)
    with pytest.raises(RefusedFileError, match="4 rows, not 5"):
        loaded.check_streams(5)


# --- scores ---------------------------------------------------------------------------------


def test_scores_are_mean_returns_of_whole_games_in_raw_rewards() -> None:
    acting = ActingLearners(2)
    acting.add(reset(3))  # learners 0, 1, 0
    acting.add(step([10, -4, 1], over=(0,)))
    assert acting.scores() == {0: 10.0}
    acting.add(step([0, -4, 1], started=(0,), cut=(2,)))  # learner 1 in environment 0
    assert acting.scores() == {0: 6.0}
    acting.add(step([3, 0, 0], started=(2,), over=(0, 1)))
    assert acting.scores() == {0: 6.0, 1: -2.5}
    assert acting.agent_steps == 7


def test_a_game_in_progress_when_scores_are_reset_counts_whole_at_its_end() -> None:
    acting = ActingLearners(2)
    acting.add(reset(1))
    acting.add(step([5]))
    acting.reset_scores()
    assert acting.scores() == {}
    acting.add(step([1], over=(0,)))
    assert acting.scores() == {0: 6.0}


def test_the_mean_decides_and_not_the_sum_or_the_best_game() -> None:
    agent = adaptive_of(copy_every_steps=1000)
    agent.observe(reset(3))
    for rewards in ([8, 9, 8], [8, 0, 0], [1, 0, 8]):
        agent.observe(step([float(each) for each in rewards], over=(0, 1, 2)))
        # Each environment keeps its learner: 3 start at once.
        agent.observe(reset(3))
    # Sums 17, 9 and 16 of three games each; a fourth game of the first earns nothing.
    assert agent.best == 0
    agent.observe(step([0, 0, 0], over=(0,)))
    assert agent.acting.scores() == {0: 17 / 4, 1: 3.0, 2: 16 / 3}
    assert agent.best == 2


# --- copies ---------------------------------------------------------------------------------


def learnt(agent: AdaptiveEbu, updates: int = 10) -> AdaptiveEbu:
    played = Played(MadeUpGames(2, random_games(0, 40)), capacity=400)
    played.play(120)
    agent.learn(played.replay, updates)
    return agent


@PRECISIONS
def test_at_the_interval_all_take_the_networks_of_the_best(precision: str) -> None:
    agent = learnt(adaptive_of(precision=precision, copy_every_steps=6))
    before = agent.state_dict()["learner"]
    before = {
        part: {name: weight.clone() for name, weight in before[part].items()}
        for part in ("online", "target")
    } | {
        "optimizer": {
            name: {slot: value.clone() for slot, value in slots.items()}
            for name, slots in before["optimizer"].items()
        }
    }
    states = states_of(5)
    values, target_values = agent.learner.values(states), agent.learner.target_values(states)
    agent.observe(reset(2))  # starts are no agent steps
    agent.observe(step([1, 2], over=(0, 1)))
    agent.observe(step([0, 0], started=(0, 1)))
    agent.observe(step([0, 0]))
    assert same(agent.state_dict()["learner"]["online"], before["online"])
    agent.observe(step([0, 0]))
    after = agent.state_dict()["learner"]
    for part in ("online", "target"):
        for name, weights in after[part].items():
            assert all(torch.equal(weight, before[part][name][1]) for weight in weights)
        assert not same(after[part], before[part])
    assert same(after["optimizer"], before["optimizer"])
    exp_avg = after["optimizer"]["networks.0.1.weight"]["exp_avg"]
    assert not torch.equal(exp_avg[0], exp_avg[1])
    for k in range(3):
        assert torch.equal(agent.learner.values(states)[k], values[1])
        assert torch.equal(agent.learner.target_values(states)[k], target_values[1])
    assert not torch.equal(values[1], target_values[1])


def test_a_copy_resets_scores_and_the_interval() -> None:
    agent = adaptive_of(copy_every_steps=2)
    agent.observe(reset(1))
    agent.observe(step([1], over=(0,)))
    agent.observe(step([0], started=(0,)))
    assert agent.copies == 0
    agent.observe(step([0]))
    assert (agent.copies, agent.acting.scores()) == (1, {})
    agent.observe(step([7], over=(0,)))
    assert agent.copies == 1
    agent.observe(step([0], started=(0,)))
    agent.observe(step([0]))
    assert agent.copies == 2
    assert agent.last_copy is not None
    assert (agent.last_copy.winner, agent.last_copy.score) == (1, 7.0)
    assert agent.last_copy.agent_step == 4


def test_while_no_game_has_ended_nothing_is_copied() -> None:
    agent = learnt(adaptive_of(copy_every_steps=2))
    before = [weight.clone() for weight in agent.learner.online.parameters()]
    agent.observe(reset(2))
    for _ in range(4):
        agent.observe(step([1, 1]))
    assert agent.copies == 0
    assert all(map(torch.equal, agent.learner.online.parameters(), before))
    agent.observe(step([0, 0], over=(1,)))
    assert agent.last_copy is not None
    assert (agent.last_copy.winner, agent.last_copy.agent_step) == (1, 10)
    # The next interval begins with the copy, however late it was.
    agent.observe(step([0, 0], started=(1,), over=(0,)))
    assert agent.copies == 1
    agent.observe(step([0, 0], started=(0,)))
    assert agent.copies == 2


# --- what each learns -----------------------------------------------------------------------


def test_diffusion_factors_lie_at_equal_distances() -> None:
    assert AdaptiveEbuConfig().betas == tuple(k / 10 for k in range(11))
    assert AdaptiveEbuConfig(learners=3).betas == (0, 0.5, 1)
    assert AdaptiveEbuConfig(learners=2).betas == (0, 1)
    assert AdaptiveEbuConfig(learners=1).betas == (0.5,)
    assert AdaptiveEbuConfig(learners=1, beta=0.3).betas == (0.3,)


def ebu_like(
    agent: AdaptiveEbu, k: int, beta: float, precision: str, sync: int = 7, **config: Any
) -> Agent:
    """Constant EBU that begins with the networks of learner k and makes the same draws."""
    settings = LearnerConfig(target_sync_updates=sync, learning_rate=1e-3)
    learner = Learner(settings, **arguments(100 + k, precision))
    learner.online.load_state_dict(agent.learner.online.weights_of(k))
    learner.sync_target()
    config |= {"batch_size": 8, "mix_segments": agent.config.mix_segments}
    method = EbuConfig(beta=beta, gamma=GAMMA, **config)
    return build_agent(method, learner, np.random.default_rng(2))


def draws_of(agent: Agent) -> list[Draw | None]:
    assert isinstance(agent.sampler, SegmentSampler)
    return agent.sampler._draws


@PRECISIONS
@pytest.mark.parametrize("mix", [1, 4])
def test_without_copies_k_learners_are_k_agents_to_the_last_bit(precision: str, mix: int) -> None:
    played = Played(MadeUpGames(2, random_games(0, 40)), capacity=400)
    agent = adaptive_of(precision=precision, mix_segments=mix)
    alone = [ebu_like(agent, k, beta, precision) for k, beta in enumerate((0.0, 0.5, 1.0))]
    for _ in range(4):
        played.play(60)
        agent.learn(played.replay, 10)
        for each in alone:
            each.learn(played.replay, 10)
    states = states_of(6)
    for k, each in enumerate(alone):
        assert agent.learner.updates == each.learner.updates == 40
        assert same(agent.learner.online.weights_of(k), dict(each.learner.online.state_dict()))
        of_one = each.learner.target_values(states)
        assert torch.equal(agent.learner.target_values(states)[k], of_one)
        for draw, its in zip(draws_of(agent), draws_of(each), strict=True):
            if draw is not None and its is not None:
                assert draw.targets is not None
                assert its.targets is not None
                assert torch.equal(draw.targets[k], its.targets)
    metrics, of_each = agent.metrics(), [each.metrics() for each in alone]
    for name in ("loss/huber", "q/target", "q/propagated_share", "q/backward_minus_one_step"):
        assert metrics[name] == pytest.approx(np.mean([each[name] for each in of_each]), abs=1e-6)


@pytest.mark.parametrize(
    ("beta", "annealed"),
    [(0.0, {}), (0.5, {}), (0.8, {}), (0.2, {"beta_start": 1.0, "anneal_updates": 16})],
)
def test_a_single_learner_is_ebu_to_the_last_bit(beta: float, annealed: dict[str, Any]) -> None:
    played = Played(MadeUpGames(2, random_games(0, 40)), capacity=400)
    played.play(120)
    one = adaptive_of(1, beta=beta, copy_every_steps=2, **annealed)
    ebu = ebu_like(one, 0, beta, "float32", **annealed)
    # From the same random numbers it begins with the same weights.
    fresh = Learner(LearnerConfig(), **arguments(1))
    assert same(one.learner.online.weights_of(0), dict(fresh.online.state_dict()))
    one.observe(reset(4))
    states = states_of(4)
    for _ in range(5):
        one.learn(played.replay, 5)
        ebu.learn(played.replay, 5)
        one.observe(step([1, 0, 0, 0], over=(0, 1, 2, 3)))
        one.observe(reset(4))
        chosen = [
            each.act(states, epsilon=0.3, rng=np.random.default_rng(9)) for each in (one, ebu)
        ]
        assert all(map(np.array_equal, *chosen))
    assert one.copies == 5
    assert same(one.learner.online.weights_of(0), dict(ebu.learner.online.state_dict()))


# --- acting ---------------------------------------------------------------------------------


def greedy(agent: AdaptiveEbu, states: Tensor, learners: list[int]) -> list[int]:
    best = agent.learner.values(states).argmax(-1)
    return [int(best[k, row]) for row, k in enumerate(learners)]


@PRECISIONS
def test_each_environment_is_played_by_its_learner(precision: str) -> None:
    agent = learnt(adaptive_of(precision=precision))
    agent.observe(reset(40))
    states, rng = states_of(40), np.random.default_rng(0)
    players = [row % 3 for row in range(40)]
    actions, probabilities = agent.act(states, epsilon=0.0, rng=rng)
    assert actions.tolist() == greedy(agent, states, players)
    assert (probabilities == 1).all()
    assert not any(greedy(agent, states, [k] * 40) == actions.tolist() for k in range(3))
    forced = np.arange(40) % 2 == 0
    _, probabilities = agent.act(states, epsilon=0.3, rng=rng, forced_random=forced)
    assert probabilities[forced] == pytest.approx(1 / NUM_ACTIONS)
    assert set(probabilities[~forced].round(4).tolist()) <= {np.float32(0.1), np.float32(0.8)}


def test_the_best_learner_plays_other_games_and_its_weights_are_the_agents() -> None:
    agent = learnt(adaptive_of(copy_every_steps=6))
    states, rng = states_of(40), np.random.default_rng(0)

    def plays(best: int) -> bool:
        actions, _ = agent.play(states, epsilon=0.0, rng=rng)
        weights = policy_weights(agent.state_dict())
        return actions.tolist() == greedy(agent, states, [best] * 40) and same(
            weights, agent.learner.online.weights_of(best)
        )

    assert plays(0)  # before any game
    agent.observe(reset(3))
    agent.observe(step([0, 0, -1], over=(2,)))
    assert plays(2)
    agent.observe(step([0, 0, 0], over=(1,)))
    assert plays(1)
    assert agent.copies == 1
    learnt(agent)  # apart again
    assert agent.acting.scores() == {}
    assert plays(1)  # the last winner, while there are no scores
    agent.observe(step([-9, 0, 0], over=(0,)))
    assert plays(0)


# --- what the logs say, what a run keeps ----------------------------------------------------


def of_adaptive(metrics: dict[str, float]) -> dict[str, float]:
    return {
        name.removeprefix("adaptive/"): value
        for name, value in metrics.items()
        if name.startswith("adaptive/")
    }


def test_logs_tell_the_scores_the_best_and_the_last_copy() -> None:
    agent = adaptive_of(copy_every_steps=6)
    assert of_adaptive(agent.metrics()) == {"best_beta": 0, "copies": 0}
    agent.observe(reset(3))
    agent.observe(step([-3, 4, 5], over=(0, 2)))
    shown: dict[str, float] = {"score_beta_0": -3, "score_beta_1": 5, "best_beta": 1}
    shown["copies"] = 0
    assert of_adaptive(agent.metrics()) == shown
    agent.observe(step([0, 4, 0], over=(1,), started=(0, 2)))
    shown = {"score_beta_0": -3, "score_beta_0.5": 8, "score_beta_1": 5, "best_beta": 0.5}
    assert of_adaptive(agent.metrics()) == {**shown, "copies": 0}
    agent.observe(step([0, 0, 0], started=(1,)))
    copied = {"winner_beta": 0.5, "winner_score": 8, "copied_at_agent_step": 6, "copies": 1}
    assert of_adaptive(agent.metrics()) == {"best_beta": 0.5, **copied}


def test_a_run_copies_and_says_so(tmp_path: Path) -> None:
    run = real_run(tmp_path, "adaptive_ebu")
    run.run(STEP_FRAMES * 520)
    run.close()
    agent = run.agent
    assert isinstance(agent, AdaptiveEbu)
    assert agent.copies >= 5
    copies = [line["adaptive/copies"] for line in lines(tmp_path)]
    assert copies == sorted(copies)
    for line in lines(tmp_path):
        if line["adaptive/copies"]:
            assert line["adaptive/winner_beta"] in (0, 0.5, 1)
            assert line["adaptive/copied_at_agent_step"] <= line["train/agent_steps"]
    assert {line.get("adaptive/winner_beta") for line in lines(tmp_path)} >= {0, 0.5, 1}


def test_its_flags_are_no_flags_of_other_agents() -> None:
    config = parse_arguments(["--agent", "adaptive_ebu", "--learners", "3"])
    assert config.method == AdaptiveEbuConfig(learners=3)
    for flags, complaint in (
        ("ebu --learners 3", "--learners"),
        ("adaptive_ebu --beta 0.7", r"--beta 0\.7 is for --learners 1"),
    ):
        with pytest.raises(UsageError, match=complaint):
            parse_arguments(["--agent", *flags.split()])
