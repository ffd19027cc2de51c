"""Generations: who teaches whom, by which labels, and what is chosen by."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.distillation.experimental.generations import (
    RefinedLesson,
    refined,
    taught_by,
    teach_generations,
)
from agents.distillation.experimental.synthetic import shifted
from agents.distillation.pipeline import Offline, Pupil, Stopped
from agents.distillation.records import chosen
from agents.distillation.trainer import Lesson, Training, examined
from agents.trained import load_agent
from tests.agents.distillation.made_up_teachers import procedure_in, teacher_of
from tests.agents.distillation.test_distill import Killed, lesson_of, training_in

KL = {"kl": 1.0}
NAME = "2-2-2/4"


def first_lesson(procedure: Offline, weights: dict[str, float] = KL) -> Lesson:
    return procedure.lesson(procedure.gather("play", 60, 1, 6, Pupil(NAME, weights, 0)), weights)


def pupils_of(lesson: Lesson, procedure: str = "") -> list[Pupil]:
    return [Pupil(NAME, lesson.weights, seed, procedure) for seed in range(2)]


def settings_of(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((directory / "config.json").read_text())["settings"]
    return settings


def test_a_generation_is_taught_by_the_chosen_student_of_the_one_before(tmp_path: Path) -> None:
    procedure = procedure_in(tmp_path, teacher_of(1))
    first = first_lesson(procedure)
    records = list(teach_generations(procedure, pupils_of(first), first, 3))
    methods = ["kl", "kl-gen2", "kl-gen3"]
    assert [(r["method"], r["seed"]) for r in records] == list(itertools.product(methods, range(2)))
    stacks = first.states.stacks(first.states.held_out)
    for before, taught in ((records[:2], records[2:4]), (records[2:4], records[4:])):
        best = chosen(before)
        teacher_dir = tmp_path / "students" / f"2-2-2_4-{best['method']}-seed{best['seed']}"
        for record in taught:
            directory = tmp_path / "students" / f"2-2-2_4-{record['method']}-seed{record['seed']}"
            assert settings_of(directory)["teacher"] == str(teacher_dir)
            # Its labels were that student's policy, and nothing softened it.
            assert settings_of(directory)["temperature"] == 1.0
            # Scored and selected as the first generation: by the first teacher.
            student = load_agent(directory)
            agreed = student.outputs_of(stacks).argmax(1) == procedure.teacher.outputs_of(
                stacks
            ).argmax(1)
            assert record["held_out"]["agreement"] == pytest.approx(agreed.float().mean().item())
            assert record["evaluation"]["games"] == records[0]["evaluation"]["games"]
    # All found when asked again.
    assert list(teach_generations(procedure, pupils_of(first), first, 3)) == records


def test_a_students_lesson_has_its_outputs_and_the_teachers_states(tmp_path: Path) -> None:
    procedure = procedure_in(tmp_path, teacher_of(1), temperature="0.25")
    first = first_lesson(procedure)
    student = teacher_of(2, outputs="logits")
    lesson = taught_by(procedure, first, student)
    assert (first.temperature, lesson.temperature) == (0.25, 1.0)
    assert lesson.states.frames is first.states.frames
    some = torch.arange(7)
    expected = student.outputs_of(first.states.stacks(some))
    torch.testing.assert_close(lesson.states.outputs[some], expected)
    assert lesson.teacher.network is student.network
    # A student of values is softened as the teacher is.
    assert taught_by(procedure, first, teacher_of(2)).temperature == 0.25


def test_a_generation_starts_from_new_weights(tmp_path: Path) -> None:
    seeds = [Pupil(NAME, KL, 0, name).rng(1).integers(2**63) for name in ("", "gen2", "gen3")]
    assert len(set(seeds)) == 3


def test_told_to_stop_a_generation_is_gone_on_with(tmp_path: Path) -> None:
    procedure = procedure_in(tmp_path, teacher_of(1))
    first = first_lesson(procedure)
    pupils = pupils_of(first)
    students = tmp_path / "students"

    def stop() -> bool:
        return (students / "2-2-2_4-kl-gen2-seed0" / "result.json").exists()

    stopping = procedure_in(tmp_path, teacher_of(1), should_stop=stop)
    with pytest.raises(Stopped):
        list(teach_generations(stopping, pupils, first, 2))
    assert not (students / "2-2-2_4-kl-gen2-seed1" / "result.json").exists()
    assert len(list(teach_generations(procedure, pupils, first, 2))) == 4


# --- label refinery -------------------------------------------------------------------------


def test_refined_labels_are_the_teachers_for_what_is_shown(tmp_path: Path) -> None:
    procedure = procedure_in(tmp_path, teacher_of(1))
    first = first_lesson(procedure)
    indices = first.train[:16]
    stacks, labels = refined(first).shown(indices, np.random.default_rng(4))
    plain = first.states.stacks(indices)
    assert torch.equal(stacks, shifted(plain, np.random.default_rng(4)))
    assert not torch.equal(stacks, plain)
    assert torch.equal(labels, procedure.teacher.outputs_of(stacks))
    assert not torch.equal(labels, first.states.outputs[indices])


def test_the_next_refinery_is_the_last_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    procedure = procedure_in(tmp_path, teacher_of(1))
    first = refined(first_lesson(procedure))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = RefinedLesson.shown

    def shown(lesson: RefinedLesson, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(real(lesson, *given))
        return seen[-1]

    monkeypatch.setattr(RefinedLesson, "shown", shown)
    pupils = pupils_of(first, "refined")
    records = list(teach_generations(procedure, pupils, first, 2))
    assert [r["method"] for r in records] == ["kl-refined"] * 2 + ["kl-refined-gen2"] * 2
    best = chosen(records[:2])
    last = load_agent(tmp_path / "students" / f"2-2-2_4-kl-refined-seed{best['seed']}")
    half = 2 * procedure.teaching.updates
    assert len(seen) == 2 * half
    for number, (stacks, labels) in enumerate(seen):
        teacher = procedure.teacher if number < half else last
        assert torch.equal(labels, teacher.outputs_of(stacks))
    # Held-out states are neither shifted nor labelled anew.
    student = procedure.new_student(pupils[0], 1.0, np.random.default_rng(0))
    plain = first_lesson(procedure)
    assert examined(student, first) == examined(student, plain)


def test_shifts_are_drawn_again_after_a_kill(tmp_path: Path) -> None:
    lesson = refined(lesson_of())

    def training(name: str, **options: Any) -> Training:
        return training_in(tmp_path / name, lesson=lesson, **options)

    whole = training("whole")
    whole.run()

    def kill(updates: int) -> None:
        if updates == 7:
            raise Killed

    with pytest.raises(Killed):
        training("killed", checkpoint_minutes=0).run(progress=kill)
    again = training("killed")
    assert again.updates == 6
    again.run()
    for one, other in zip(whole.student.parameters(), again.student.parameters(), strict=True):
        assert torch.equal(one, other)
