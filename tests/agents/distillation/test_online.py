"""Online distillation: its teacher, its updates, and that training itself is unchanged."""

import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import load_agent
from agents.agent import policy_weights
from agents.distillation import online
from agents.distillation.losses import policy_divergence
from agents.distillation.online import Students
from agents.distillation.records import student_directory
from agents.distillation.students import build
from agents.distillation.teachers import median_gap
from ebu.commands.evaluate_arguments import EvaluateConfig
from ebu.commands.evaluation import run as evaluate_run
from ebu.commands.train_arguments import parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import load_latest
from ebu.training import Trainer
from tests.made_up import NUM_ACTIONS, MadeUpGames, same
from tests.made_up_runs import STEP_FRAMES, lines, open_trainers, real_run

END = STEP_FRAMES * 260
NAMES = ("net3", "4-4-4/8")
SIZES: dict[str, Any] = {"stack": 3, "frame_shape": MadeUpGames.frame_shape}
CONFIG = {
    "settings": {
        "agent": "ebu",
        "network": "nature",
        "game": "made-up",
        "protocol": "paper",
        "epsilon_end": 0.01,
    },
    "environment": {
        **SIZES,
        "frame_shape": [3],
        "frame_dtype": "float32",
        "num_actions": NUM_ACTIONS,
    },
}


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    """Close the runs a test has opened."""
    yield
    while open_trainers:
        open_trainers.pop().close()


def means(*scores: float) -> Callable[[int, Callable[[], bool]], dict[str, Any] | None]:
    """Evaluations with these scores, one after the other."""
    left = iter(scores)
    return lambda frames, should_stop: {"mean": next(left), "games": 1}


def run_in(run_dir: Path, agent: str = "ebu", *, distill: bool = True, **options: Any) -> Trainer:
    """A small run, with students unless told otherwise."""

    def students(trained: Any) -> Students:
        return Students(NAMES, trained, CONFIG, run_dir, seed=3)

    given: dict[str, Any] = {"distiller": students if distill else None, **options}
    return real_run(run_dir, agent, **given)


def evaluated(run_dir: Path, agent: str = "ebu", **options: Any) -> Trainer:
    """A run that is evaluated twice, the second time with less success."""

    def score(frames: int, should_stop: Callable[[], bool]) -> dict[str, Any]:
        return {"mean": -float(frames), "games": 1}

    return run_in(run_dir, agent, eval_every_frames=400, evaluate=score, **options)


def students_of(trainer: Trainer) -> Students:
    assert isinstance(trainer.distiller, Students)
    return trainer.distiller


def playing(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of the weights that the agent would play with now."""
    agent: Any = trainer.agent
    weights = policy_weights(agent.state_dict())
    return {name: weight.clone() for name, weight in weights.items()}


def teacher(trainer: Trainer) -> dict[str, Tensor]:
    weights = students_of(trainer).state_dict()["teacher"]
    return {name: weight.clone() for name, weight in weights.items()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trainer]:
    """Runs with students that went to their end in one go, each made once."""

    @functools.cache
    def finished(agent: str = "ebu") -> Trainer:
        run = evaluated(tmp_path_factory.mktemp("straight"), agent)
        assert run.run(END)
        assert run.updates > 100
        return run

    return finished


# --- training is unchanged, and resumed to the bit ------------------------------------------


@pytest.mark.parametrize("agent", ["ebu", "adaptive_ebu"])
def test_the_agent_trains_to_the_same_bits_with_students_and_without(
    tmp_path: Path, straight: Callable[..., Trainer], agent: str
) -> None:
    alone, followed = evaluated(tmp_path, agent, distill=False), straight(agent)
    assert alone.run(END)
    state = followed.state_dict()
    assert state.keys() - alone.state_dict().keys() == {"distiller"}
    for key, value in alone.state_dict().items():
        assert same(value, state[key]), key
    bests = [load_latest(run.run_dir / "best", state_only=True) for run in (alone, followed)]
    assert bests[0] is not None
    assert bests[1] is not None
    assert same(bests[0].state, bests[1].state)
    without = [
        {name: value for name, value in line.items() if not name.startswith("distill/")}
        for line in lines(followed.run_dir)
    ]
    assert without == lines(alone.run_dir)
    assert not (alone.run_dir / "students").exists()


def test_a_run_in_parts_has_the_same_students(
    tmp_path: Path, straight: Callable[..., Trainer]
) -> None:
    for part, until in enumerate((4, 330, 404, 700, END)):
        run = evaluated(tmp_path, resume=part > 0)
        assert run.run(until)
        run.close()
    whole = straight()
    assert same(run.state_dict(), whole.state_dict())
    assert lines(tmp_path) == lines(whole.run_dir)
    for name in NAMES:
        weights = [
            load_agent(student_directory(directory, name)).network.state_dict()
            for directory in (tmp_path, whole.run_dir)
        ]
        assert same(dict(weights[0]), dict(weights[1]))


# --- the teacher ----------------------------------------------------------------------------


def test_the_best_evaluation_so_far_is_followed(tmp_path: Path) -> None:
    run = run_in(tmp_path, eval_every_frames=400, evaluate=means(5.0, 1.0, 5.0, 9.0))
    followed: list[dict[str, Tensor]] = []
    for until in (400, 800, 1200, 1600):
        run.run(until + STEP_FRAMES * 40)
        followed.append(teacher(run))
    assert same(followed[0], followed[1])
    assert same(followed[0], followed[2])
    assert not same(followed[0], followed[3])
    best = load_latest(tmp_path / "best", state_only=True)
    assert best is not None
    assert same(dict(best.state["agent"]["learner"]["average"]), followed[3])
    assert not same(playing(run), followed[3])


def test_before_an_evaluation_copies_of_the_agent_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "REFRESH_UPDATES", 20)
    run = run_in(tmp_path)
    run.save = lambda: tmp_path  # type: ignore[method-assign]
    copies: list[dict[str, Tensor]] = []
    while run.updates < 64:
        run.run(run.frames + STEP_FRAMES * 4)
        if not copies or not same(copies[-1], teacher(run)):
            copies.append(teacher(run))
    # New weights before the first update, then a copy at 0, 20, 40, 60 updates.
    assert len(copies) == 5


# --- what is learnt -------------------------------------------------------------------------


def test_updates_are_adams_on_the_divergence_from_the_teacher(tmp_path: Path) -> None:
    run = run_in(tmp_path, distill=False)
    run.run(STEP_FRAMES * 60)
    students = Students(["4-4-4/8"], run.agent, CONFIG, tmp_path, seed=3)  # type: ignore[arg-type]
    students.learn(run.replay, 4 * online.EVERY_UPDATES - 1)

    streams = np.random.SeedSequence(3, spawn_key=(int.from_bytes(b"onli"),)).spawn(2)
    weights, rng = map(np.random.default_rng, streams)
    generator = torch.Generator().manual_seed(int(weights.integers(2**63)))
    student = build("4-4-4/8", NUM_ACTIONS, **SIZES, generator=generator)
    adam = torch.optim.Adam(student.parameters(), lr=online.LEARNING_RATE)
    agent: Any = run.agent
    temperature = 0.0
    for update in range(3):
        places = run.replay.transitions.draw(rng, online.BATCH_SIZE)
        states = run.replay.read(*places).states
        labels = agent.learner.playing_values(states)
        gap = float(median_gap(labels))
        temperature = gap if update == 0 else 0.99 * temperature + 0.01 * gap
        adam.zero_grad()
        policy_divergence(labels, student(states), temperature=temperature).backward()
        adam.step()
    state = students.state_dict()
    assert state["temperature"] == pytest.approx(temperature)
    for name, weight in student.state_dict().items():
        torch.testing.assert_close(state["pupils"]["4-4-4_8"]["student"][name], weight)


def test_a_teacher_to_which_all_actions_are_alike_teaches_nothing(tmp_path: Path) -> None:
    run = run_in(tmp_path, distill=False)
    run.run(STEP_FRAMES * 60)
    agent: Any = run.agent
    for weight in policy_weights(agent.state_dict()).values():
        weight.zero_()
    students = Students(NAMES, agent, CONFIG, tmp_path, seed=3)
    before = [weight.clone() for weight in _weights(students)]
    students.learn(run.replay, 40)
    assert all(map(torch.equal, before, _weights(students)))
    assert students.metrics()["distill/temperature"] == 0


def _weights(students: Students) -> list[Tensor]:
    states = students.state_dict()["pupils"].values()
    return [weight for state in states for weight in state["student"].values()]


# --- what is written ------------------------------------------------------------------------


def test_students_are_written_with_the_checkpoints_as_run_directories(
    straight: Callable[..., Trainer],
) -> None:
    run = straight()
    for name in NAMES:
        student = load_agent(student_directory(run.run_dir, name))
        assert (student.outputs, student.frames) == ("logits", run.frames)
        assert student.config["settings"]["network"] == name
        assert student.config["settings"]["teacher"] == str(run.run_dir)
        assert student.act(np.zeros((3, 3), np.float32)) in range(NUM_ACTIONS)
    logged = lines(run.run_dir)[-1]
    assert 0 <= logged["distill/net3/agreement"] <= 1
    assert logged["distill/temperature"] > 0


CARTPOLE = [
    *("--game", "CartPole-v1", "--frames", "600", "--num-envs", "2", "--threads", "1"),
    *("--replay-capacity", "2000", "--learning-starts", "200", "--log-every-frames", "200"),
    *("--eval-every-frames", "300", "--eval-episodes", "1", "--device", "cpu"),
]


def test_students_of_the_main_command(tmp_path: Path) -> None:
    flags = [*CARTPOLE, "--run-dir", str(tmp_path / "run")]
    for until in (400, 600):
        trainer = build_trainer(parse_arguments([*flags, "--distill", "net3", "4-4-4/8"]))
        assert trainer.run(until)
        trainer.close()
    directory = student_directory(tmp_path / "run", "net3")
    record = evaluate_run(EvaluateConfig(directory, episodes=2, device="cpu", threads=1))
    assert record["games"] == 2
    settings = json.loads((directory / "config.json").read_text())["settings"]
    assert settings["game"] == "CartPole-v1"
    with pytest.raises(UsageError, match=r"distill was \['net3', '4-4-4/8'\], is None"):
        build_trainer(parse_arguments(flags))


def test_students_that_a_kill_left_behind_their_checkpoint_are_written_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    run = run_in(tmp_path)
    assert run.run(END // 2)
    with monkeypatch.context() as patch:
        patch.setattr(Students, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run.run(END)
    run.close()
    assert load_agent(student_directory(tmp_path, NAMES[0])).frames == END // 2
    again = run_in(tmp_path, resume=True)
    for name in NAMES:
        student = load_agent(student_directory(tmp_path, name))
        assert student.frames == again.frames >= END
        network: Any = students_of(again)._students[name].student
        for mine, theirs in zip(student.network.parameters(), network.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_a_student_that_is_not_finite_ends_the_run_and_reaches_no_checkpoint(
    tmp_path: Path,
) -> None:
    run = run_in(tmp_path / "run")
    assert run.run(END // 2)
    saved = run.checkpoints.last
    student = students_of(run)._students["net3"]
    made = student._updates
    with torch.no_grad():
        next(student.student.parameters())[...] = math.nan
    message = rf"update {made + 1:,} of the student net3 of .* is not finite.*{saved} is kept"
    with pytest.raises(EbuError, match=message) as error:
        run.run(END)
    assert "\n" not in str(error.value)
    assert run.checkpoints.last == saved
    assert all(
        load_agent(student_directory(tmp_path / "run", name)).frames == END // 2 for name in NAMES
    )
