"""A run in parts, killed, stopped or saved at any step ends as one run in one go."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ebu.evaluation import evaluate, summarise
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import load_latest
from ebu.training import Trainer
from tests.made_up import MadeUpGames, random_games, same
from tests.made_up_runs import STEP_FRAMES, Evaluate, lines, real_run

pytestmark = pytest.mark.usefixtures("closing")


def real_evaluation(trainer: Trainer) -> Evaluate:
    """Plays games of its own with the agent, as a run does."""

    def evaluate_now(frames: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        agent: Any = trainer.agent
        played = evaluate(
            agent.play,
            MadeUpGames(2, random_games(frames, 10)),
            episodes=3,
            epsilon=0.1,
            rng=np.random.default_rng(frames),
            should_stop=should_stop,
        )
        return None if played is None else summarise(played)

    return evaluate_now


def evaluated_run(run_dir: Path, agent: str, **options: Any) -> Trainer:
    trainer = real_run(run_dir, agent, **{"eval_every_frames": 700, **options})
    trainer.evaluation.evaluate = real_evaluation(trainer)
    return trainer


END = STEP_FRAMES * 520


def stored_frames(replay: EpisodicReplay) -> torch.Tensor:
    """Every state and next state that can be trained on."""
    places = [
        (step, stream)
        for step in range(replay.transitions.num_steps)
        for stream in range(replay.num_streams)
        if replay.transitions.is_stored(stream, step)
    ]
    steps, streams = np.array(places).T
    batch = replay.read(steps, streams)
    return torch.stack([batch.states, batch.next_states])


def assert_same_runs(one: Trainer, other: Trainer) -> None:
    for key, value in one.state_dict().items():
        assert same(value, other.state_dict()[key]), key
    assert torch.equal(stored_frames(one.replay), stored_frames(other.replay))
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert (one.run_dir / log).read_bytes() == (other.run_dir / log).read_bytes()
    bests = [load_latest(run.run_dir / "best", state_only=True) for run in (one, other)]
    assert bests[0] is not None
    assert bests[1] is not None
    assert same(bests[0].state, bests[1].state)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trainer]:
    """Runs that went to their end in one go, each made once."""

    @functools.cache
    def finished(agent: str = "ebu", precision: str = "float32") -> Trainer:
        run_dir = tmp_path_factory.mktemp("straight") / "run"
        run = evaluated_run(run_dir, agent, precision=precision)
        assert run.run(END)
        assert run.updates > 200
        assert run.replay.transitions.num_steps > 2 * run.replay.ring_length
        return run

    return finished


OFTEN = (180, 660, 664, 700, 1500)
AGENTS_AND_PRECISIONS = [
    ("ebu", "float32"),
    ("ebu-mix-4", "float32"),
    ("dqn", "float32"),
    ("ebu", "bfloat16"),
]
COMPARED = [
    "adaptive_ebu",
    "double_dqn",
    "nstep",
    "prioritized",
    "retrace",
    "q_lambda-mix-2",
    "optimality_tightening",
    "nstep+prioritized+double",
    "ebu+prioritized+double-mix-2",
    "retrace+prioritized",
    "ebu+quantiles=5+double+reset_updates=70+weight_decay=0.1",
    "nstep+quantiles=5+double+prioritized+target_average=0.05",
    "ebu+target_average=0.05+average_updates=50+average_acts",
    "ebu+noisy+double+average_updates=50+reset_updates=70",
]
QUICK = [
    "prioritized",
    "ebu+prioritized+double-mix-2",
    "ebu+noisy+double+average_updates=50+reset_updates=70",
]
PARTS = [
    *((agent, precision, OFTEN) for agent, precision in AGENTS_AND_PRECISIONS),
    *((agent, "float32", OFTEN) for agent in QUICK),
    *(
        pytest.param(agent, precision, stops, marks=pytest.mark.slow)
        for agent, precision in AGENTS_AND_PRECISIONS
        for stops in ((4,), (1400,))
    ),
    *(
        pytest.param(agent, "float32", OFTEN, marks=pytest.mark.slow)
        for agent in COMPARED
        if agent not in QUICK
    ),
]


@pytest.mark.parametrize(("agent", "precision", "stops"), PARTS)
def test_a_run_in_parts_ends_as_one_in_one_go(
    tmp_path: Path,
    straight: Callable[..., Trainer],
    agent: str,
    precision: str,
    stops: tuple[int, ...],
) -> None:
    for part, until in enumerate((*stops, END)):
        run = evaluated_run(tmp_path, agent, precision=precision, resume=part > 0)
        assert run.run(until)
        run.close()
    assert_same_runs(run, straight(agent, precision))


@pytest.mark.parametrize("lost", [100, 1000])
def test_what_was_played_after_the_last_checkpoint_is_played_again(
    tmp_path: Path, straight: Callable[..., Trainer], lost: int
) -> None:
    killed = evaluated_run(tmp_path, "ebu")
    killed.run(900)
    killed.save = lambda: tmp_path  # type: ignore[method-assign]
    killed.run(900 + lost)
    killed.close()
    assert lines(tmp_path)[-1]["frames"] >= 900 + lost - 100
    again = evaluated_run(tmp_path, "ebu", resume=True)
    assert 900 <= again.frames < 900 + STEP_FRAMES * 4
    again.run(END)
    assert_same_runs(again, straight())


def test_a_stop_is_followed_before_the_next_step_and_changes_nothing(
    tmp_path: Path, straight: Callable[..., Trainer]
) -> None:
    stopped = evaluated_run(tmp_path, "ebu")
    learn, calls = stopped.agent.learn, []

    def learn_and_stop(replay: EpisodicReplay, updates: int) -> None:
        learn(replay, updates)
        calls.append(updates)
        stopped.stop_requested = len(calls) == 77

    stopped.agent.learn = learn_and_stop  # type: ignore[method-assign]
    assert not stopped.run(END)
    assert len(calls) == 77
    stopped.close()
    again = evaluated_run(tmp_path, "ebu", resume=True)
    assert again.run(END)
    assert_same_runs(again, straight())


def test_saving_before_every_step_changes_nothing(
    tmp_path: Path, straight: Callable[..., Trainer]
) -> None:
    evaluated_run(tmp_path, "ebu").run(1600)
    always = evaluated_run(tmp_path, "ebu", checkpoint_minutes=0.0, resume=True)
    saved, in_mid_segment, save = [], 0, always.save

    def save_and_count() -> Path:
        nonlocal in_mid_segment
        saved.append(always.frames)
        in_mid_segment += bool(always.agent.state_dict()["sampler"]["draws"]["index"])
        return save()

    always.save = save_and_count  # type: ignore[method-assign]
    always.run(END)
    assert len(saved) > 25
    assert in_mid_segment > 5
    assert_same_runs(always, straight())


def test_evaluations_take_nothing_from_the_runs_random_numbers(
    tmp_path: Path, straight: Callable[..., Trainer]
) -> None:
    without = real_run(tmp_path, "ebu")
    without.run(END)
    for key in ("agent", "rng", "env", "replay", "games"):
        assert same(without.state_dict()[key], straight().state_dict()[key])
    assert lines(tmp_path) == lines(straight().run_dir)
    assert len(lines(straight().run_dir, "evaluations.jsonl")) == 2


@pytest.mark.parametrize("agent", ["ebu", "ebu-mix-4", "dqn"])
def test_a_run_without_overlap_is_the_same_to_the_last_bit(
    tmp_path: Path, straight: Callable[..., Trainer], agent: str
) -> None:
    run = evaluated_run(tmp_path / "run", agent, overlap=False)
    assert run.run(END)
    assert_same_runs(run, straight(agent))
