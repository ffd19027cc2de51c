"""Mutual learning: what each student minimises, and resuming to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.distillation import losses
from agents.distillation.experimental import mutual
from agents.distillation.experimental.mutual import MutualTrainer, with_peer
from agents.distillation.report.rows import is_main
from agents.distillation.settings import Stopped, StudentSpec
from agents.distillation.trainer import PROGRESS
from agents.distillation.training import rng_of_student
from agents.trained import load_agent
from tests.agents.distillation.small_pipelines import pipeline_in, teacher_of
from tests.agents.distillation.test_trainer import (
    CONFIG,
    assert_killed_training_ends_with_the_same_bits,
    network,
    supervision_of,
)

BOTH = {"kl": 1.0, "mutual": 0.5}


def trainer_in(
    directory: Path,
    weights: dict[str, float] = BOTH,
    names: tuple[str, ...] = ("2-2-2/4",) * 2,
    **changes: Any,
) -> MutualTrainer:
    students = [network(name, seed) for seed, name in enumerate(names)]
    supervisions = [supervision_of(weights)] * len(students)
    config = replace(CONFIG, **changes)
    return MutualTrainer(directory, students, supervisions, config, rng=np.random.default_rng(3))


def test_each_students_gradient_is_that_of_its_own_loss_and_of_no_others(tmp_path: Path) -> None:
    """By the logits: (p_S − p_T + w · (p_S − mean of the peers' p)) / B."""
    trainer = trainer_in(tmp_path, names=("2-2-2/4", "3-3-3/6", "2-2-2/4"))
    made: list[Tensor] = []

    def keep(_: Any, __: Any, outputs: Tensor) -> None:
        outputs.retain_grad()
        made.append(outputs)

    for student, _ in trainer.pairs:
        student.register_forward_hook(keep)
    rng = np.random.default_rng(3)
    rng.integers(2**63)
    supervision = supervision_of(BOTH)
    train = supervision.dataset.train
    indices = train[torch.from_numpy(rng.integers(len(train), size=CONFIG.batch_size))]
    total, parts = trainer._losses()
    total.backward()
    policies = [torch.softmax(outputs.detach(), dim=1) for outputs in made]
    labels = torch.softmax(supervision.dataset.outputs[indices] / supervision.temperature, dim=1)
    kl, others = [], []
    for k, own in enumerate(policies):
        peers = torch.stack([other for j, other in enumerate(policies) if j != k])
        expected = (own - labels + 0.5 * (own - peers.mean(dim=0))) / CONFIG.batch_size
        torch.testing.assert_close(made[k].grad, expected)
        kl.append(losses.divergence(labels, made[k].detach()))
        others.append(torch.stack([losses.divergence(p, made[k].detach()) for p in peers]).mean())
    torch.testing.assert_close(parts["kl"], torch.stack(kl).mean())
    torch.testing.assert_close(parts["mutual"], torch.stack(others).mean())
    torch.testing.assert_close(total.detach(), sum(kl) + 0.5 * sum(others))


def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    weights = {"noisy": 1.0, "mutual": 1.0, "hint": 0.5}

    def start(name: str, **changes: Any) -> MutualTrainer:
        return trainer_in(tmp_path / name, weights, ("2-2-2/4", "3-3-3/6"), **changes)

    assert_killed_training_ends_with_the_same_bits(start)


def test_a_single_name_has_a_peer() -> None:
    one, other = StudentSpec("net1", BOTH, 4), StudentSpec("net2", BOTH, 4)
    assert with_peer([one, other]) == [one, other]
    single, peer = with_peer([one])
    assert single == one
    assert (single.name, peer.name) == ("net1-kl+mutual0.5-seed4", "net1-kl+mutual0.5-peer-seed4")
    refined, peer_of_refined = with_peer([one._replace(procedure="refined")])
    assert is_main(peer_of_refined.method, refined.method)
    assert peer_of_refined.name == "net1-kl+mutual0.5-refined-peer-seed4"
    draws = {int(rng_of_student(spec).integers(2**63)) for spec in (single, peer)}
    assert len(draws) == 2


def test_students_are_saved_and_scored_one_by_one(tmp_path: Path) -> None:
    spec = StudentSpec("2-2-2/4", BOTH, 0)
    results = [tmp_path / "students" / s.name / "result.json" for s in with_peer([spec])]
    pipeline = pipeline_in(tmp_path, teacher_of(1))
    states = pipeline.collect_states(spec)
    supervision = pipeline.supervise(states, BOTH)
    stopping = pipeline_in(tmp_path, teacher_of(1), should_stop=results[0].exists)
    with pytest.raises(Stopped):
        mutual.train(stopping, [spec], supervision)
    assert [result.exists() for result in results] == [True, False]
    first = results[0].read_text()

    records = mutual.train(pipeline, [spec], supervision)
    assert [record["method"] for record in records] == ["kl+mutual0.5", "kl+mutual0.5-peer"]
    assert results[0].read_text() == first
    assert not list(tmp_path.rglob(PROGRESS))
    assert mutual.train(pipeline, [spec], supervision) == records
    stacks = states.stacks(states.held_out)
    one, other = (load_agent(result.parent).outputs_of(stacks) for result in results)
    assert not torch.equal(one, other)
