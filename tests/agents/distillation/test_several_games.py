"""One network for several games: what an update changes, and what is saved of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.distillation.experimental.several_games import JointTrainer, check, share_trunk
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import StudentRecord
from agents.distillation.settings import Stopped, StudentSpec
from agents.distillation.students import Student, build
from agents.distillation.trainer import PROGRESS, Supervision
from agents.distillation.training import train_students
from agents.trained import load_agent
from ebu.errors import UsageError
from tests.agents.distillation.small_pipelines import SIDE, config_with, pipeline_in, teacher_of
from tests.agents.distillation.test_trainer import (
    CONFIG,
    assert_killed_training_ends_with_the_same_bits,
    supervision_of,
)

GAMES = (4, 6)
"""Their numbers of actions."""


def student_of(num_actions: int, name: str = "2-2-2/4", seed: int = 0) -> Student:
    generator = torch.Generator().manual_seed(seed)
    return build(name, num_actions, stack=3, frame_shape=(SIDE, SIDE), generator=generator)


def supervision_with(num_actions: int) -> Supervision:
    supervision = supervision_of()
    teacher = teacher_of(5, num_actions=num_actions, game=f"game-{num_actions}")
    dataset = supervision.dataset.relabelled(teacher.outputs_of)
    return replace(supervision, teacher=teacher, dataset=dataset)


def trainer_in(directory: Path, name: str = "2-2-2/4", **changes: Any) -> JointTrainer:
    students = [student_of(actions, name, actions) for actions in GAMES]
    supervisions = [supervision_with(actions) for actions in GAMES]
    rng = np.random.default_rng(3)
    return JointTrainer(directory, students, supervisions, replace(CONFIG, **changes), rng=rng)


def parts_of(trainer: JointTrainer) -> dict[str, dict[str, Tensor]]:
    """Copies of the trunk's weights, and of each game's head."""
    parts: dict[str, dict[str, Tensor]] = {"trunk": {}, "4": {}, "6": {}}
    for student, supervision in trainer.pairs:
        for name, weight in student.network.named_parameters():
            head = name.startswith("1.2.")
            part = str(supervision.teacher.num_actions) if head else "trunk"
            parts[part][name] = weight.detach().clone()
    return parts


def test_an_update_changes_the_trunk_and_the_head_of_its_game_alone(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    # Two rounds: Adam's averages do not move a head whose game is not played.
    for game in ("4", "6", "4", "6"):
        before = parts_of(trainer)
        trainer._update()
        after = parts_of(trainer)
        changed = {
            part
            for part, weights in before.items()
            if any(not torch.equal(weight, after[part][n]) for n, weight in weights.items())
        }
        assert changed == {"trunk", game}


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


def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    assert_killed_training_ends_with_the_same_bits(
        lambda name, **changes: trainer_in(tmp_path / name, **changes)
    )


def test_games_that_do_not_fit_are_one_line() -> None:
    fitting = {f"game-{actions}": supervision_with(actions).teacher for actions in GAMES}
    check(config_with(students=("net2", "teacher")), fitting)
    other = supervision_with(6).teacher
    other.config["environment"]["stack"] = 2
    with pytest.raises(UsageError, match=r"^stack of game-4 is 3, of game-6 2: one network"):
        check(config_with(students=("net2",)), {**fitting, "game-6": other})
    other = supervision_with(6).teacher
    other.config["settings"]["network"] = "net1"
    check(config_with(students=("net2",)), {**fitting, "game-6": other})
    with pytest.raises(UsageError, match=r"^--students teacher: .* is 3-3-3/6, .* net1: name the"):
        check(config_with(students=("net2", "teacher")), {**fitting, "game-6": other})


@pytest.mark.parametrize("given", [{"generations": 2}, {"from_scratch": 9}])
def test_other_procedures_are_for_one_game(given: dict[str, Any]) -> None:
    flag = next(iter(given)).replace("_", "-")
    fitting = {f"game-{actions}": supervision_with(actions).teacher for actions in GAMES}
    with pytest.raises(UsageError, match=f"^--{flag} is for one game, .* game-4 and game-6"):
        check(config_with(students=("net2",), **given), fitting)


def test_every_game_has_its_student_scored_in_that_game(tmp_path: Path) -> None:
    specs = [StudentSpec("2-2-2/4", {"kl": 1.0}, seed) for seed in range(2)]

    def pipeline(game: str, **changes: Any) -> Pipeline:
        return pipeline_in(tmp_path / game, teacher_of(len(game), game=game), **changes)

    datasets = {g: pipeline(g).collect_states(specs[0]) for g in ("pong", "breakout")}

    def train(**changes: Any) -> list[tuple[str, StudentRecord]]:
        pipelines = {game: pipeline(game, **changes) for game in datasets}
        return list(train_students(pipelines, specs, datasets, tmp_path / "out"))

    results = [
        tmp_path / game / "students" / f"2-2-2_4-kl-joint-seed{seed}" / "result.json"
        for seed in range(2)
        for game in datasets
    ]
    with pytest.raises(Stopped):
        train(should_stop=results[0].exists)
    assert [result.exists() for result in results] == [True, False, False, False]
    first = results[0].read_text()

    records = train()
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
    assert train() == records
