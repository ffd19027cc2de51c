"""Train students: minibatches of states, a weighted sum of losses, Adam.

A stopped or killed training resumes from its last checkpoint and ends with the same bits.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.distillation.dataset import ApartSampler, Dataset
from agents.distillation.losses import Minibatch, Objective
from agents.distillation.records import HeldOut
from agents.distillation.settings import LOSSES, DistillConfig
from agents.distillation.students import Student
from agents.log_averages import Averages
from agents.networks import QNetwork
from agents.optimizers import Adam, averages_of, load_averages
from agents.trained import TrainedAgent
from ebu.errors import EbuError
from ebu.run.checkpoint import load_latest, save_checkpoint
from ebu.run.logs import Monitor, cut_logs
from ebu.state_checks import REFUSED

PROGRESS = "training"
"""The folder of a training's checkpoint in its directory, until the student is scored."""
HELD_OUT_BATCH = 512
# Losses that compare the states of a minibatch with each other.
_COMPARING = ("distance", "angle")


@dataclass(frozen=True)
class Supervision:
    """What a student is trained towards: labelled states, and the losses on them.

    | field | meaning |
    | --- | --- |
    | teacher | whose layers hints and relations compare with; its outputs are in the dataset |
    | dataset | states to train on, and held out |
    | weights | of the losses, by the names of `LOSSES`; the first is the main one |
    | config | constants of the losses |
    | temperature | τ of the teacher, in units of its outputs |
    | targets | (N,) float32 for each state, see `Minibatch`; None where no loss needs them |
    """

    teacher: TrainedAgent
    dataset: Dataset
    weights: Mapping[str, float]
    config: DistillConfig
    temperature: float
    targets: Tensor | None = None

    def objective(
        self, student: Student, weights: Mapping[str, float], generator: torch.Generator
    ) -> Objective:
        """These losses for this student. Raises `UsageError` where they do not suit it."""
        compared = any(LOSSES[name].layers for name, weight in weights.items() if weight)
        zeros = torch.zeros_like(self.dataset.stacks(self.dataset.newest.new_zeros(1)))
        student_widths, teacher_widths = (
            _widths(network, zeros) if compared else {}
            for network in (student.network, self.teacher.network)
        )
        return Objective(
            weights,
            self.config,
            temperature=self.temperature,
            outputs=student.outputs,
            num_actions=self.dataset.num_actions,
            student_widths=student_widths,
            teacher_widths=teacher_widths,
            generator=generator,
        ).to(self.dataset.device)

    def show(self, indices: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """What a student in training sees of states (B,) int64, and the teacher's outputs for it.

        Stacks (B, stack, *frame_shape) and outputs (B, A).
        """
        return self.dataset.stacks(indices), self.dataset.outputs[indices]

    def minibatch(
        self, indices: Tensor, student: dict[str, Tensor], teacher: dict[str, Tensor]
    ) -> Minibatch:
        """The inputs of the losses for states (B,) int64, given both networks' outputs."""
        return Minibatch(
            student=student,
            teacher=teacher,
            actions=self.dataset.actions[indices],
            targets=None if self.targets is None else self.targets[indices],
        )

    @torch.no_grad()
    def measure(self, student: Student) -> HeldOut:
        """Measure a student, in float32, on the held-out states."""
        dataset, main = self.dataset, next(iter(self.weights))
        # The same noise, if there is any, in every call.
        objective = self.objective(student, {main: 1.0}, torch.Generator().manual_seed(0))
        loss, agreed, regret = torch.zeros(3, dtype=torch.float64)
        indices = dataset.held_out
        for part in indices.split(HELD_OUT_BATCH):
            outputs, labels = student(dataset.stacks(part)), dataset.outputs[part]
            minibatch = self.minibatch(part, {"outputs": outputs}, {"outputs": labels})
            loss += objective(minibatch)[0].cpu() * len(part)
            actions, best = outputs.argmax(dim=1), labels.argmax(dim=1)
            agreed += (actions == best).sum().cpu()
            lost = labels.gather(1, best[:, None]) - labels.gather(1, actions[:, None])
            regret += lost.double().sum().cpu()
        loss, agreed, regret = (float(total) / len(indices) for total in (loss, agreed, regret))
        return {"loss": loss, "agreement": agreed, "regret": regret, "states": len(indices)}


class StudentTrainer:
    """Trains students together, in a directory for their checkpoint and logs.

    Each update is of one of them, in turn.

    | argument | meaning |
    | --- | --- |
    | students | with their first weights, on the device of the states |
    | supervisions | one for each student; on one device, and of the same losses |
    | config | how students are trained, and in which precision |
    | rng | draws the losses' parameters and noise, then the minibatches |

    A training that was begun in the directory is resumed: it must have been begun with the same
    arguments. Logs are TensorBoard's, by updates.

    Raises `UsageError` for losses that do not suit a student, `EbuError` for a broken checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        students: Sequence[Student],
        supervisions: Sequence[Supervision],
        config: DistillConfig,
        *,
        rng: np.random.Generator,
    ) -> None:
        self.directory = directory
        self.config = config
        self.updates = 0
        self.seconds = 0.0
        """Wall time of training, in all processes that took part."""
        self.warnings: list[str] = []
        """Damaged checkpoints that were skipped, one line each."""
        self._rng = rng
        self.pairs = list(zip(students, supervisions, strict=True))
        device, weights = supervisions[0].dataset.device, supervisions[0].weights
        self._train = [supervision.dataset.train for supervision in supervisions]
        self._apart = [
            ApartSampler(supervision.dataset)
            for supervision in supervisions
            if any(weights.get(name) for name in _COMPARING)
        ]
        self._autocast = torch.autocast(
            device.type,
            torch.bfloat16,
            enabled=config.precision == "bfloat16",
            cache_enabled=False,
        )
        generator = generator_from(rng)
        self._objectives = [
            supervision.objective(student, weights, generator)
            for student, supervision in self.pairs
        ]
        self._modules = nn.ModuleList([*students, *self._objectives])
        self._optimizer = Adam(list(self._modules.parameters()), learning_rate=config.learning_rate)
        names = ("train/loss", *(f"train/{name}" for name, weight in weights.items() if weight))
        self._averages = Averages(names, device)
        self._resume()

    def run(
        self,
        *,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> bool:
        """Train to the last update; False, with a checkpoint, if told to stop before.

        | argument | meaning |
        | --- | --- |
        | should_stop | asked before every update |
        | progress | called after every update with the number of updates so far |

        Raises `EbuError` where the loss is no longer a number, or the disk is full.
        """
        saved = began = time.monotonic()
        before, finished = self.seconds, True
        while finished and self.updates < self.config.updates:
            if should_stop is not None and should_stop():
                finished = False
            else:
                self._update()
                last = self.updates == self.config.updates
                if last or self.updates % self.config.log_every_updates == 0:
                    self._log()
                if progress is not None:
                    progress(self.updates)
            now = time.monotonic()
            self.seconds = before + now - began
            ended = not finished or self.updates == self.config.updates
            if ended or now - saved >= 60 * self.config.checkpoint_minutes:
                self._save()
                saved = now
        return finished

    def measure(self) -> HeldOut:
        """Measure the students on their held-out states: the mean over them."""
        each = [supervision.measure(student) for student, supervision in self.pairs]
        loss, agreement, regret = np.mean(
            [(found["loss"], found["agreement"], found["regret"]) for found in each], axis=0
        ).tolist()
        states = sum(found["states"] for found in each)
        return {"loss": loss, "agreement": agreement, "regret": regret, "states": states}

    def log_score(self, mean: float, name: str = "mean") -> None:
        """Log a mean score of the trained student; of several students by their names."""
        self._monitor.draw(self.updates, {f"score/{name}": mean})

    def close(self) -> None:
        """Close the logs."""
        self._monitor.close()

    def _losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw a minibatch: the total loss (), and each loss () by its name, without gradient."""
        k = self.updates % len(self.pairs)
        indices = self._draw(k)
        minibatch = self._minibatch(k, indices, self.pairs[k][1].show(indices, self._rng))
        losses: tuple[Tensor, dict[str, Tensor]] = self._objectives[k](minibatch)
        return losses

    def _update(self) -> None:
        total, losses = self._losses()
        remaining = 0.5 + 0.5 * math.cos(math.pi * self.updates / self.config.updates)
        self._optimizer.learning_rate = self.config.learning_rate * remaining
        self._optimizer.zero_grad()
        total.backward()
        self._optimizer.step()
        self._averages.add(total.detach(), *losses.values())
        self.updates += 1

    def _draw(self, k: int) -> Tensor:
        """The states (B,) int64 of a minibatch for student k."""
        size = self.config.batch_size
        if self._apart:
            return self._apart[k].draw(size, self._rng)
        train = self._train[k]
        return train[torch.from_numpy(self._rng.integers(len(train), size=size)).to(train.device)]

    def _minibatch(self, k: int, indices: Tensor, shown: tuple[Tensor, Tensor]) -> Minibatch:
        """The inputs of student k's losses; `shown` is from its supervision."""
        (student, supervision), layers = self.pairs[k], self._objectives[k].layers
        stacks, outputs = shown
        teacher: dict[str, Tensor] = {}
        with self._autocast:
            if layers:
                own = _layers(student.network, stacks, layers)
                with torch.no_grad():
                    teacher = _layers(supervision.teacher.network, stacks, layers)
            else:
                own = {"outputs": student(stacks)}
        return supervision.minibatch(indices, own, {**teacher, "outputs": outputs})

    def _log(self) -> None:
        metrics = self._averages.take()
        if not math.isfinite(metrics["train/loss"]):
            raise EbuError(
                f"the loss of {self.directory.name} is no longer a number after "
                f"{self.updates:,} updates: lower --learning-rate, and choose another --out"
            )
        held_out = self.measure()
        metrics |= {
            "held_out/loss": held_out["loss"],
            "held_out/agreement": held_out["agreement"],
            "held_out/regret": held_out["regret"],
        }
        self._monitor.draw(self.updates, metrics)

    # --- checkpoints ----------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            "updates": self.updates,
            "seconds": self.seconds,
            # The key of the first version, so that its trainings can be resumed.
            "taught": dict(self._modules.state_dict()),
            "optimizer": averages_of(self._optimizer, self._modules),
            "rng": self._rng.bit_generator.state,
            "averages": self._averages.state_dict(),
        }
        logs = self._monitor.sync()
        name = f"updates-{self.updates:09d}"
        save_checkpoint(self.directory / PROGRESS, name, state, logs=logs, keep=1)

    def _resume(self) -> None:
        checkpoint = load_latest(self.directory / PROGRESS, kind="updates")
        if checkpoint is None:
            cut_logs(self.directory, {})
            self._monitor = Monitor(self.directory)
            return
        self.warnings = checkpoint.warnings + cut_logs(self.directory, checkpoint.logs)
        state: dict[str, Any] = checkpoint.state
        try:
            self.updates, self.seconds = state["updates"], state["seconds"]
            self._modules.load_state_dict(state["taught"])
            load_averages(self._optimizer, self._modules, state["optimizer"])
            self._rng.bit_generator.state = state["rng"]
            self._averages.load_state_dict(state["averages"])
        except REFUSED as error:
            raise EbuError(
                f"the checkpoint in {self.directory / PROGRESS} is of another training "
                f"({str(error).splitlines()[0]}): delete that directory to train the student again"
            ) from error
        self._monitor = Monitor(self.directory, resumed_at=self.updates)


def generator_from(rng: np.random.Generator) -> torch.Generator:
    """A generator of torch, seeded by the next number of `rng`."""
    return torch.Generator().manual_seed(int(rng.integers(2**63)))


def _layers(network: nn.Module, stacks: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
    assert isinstance(network, QNetwork)
    features = network.features(stacks)._asdict()
    return {name: features[name].float() for name in (*sorted(names), "outputs")}


@torch.no_grad()
def _widths(network: nn.Module, stacks: Tensor) -> dict[str, int]:
    assert isinstance(network, QNetwork)
    return {name: layer.shape[1] for name, layer in network.features(stacks)._asdict().items()}
