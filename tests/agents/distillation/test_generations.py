"""Generations and label refinery: who is whose teacher, with which labels, chosen by what."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.distillation.experimental import generations
from agents.distillation.experimental.generations import RefinedSupervision, refine, supervise_by
from agents.distillation.experimental.synthetic import shift
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import chosen
from agents.distillation.settings import StudentSpec
from agents.distillation.trainer import StudentTrainer, Supervision
from agents.trained import load_agent
from tests.agents.distillation.small_pipelines import pipeline_in, teacher_of
from tests.agents.distillation.test_trainer import (
    assert_killed_training_ends_with_the_same_bits,
    supervision_of,
    trainer_in,
)

KL = {"kl": 1.0}
NAME = "2-2-2/4"


def supervise(pipeline: Pipeline) -> Supervision:
    return pipeline.supervise(pipeline.collect_states(StudentSpec(NAME, KL, 0)), KL)


def specs_of(procedure: str = "") -> list[StudentSpec]:
    return [StudentSpec(NAME, KL, seed, procedure) for seed in range(2)]


def test_the_chosen_student_is_the_teacher_of_the_next_generation(tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path, teacher_of(1), generations=3)
    first = supervise(pipeline)
    records = list(generations.train(pipeline, specs_of(), first))
    methods = ["kl", "kl-gen2", "kl-gen3"]
    assert [(r["method"], r["seed"]) for r in records] == list(itertools.product(methods, range(2)))
    stacks = first.dataset.stacks(first.dataset.held_out)
    for before, after in ((records[:2], records[2:4]), (records[2:4], records[4:])):
        best = chosen(before)
        teacher_dir = tmp_path / "students" / f"2-2-2_4-{best['method']}-seed{best['seed']}"
        for record in after:
            directory = tmp_path / "students" / f"2-2-2_4-{record['method']}-seed{record['seed']}"
            settings = json.loads((directory / "config.json").read_text())["settings"]
            assert settings["teacher"] == str(teacher_dir)
            # Its labels were that student's policy, not softened.
            # What divides logits says nothing of values.
            assert settings["temperature"] is None
            # Measured by the first teacher, as the first generation was.
            student = load_agent(directory)
            agreed = student.outputs_of(stacks).argmax(1) == pipeline.teacher.outputs_of(
                stacks
            ).argmax(1)
            assert record["held_out"]["agreement"] == pytest.approx(agreed.float().mean().item())
    # All loaded in a second call.
    assert list(generations.train(pipeline, specs_of(), first)) == records


def test_a_students_supervision_has_its_outputs_and_the_teachers_states(tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path, teacher_of(1), temperature="0.25")
    first = supervise(pipeline)
    student = teacher_of(2, outputs="logits")
    supervision = supervise_by(student, pipeline, first)
    assert (first.temperature, supervision.temperature) == (0.25, 1.0)
    assert supervision.dataset.frames is first.dataset.frames
    some = torch.arange(7)
    expected = student.outputs_of(first.dataset.stacks(some))
    torch.testing.assert_close(supervision.dataset.outputs[some], expected)
    assert supervision.teacher.network is student.network
    # A student of values is softened as the teacher is.
    assert supervise_by(teacher_of(2), pipeline, first).temperature == 0.25


# --- label refinery -------------------------------------------------------------------------


def test_refined_labels_are_the_teachers_for_what_is_shown(tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path, teacher_of(1))
    first = supervise(pipeline)
    indices = first.dataset.train[:16]
    stacks, labels = refine(first).show(indices, np.random.default_rng(4))
    plain = first.dataset.stacks(indices)
    assert torch.equal(stacks, shift(plain, np.random.default_rng(4)))
    assert not torch.equal(stacks, plain)
    assert torch.equal(labels, pipeline.teacher.outputs_of(stacks))
    # Or those for what is not shown: the teacher never saw a shifted state.
    unshifted = pipeline_in(tmp_path, teacher_of(1), refine_labels=True, unshifted_labels=True)
    again, labels = refine(supervise(unshifted)).show(indices, np.random.default_rng(4))
    assert torch.equal(again, stacks)
    assert torch.equal(labels, first.dataset.outputs[indices])
    assert {spec.method for spec in unshifted.config.plan()[:3]} == {"kl-unshifted"}
    # Held-out states are neither shifted nor labelled again.
    student = pipeline.new_student(specs_of()[0], 1.0, np.random.default_rng(0))
    assert refine(first).measure(student) == first.measure(student)


def test_the_next_refinery_is_the_last_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_in(tmp_path, teacher_of(1), generations=2)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = RefinedSupervision.show

    def show(supervision: RefinedSupervision, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(real(supervision, *given))
        return seen[-1]

    monkeypatch.setattr(RefinedSupervision, "show", show)
    records = list(generations.train(pipeline, specs_of("refined"), refine(supervise(pipeline))))
    assert [r["method"] for r in records] == ["kl-refined"] * 2 + ["kl-refined-gen2"] * 2
    best = chosen(records[:2])
    last = load_agent(tmp_path / "students" / f"2-2-2_4-kl-refined-seed{best['seed']}")
    half = 2 * pipeline.config.updates
    assert len(seen) == 2 * half
    for number, (stacks, labels) in enumerate(seen):
        teacher = pipeline.teacher if number < half else last
        assert torch.equal(labels, teacher.outputs_of(stacks))


def test_shifts_are_drawn_again_after_a_kill(tmp_path: Path) -> None:
    supervision = refine(supervision_of())

    def start(name: str, **changes: Any) -> StudentTrainer:
        return trainer_in(tmp_path / name, supervision=supervision, **changes)

    assert_killed_training_ends_with_the_same_bits(start)
