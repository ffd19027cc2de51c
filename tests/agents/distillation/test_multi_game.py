"""One network for several games: what an update changes, and what is saved of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.distillation.experimental.several_games import JointTraining, check_games, share_trunk
from agents.distillation.pipeline import Offline, Pupil, Stopped
from agents.distillation.procedures import ProcedureConfig, taught
from agents.distillation.records import StudentRecord
from agents.distillation.students import Student, build, save_student
from agents.distillation.trainer import PROGRESS, Lesson
from agents.trained import TrainedAgent, load_agent
from ebu.errors import UsageError
from tests.agents.distillation.made_up_teachers import procedure_in, teacher_of
from tests.agents.distillation.test_distill import CONFIG, SIDE, Killed, lesson_of

GAMES = (4, 6)
"""Their numbers of actions."""


def student_of(num_actions: int, name: str = "2-2-2/4", seed: int = 0) -> Student:
    generator = torch.Generator().manual_seed(seed)
    return build(name, num_actions, stack=3, frame_shape=(SIDE, SIDE), generator=generator)


def lesson_with(num_actions: int) -> Lesson:
    lesson = lesson_of()
    environment = {
        "num_actions": num_actions,
        "stack": 3,
        "frame_shape": [SIDE, SIDE],
        "frame_dtype": "uint8",
    }
    config = {
        "settings": {"network": "3-3-3/6", "game": f"game-{num_actions}"},
        "environment": environment,
    }
    network = student_of(num_actions, "3-3-3/6", 5).network
    teacher = TrainedAgent(network, "values", config, 100, torch.device("cpu"), [])
    return replace(lesson, teacher=teacher, states=lesson.states.relabelled(teacher.outputs_of))


def training_in(directory: Path, name: str = "2-2-2/4", **options: Any) -> JointTraining:
    students = [student_of(actions, name, actions) for actions in GAMES]
    lessons = [lesson_with(actions) for actions in GAMES]
    rng = np.random.default_rng(3)
    return JointTraining(directory, students, lessons, CONFIG, rng=rng, **options)


def parts_of(training: JointTraining) -> dict[str, dict[str, Tensor]]:
    """The trunk's weights, and each game's head."""
    parts: dict[str, dict[str, Tensor]] = {"trunk": {}, "4": {}, "6": {}}
    for student, lesson in training.pairs:
        for name, weight in student.network.named_parameters():
            head = name.startswith("1.2.")
            parts[str(lesson.teacher.num_actions) if head else "trunk"][name] = weight
    return parts


def copied(parts: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {
        part: {n: w.detach().clone() for n, w in weights.items()} for part, weights in parts.items()
    }


def changed(before: dict[str, dict[str, Tensor]], after: dict[str, dict[str, Tensor]]) -> set[str]:
    return {
        part
        for part in before
        if any(not torch.equal(before[part][n], after[part][n]) for n in before[part])
    }


def test_an_update_changes_the_trunk_and_the_head_of_its_game_alone(tmp_path: Path) -> None:
    training = training_in(tmp_path)
    parts = parts_of(training)
    # Twice around: averages of Adam do not move a head whose game is not played.
    for game in ("4", "6", "4", "6"):
        before = copied(parts)
        training._update()
        assert changed(before, copied(parts)) == {"trunk", game}


@pytest.mark.parametrize("name", ["2-2-2/4", "dueling"])
def test_networks_share_all_but_their_last_layers(name: str) -> None:
    networks = [student_of(actions, name, actions).network for actions in (4, 6, 4)]
    share_trunk(networks)
    own = [dict(network.named_parameters()) for network in networks]
    shared = {n for n in own[0] if own[0][n] is own[1][n] is own[2][n]}
    last = {"1.value.2", "1.advantage.2"} if name == "dueling" else {"1.2"}
    assert {n.rpartition(".")[0] for n in own[0].keys() - shared} == last
    assert all(own[0][n] is not own[2][n] for n in own[0].keys() - shared)
    stacks = torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    assert [network(stacks).shape[1] for network in networks] == [4, 6, 4]


def test_a_saved_head_acts_like_the_joint_network(tmp_path: Path) -> None:
    training = training_in(tmp_path)
    training.run()
    for student, lesson in training.pairs:
        directory = tmp_path / str(lesson.teacher.num_actions)
        save_student(directory, student, teacher=lesson.teacher, teacher_dir=tmp_path, seed=0)
        agent = load_agent(directory)
        stacks = lesson.states.stacks(lesson.states.held_out)
        with torch.no_grad():
            assert torch.equal(agent.outputs_of(stacks), student(stacks))
        assert agent.config["settings"]["game"] == lesson.teacher.config["settings"]["game"]


def test_each_game_is_learnt(tmp_path: Path) -> None:
    training = training_in(tmp_path, "8-8-8/16")
    before = training.held_out()["loss"]
    training.config = replace(CONFIG, updates=200, batch_size=32, log_every_updates=200)
    training.run()
    assert training.held_out()["loss"] < before / 2


def test_a_training_that_is_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = training_in(tmp_path / "whole")
    assert whole.run()

    def kill(updates: int) -> None:
        if updates == 6:
            raise Killed

    with pytest.raises(Killed):
        training_in(tmp_path / "killed", checkpoint_minutes=0).run(progress=kill)
    again = training_in(tmp_path / "killed")
    assert again.updates == 5
    assert again.run()
    assert changed(copied(parts_of(whole)), copied(parts_of(again))) == set()


def test_games_that_do_not_fit_are_one_line() -> None:
    fitting = {f"game-{actions}": lesson_with(actions).teacher for actions in GAMES}
    check_games(fitting, ["net2", "teacher"])
    other = lesson_with(6).teacher
    other.config["environment"]["stack"] = 2
    with pytest.raises(UsageError, match=r"^stack of game-4 is 3, of game-6 2: one network"):
        check_games({**fitting, "game-6": other}, ["net2"])
    other = lesson_with(6).teacher
    other.config["settings"]["network"] = "net1"
    check_games({**fitting, "game-6": other}, ["net2"])
    with pytest.raises(UsageError, match=r"^--students teacher: .* is 3-3-3/6, .* net1: name the"):
        check_games({**fitting, "game-6": other}, ["net2", "teacher"])


def test_every_game_has_its_student_scored_in_that_game(tmp_path: Path) -> None:
    pupils = [Pupil("2-2-2/4", {"kl": 1.0}, seed) for seed in range(2)]

    def procedure(game: str, **changes: Any) -> Offline:
        teacher = teacher_of(len(game), game=game)
        return procedure_in(tmp_path / game, teacher, **changes)

    states = {g: procedure(g).gather("play", 60, 1, 6, pupils[0]) for g in ("pong", "breakout")}

    def taught_now(**changes: Any) -> list[tuple[str, StudentRecord]]:
        procedures = {game: procedure(game, **changes) for game in states}
        return list(taught(ProcedureConfig(), tmp_path / "out", procedures, pupils, states))

    results = [
        tmp_path / game / "students" / f"2-2-2_4-kl-joint-seed{seed}" / "result.json"
        for seed in range(2)
        for game in states
    ]
    with pytest.raises(Stopped):
        taught_now(should_stop=results[0].exists)
    assert [result.exists() for result in results] == [True, False, False, False]
    first = results[0].read_text()

    records = taught_now()
    assert [(game, r["method"], r["seed"]) for game, r in records] == [
        ("pong", "kl-joint", 0),
        ("breakout", "kl-joint", 0),
        ("pong", "kl-joint", 1),
        ("breakout", "kl-joint", 1),
    ]
    assert results[0].read_text() == first
    assert not list(tmp_path.rglob(PROGRESS))
    # As many minibatches of each game as a student of its own would have.
    assert {record["updates"] for _, record in records} == {12}
    # One trunk, two heads.
    pong, breakout = (dict(load_agent(r.parent).network.named_parameters()) for r in results[:2])
    different = {name for name in pong if not torch.equal(pong[name], breakout[name])}
    assert different == {"1.2.weight", "1.2.bias"}
    assert load_agent(results[1].parent).config["settings"]["game"] == "breakout"
    assert taught_now() == records
