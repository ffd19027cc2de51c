"""Mutual learning: students trained together, on the teacher's policy and on each other's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.distillation.pipeline import Pipeline
from agents.distillation.records import StudentRecord
from agents.distillation.settings import StudentSpec
from agents.distillation.trainer import StudentTrainer, Supervision
from agents.distillation.training import Member, train_together

PEER = "peer"
"""Ends the name of the second student's procedure, where one name is trained with its own kind."""


class MutualTrainer(StudentTrainer):
    """Trains K students on the same minibatches.

    Each minimises the supervision's losses, of which `mutual` is the mean KL(p_k ‖ p_S) over its
    K − 1 peers before the update (Zhang et al. 2018, "Deep Mutual Learning"; there students take
    turns). No gradient flows into a peer: the sum of all losses gives each student its own.
    """

    def _losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over the students; each loss as the mean over them."""
        indices = self._draw(0)
        shown = self.pairs[0][1].show(indices, self._rng)
        minibatches = [self._minibatch(k, indices, shown) for k in range(len(self.pairs))]
        outputs = torch.stack([minibatch.student["outputs"] for minibatch in minibatches])
        totals, parts = [], []
        for k, objective in enumerate(self._objectives):
            peers = torch.cat([outputs[:k], outputs[k + 1 :]])
            total, losses = objective(minibatches[k]._replace(peers=peers))
            totals.append(total)
            parts.append(losses)
        means = {name: torch.stack([losses[name] for losses in parts]).mean() for name in parts[0]}
        return torch.stack(totals).sum(), means


def train(
    pipeline: Pipeline, specs: Sequence[StudentSpec], supervision: Supervision
) -> list[StudentRecord]:
    """Train and score the students of each seed together, or load their records."""
    records: list[StudentRecord] = []
    for seed in dict.fromkeys(spec.seed for spec in specs):
        group = with_peer([spec for spec in specs if spec.seed == seed])
        directory = pipeline.config.out / "mutual" / f"{group[0].method}-seed{seed}"
        records += train_together(
            directory,
            [Member(pipeline, spec, supervision) for spec in group],
            trainer_type=MutualTrainer,
            names=[spec.name for spec in group],
        )
    return records


def with_peer(specs: Sequence[StudentSpec]) -> list[StudentSpec]:
    """The students of one seed; a single one with a peer of the same name."""
    if len(specs) > 1:
        return [*specs]
    (spec,) = specs
    return [spec, spec._replace(procedure=f"{spec.procedure}-{PEER}".removeprefix("-"))]
