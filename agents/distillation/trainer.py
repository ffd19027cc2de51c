"""Teaching one student: minibatches of states, a weighted sum of losses, Adam.

A training that is stopped or killed goes on from its last checkpoint and ends with the same bits.
"""

import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.averages import Averages
from agents.distillation.dataset import StateSet, draw_apart
from agents.distillation.objective import TERMS, LossConfig, Minibatch, Objective
from agents.distillation.records import HeldOut
from agents.distillation.students import Student
from agents.networks import QNetwork
from agents.optimizers import adam, averages_of, load_averages
from agents.trained import TrainedAgent
from ebu.errors import EbuError
from ebu.run.checkpoint import load_latest, save_checkpoint
from ebu.run.cli import at_most, positive
from ebu.run.logs import Monitor, cut_logs

PROGRESS = "training"
"""Where, in a student's directory, the checkpoint of its training lies until it is scored."""
HELD_OUT_BATCH = 512
# Losses that compare the states of a minibatch with each other.
_COMPARING = ("distance", "angle")


@dataclass(frozen=True)
class TeachingConfig:
    """How students are trained."""

    updates: int = 8_000
    """Gradient steps on each student."""
    batch_size: int = 128
    """States in a minibatch, drawn uniformly from those to train on."""
    learning_rate: float = 1e-3
    """Step size of Adam at the start; it falls to 0 along half a cosine."""
    log_every_updates: int = 500
    """Updates between two looks at the held-out states, written for TensorBoard."""

    def check(self) -> None:
        """Raise `UsageError`, with the flag to change, for settings no student can be taught by."""
        positive(
            {f"--{part.name.replace('_', '-')}": vars(self)[part.name] for part in fields(self)}
        )
        at_most({"--batch-size": (self.batch_size, 65_536)})


@dataclass(frozen=True)
class Lesson:
    """What a student is taught, and by which losses.

    | field | meaning |
    | --- | --- |
    | teacher | whose layers hints and relations compare with; its outputs are with the states |
    | states | to train on, and held out |
    | weights | of the losses, by the names of `TERMS`; the first is the main one |
    | loss | constants of the losses |
    | temperature | τ of the teacher, in units of its outputs |
    | targets | (N,) float32 for each state, see `Minibatch`; None where no loss needs them |
    """

    teacher: TrainedAgent
    states: StateSet
    weights: Mapping[str, float]
    loss: LossConfig
    temperature: float
    targets: Tensor | None = None

    def objective(
        self, student: Student, weights: Mapping[str, float], generator: torch.Generator
    ) -> Objective:
        """These losses for this student. Raises `UsageError` where they do not fit it."""
        compared = any(TERMS[name].layers for name, weight in weights.items() if weight)
        zeros = torch.zeros_like(self.states.stacks(self.states.newest.new_zeros(1)))
        student_widths, teacher_widths = (
            _widths(network, zeros) if compared else {}
            for network in (student.network, self.teacher.network)
        )
        return Objective(
            weights,
            self.loss,
            temperature=self.temperature,
            outputs=student.outputs,
            num_actions=self.states.num_actions,
            student_widths=student_widths,
            teacher_widths=teacher_widths,
            generator=generator,
        ).to(self.states.device)

    @functools.cached_property
    def train(self) -> Tensor:
        """Indices (N − M,) int64, rising, of the states to train on."""
        return self.states.train

    def shown(self, indices: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Stacks (B, stack, *frame_shape) of states (B,) int64 as a student in training sees them,
        and the teacher's outputs (B, A) for these."""
        return self.states.stacks(indices), self.states.outputs[indices]

    def minibatch(
        self, indices: Tensor, student: dict[str, Tensor], teacher: dict[str, Tensor]
    ) -> Minibatch:
        """What the losses see of states (B,) int64, given both networks' sides of it."""
        return Minibatch(
            student=student,
            teacher=teacher,
            actions=self.states.actions[indices],
            targets=None if self.targets is None else self.targets[indices],
        )


@torch.no_grad()
def examined(student: Student, lesson: Lesson) -> HeldOut:
    """A student, in float32, on the states of a lesson's held-out episodes."""
    states = lesson.states
    main = next(iter(lesson.weights))
    # The same noise, where there is some, whenever it is asked.
    objective = lesson.objective(student, {main: 1.0}, torch.Generator().manual_seed(0))
    loss, agreed, regret = torch.zeros(3, dtype=torch.float64)
    indices = states.held_out
    for part in indices.split(HELD_OUT_BATCH):
        outputs, taught = student(states.stacks(part)), states.outputs[part]
        minibatch = lesson.minibatch(part, {"outputs": outputs}, {"outputs": taught})
        loss += objective(minibatch)[0].cpu() * len(part)
        actions, best = outputs.argmax(dim=1), taught.argmax(dim=1)
        agreed += (actions == best).sum().cpu()
        lost = taught.gather(1, best[:, None]) - taught.gather(1, actions[:, None])
        regret += lost.double().sum().cpu()
    loss, agreed, regret = (float(total) / len(indices) for total in (loss, agreed, regret))
    return {"loss": loss, "agreement": agreed, "regret": regret, "states": len(indices)}


class Course(ABC):
    """Students in training together, in a directory that their checkpoint and their logs lie in.

    | argument | meaning |
    | --- | --- |
    | students | with their first weights, on the device of the states |
    | lessons | one for each student; on one device, and of the same losses |
    | rng | draws what losses learn and draw, then the minibatches |
    | precision | float32, or bfloat16 for the networks' arithmetic (all else is float32) |

    Whatever was begun in the directory is taken up again: it must have been begun with the same
    arguments. Logs are TensorBoard's, by updates: the losses, and what `held_out` gives.

    Raises `UsageError` for losses that do not fit a student, `EbuError` for a broken checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        students: Sequence[Student],
        lessons: Sequence[Lesson],
        config: TeachingConfig,
        *,
        rng: np.random.Generator,
        precision: str = "float32",
        checkpoint_minutes: float = 5.0,
    ) -> None:
        self.directory = directory
        self.config = config
        self.updates = 0
        self.seconds = 0.0
        """Wall time of training, in all processes that took part."""
        self.warnings: list[str] = []
        """Damage that was passed over, one line each."""
        self._rng = rng
        self.pairs = list(zip(students, lessons, strict=True))
        device, weights = lessons[0].states.device, lessons[0].weights
        self._autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
        )
        self._checkpoint_seconds = 60 * checkpoint_minutes
        generator = drawing(rng)
        self._objectives = [
            lesson.objective(student, weights, generator) for student, lesson in self.pairs
        ]
        self._taught = nn.ModuleList([*students, *self._objectives])
        self._optimizer = adam(list(self._taught.parameters()), learning_rate=config.learning_rate)
        names = ("train/loss", *(f"train/{name}" for name, weight in weights.items() if weight))
        self._averages = Averages(names, device)
        self._resume()

    def run(
        self,
        *,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> bool:
        """Train to the last update; False, with a checkpoint, where told to stop before.

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
            if ended or now - saved >= self._checkpoint_seconds:
                self._save()
                saved = now
        return finished

    def held_out(self) -> HeldOut:
        """The students as they are now on their lessons' held-out states: the mean over them."""
        each = [examined(student, lesson) for student, lesson in self.pairs]
        loss, agreement, regret = np.mean(
            [(found["loss"], found["agreement"], found["regret"]) for found in each], axis=0
        ).tolist()
        states = sum(found["states"] for found in each)
        return {"loss": loss, "agreement": agreement, "regret": regret, "states": states}

    @abstractmethod
    def _losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw a minibatch: what is lowered (), and each loss () by its name, no gradient."""

    def log_score(self, mean: float, name: str = "mean") -> None:
        """Note a mean score of what is taught as it is now; of several by their names."""
        self._monitor.speed(self.updates, {f"score/{name}": mean})

    def close(self) -> None:
        """Close the logs."""
        self._monitor.close()

    def _update(self) -> None:
        total, losses = self._losses()
        remaining = 0.5 + 0.5 * math.cos(math.pi * self.updates / self.config.updates)
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * remaining
        self._optimizer.zero_grad(set_to_none=True)
        total.backward()
        self._optimizer.step()
        self._averages.add(total.detach(), *losses.values())
        self.updates += 1

    def _drawn(self, lesson: Lesson) -> Tensor:
        """The states (B,) int64 of a minibatch: apart from each other for losses that compare."""
        states, size = lesson.states, self.config.batch_size
        if any(lesson.weights.get(name) for name in _COMPARING):
            return draw_apart(states, size, self._rng)
        train = lesson.train
        return train[torch.from_numpy(self._rng.integers(len(train), size=size)).to(train.device)]

    def _minibatch(self, k: int, indices: Tensor, shown: tuple[Tensor, Tensor]) -> Minibatch:
        """What the losses of student k see; `shown` is what its lesson shows of these states."""
        (student, lesson), layers = self.pairs[k], self._objectives[k].layers
        stacks, outputs = shown
        teacher: dict[str, Tensor] = {}
        with self._autocast:
            if layers:
                own = _layers(student.network, stacks, layers)
                with torch.no_grad():
                    teacher = _layers(lesson.teacher.network, stacks, layers)
            else:
                own = {"outputs": student(stacks)}
        return lesson.minibatch(indices, own, {**teacher, "outputs": outputs})

    def _log(self) -> None:
        metrics = self._averages.take()
        if not math.isfinite(metrics["train/loss"]):
            raise EbuError(
                f"the loss of {self.directory.name} is no longer a number after "
                f"{self.updates:,} updates: lower --learning-rate, and choose another --out"
            )
        held_out = self.held_out()
        metrics |= {
            "held_out/loss": held_out["loss"],
            "held_out/agreement": held_out["agreement"],
            "held_out/regret": held_out["regret"],
        }
        self._monitor.speed(self.updates, metrics)

    # --- resuming -------------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            "updates": self.updates,
            "seconds": self.seconds,
            "taught": dict(self._taught.state_dict()),
            "optimizer": averages_of(self._optimizer, self._taught),
            "rng": self._rng.bit_generator.state,
            "averages": self._averages.state_dict(),
        }
        logs = self._monitor.sync()
        name = f"updates-{self.updates:09d}"
        save_checkpoint(self.directory / PROGRESS, name, state, logs=logs, keep=1)

    def _resume(self) -> None:
        checkpoint = load_latest(self.directory / PROGRESS)
        if checkpoint is None:
            cut_logs(self.directory, {})
            self._monitor = Monitor(self.directory)
            return
        self.warnings = checkpoint.warnings + cut_logs(self.directory, checkpoint.logs)
        state: dict[str, Any] = checkpoint.state
        try:
            self.updates, self.seconds = state["updates"], state["seconds"]
            self._taught.load_state_dict(state["taught"])
            load_averages(self._optimizer, self._taught, state["optimizer"])
            self._rng.bit_generator.state = state["rng"]
            self._averages.load_state_dict(state["averages"])
        except (KeyError, RuntimeError) as error:
            raise EbuError(
                f"the checkpoint in {self.directory / PROGRESS} is of another training "
                f"({str(error).splitlines()[0]}): delete that directory to train the student anew"
            ) from error
        self._monitor = Monitor(self.directory, resumed_at=self.updates)


class Training(Course):
    """One student in training; see `Course`."""

    def __init__(
        self,
        directory: Path,
        student: Student,
        lesson: Lesson,
        config: TeachingConfig,
        *,
        rng: np.random.Generator,
        **options: Any,
    ) -> None:
        self.student = student
        self.lesson = lesson
        super().__init__(directory, [student], [lesson], config, rng=rng, **options)

    def _losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        indices = self._drawn(self.lesson)
        minibatch = self._minibatch(0, indices, self.lesson.shown(indices, self._rng))
        losses: tuple[Tensor, dict[str, Tensor]] = self._objectives[0](minibatch)
        return losses


def drawing(rng: np.random.Generator) -> torch.Generator:
    """torch's random numbers, from the next of these."""
    return torch.Generator().manual_seed(int(rng.integers(2**63)))


def _layers(network: QNetwork, stacks: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
    features = network.features(stacks)._asdict()
    return {name: features[name].float() for name in (*sorted(names), "outputs")}


@torch.no_grad()
def _widths(network: QNetwork, stacks: Tensor) -> dict[str, int]:
    return {name: layer.shape[1] for name, layer in network.features(stacks)._asdict().items()}
