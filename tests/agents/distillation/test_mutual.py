"""Students that learn side by side: what each lowers, and that nothing is lost by a kill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.distillation import losses
from agents.distillation.experimental.mutual import MutualTraining, alone, cohort, teach_mutually
from agents.distillation.pipeline import Pupil, Stopped
from agents.distillation.procedures import ProcedureConfig, taught
from agents.distillation.trainer import PROGRESS
from agents.trained import load_agent
from tests.agents.distillation.made_up_teachers import procedure_in, teacher_of
from tests.agents.distillation.test_distill import CONFIG, Killed, lesson_of, network

BOTH = {"kl": 1.0, "mutual": 0.5}


def training_in(
    directory: Path,
    weights: dict[str, float] = BOTH,
    names: tuple[str, ...] = ("2-2-2/4",) * 2,
    **options: Any,
) -> MutualTraining:
    students = [network(name, seed) for seed, name in enumerate(names)]
    lessons = [lesson_of(weights)] * len(students)
    rng = np.random.default_rng(3)
    return MutualTraining(directory, students, lessons, CONFIG, rng=rng, **options)


def weights_of(training: MutualTraining) -> list[Tensor]:
    return [w.detach().clone() for student, _ in training.pairs for w in student.parameters()]


def test_each_students_gradient_is_that_of_its_own_loss_and_of_no_others(tmp_path: Path) -> None:
    """By the logits: (p_S − p_T + w · (p_S − mean of the peers' p)) / B."""
    training = training_in(tmp_path, names=("2-2-2/4", "3-3-3/6", "2-2-2/4"))
    students = [student for student, _ in training.pairs]
    made: list[Tensor] = []

    def keep(_: Any, __: Any, outputs: Tensor) -> None:
        outputs.retain_grad()
        made.append(outputs)

    for student in students:
        student.register_forward_hook(keep)
    rng = np.random.default_rng(3)
    rng.integers(2**63)
    lesson = lesson_of(BOTH)
    indices = lesson.train[
        torch.from_numpy(rng.integers(len(lesson.train), size=CONFIG.batch_size))
    ]
    total, parts = training._losses()
    total.backward()
    policies = [torch.softmax(outputs.detach(), dim=1) for outputs in made]
    taught = torch.softmax(lesson.states.outputs[indices] / lesson.temperature, dim=1)
    kl, mutual = [], []
    for k, own in enumerate(policies):
        peers = torch.stack([other for j, other in enumerate(policies) if j != k])
        expected = (own - taught + 0.5 * (own - peers.mean(dim=0))) / CONFIG.batch_size
        torch.testing.assert_close(made[k].grad, expected)
        kl.append(losses.divergence(taught, made[k].detach()))
        mutual.append(torch.stack([losses.divergence(p, made[k].detach()) for p in peers]).mean())
    torch.testing.assert_close(parts["kl"], torch.stack(kl).mean())
    torch.testing.assert_close(parts["mutual"], torch.stack(mutual).mean())
    torch.testing.assert_close(total.detach(), sum(kl) + 0.5 * sum(mutual))


def test_students_become_alike_and_stay_two(tmp_path: Path) -> None:
    """Without a teacher's weight to speak of the peers agree in the end."""
    weights = {"kl": 1e-6, "mutual": 1.0}
    training = training_in(tmp_path, weights)
    before = training._losses()[1]["mutual"]
    training.run()
    assert training._losses()[1]["mutual"] < before / 2
    one, other = (dict(student.named_parameters()) for student, _ in training.pairs)
    assert all(not torch.equal(one[name], other[name]) for name in one)


def test_the_mean_of_the_students_is_logged_for_held_out_states(tmp_path: Path) -> None:
    training = training_in(tmp_path)
    alone = []
    for number in range(2):
        single = MutualTraining(
            tmp_path / str(number),
            [training.pairs[number][0]],
            [lesson_of({"kl": 1.0})],
            CONFIG,
            rng=np.random.default_rng(0),
        )
        alone.append(single.held_out())
    found = training.held_out()
    for key in ("loss", "agreement", "regret"):
        assert found[key] == pytest.approx((alone[0][key] + alone[1][key]) / 2)


@pytest.mark.parametrize("weights", [BOTH, {"noisy": 1.0, "mutual": 1.0, "hint": 0.5}], ids=str)
def test_a_cohort_that_is_killed_ends_with_the_same_bits(
    weights: dict[str, float], tmp_path: Path
) -> None:
    names = ("2-2-2/4", "3-3-3/6")
    whole = training_in(tmp_path / "whole", weights, names)
    assert whole.run()

    def kill(updates: int) -> None:
        if updates == 7:
            raise Killed

    with pytest.raises(Killed):
        training_in(tmp_path / "killed", weights, names, checkpoint_minutes=0).run(progress=kill)
    again = training_in(tmp_path / "killed", weights, names)
    assert again.updates == 6
    assert again.run()
    for one, other in zip(weights_of(whole), weights_of(again), strict=True):
        assert torch.equal(one, other)
    assert whole.held_out() == again.held_out()


def test_a_cohort_is_of_one_seed_and_a_single_name_has_a_peer() -> None:
    one, other = Pupil("net1", BOTH, 4), Pupil("net2", BOTH, 4)
    assert cohort([one, other]) == [one, other]
    single, peer = cohort([one])
    assert single == one
    assert (single.name, peer.name) == ("net1-kl+mutual0.5-seed4", "net1-kl+mutual0.5-peer-seed4")
    assert single.rng(1).integers(2**63) != peer.rng(1).integers(2**63)
    assert alone(one).weights == {"kl": 1.0}


def test_a_cohort_is_saved_and_scored_one_by_one(tmp_path: Path) -> None:
    pupils = cohort([Pupil("2-2-2/4", BOTH, 0)])
    results = [tmp_path / "students" / pupil.name / "result.json" for pupil in pupils]
    procedure = procedure_in(tmp_path, teacher_of(1))
    states = procedure.gather("play", 60, 1, 6, alone(pupils[0]))
    stopping = procedure_in(tmp_path, teacher_of(1), should_stop=results[0].exists)
    with pytest.raises(Stopped):
        teach_mutually(stopping, pupils, stopping.lesson(states, BOTH))
    assert [result.exists() for result in results] == [True, False]
    first = results[0].read_text()

    lesson = procedure.lesson(states, BOTH)
    records = teach_mutually(procedure, pupils, lesson)
    assert [record["method"] for record in records] == ["kl+mutual0.5", "kl+mutual0.5-peer"]
    assert results[0].read_text() == first
    assert not list(tmp_path.rglob(PROGRESS))
    assert teach_mutually(procedure, pupils, lesson) == records
    stacks = states.stacks(states.held_out)
    one, other = (load_agent(result.parent).outputs_of(stacks) for result in results)
    assert not torch.equal(one, other)


def test_students_of_each_seed_learn_side_by_side(tmp_path: Path) -> None:
    weights = {"kl": 1.0, **ProcedureConfig(mutual=True).losses}
    main = [Pupil(name, weights, seed) for name in ("2-2-2/4", "3-2-2/4") for seed in range(2)]
    hard = Pupil("2-2-2/4", {"hard": 1.0}, 0)
    procedure = procedure_in(tmp_path, teacher_of(1))
    states = procedure.gather("play", 60, 1, 6, hard)
    found = taught(
        ProcedureConfig(mutual=True),
        tmp_path,
        {"pictures": procedure},
        [*main, hard],
        {"pictures": states},
    )
    assert [(r["student"], r["method"], r["seed"]) for _, r in found] == [
        ("2-2-2/4", "kl+mutual1", 0),
        ("3-2-2/4", "kl+mutual1", 0),
        ("2-2-2/4", "kl+mutual1", 1),
        ("3-2-2/4", "kl+mutual1", 1),
        ("2-2-2/4", "hard", 0),
    ]
