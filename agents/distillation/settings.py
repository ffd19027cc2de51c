"""Every setting of a distillation, and which students follow from them."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from agents.distillation.objective import LossConfig, check_weights
from agents.distillation.pipeline import Pupil, outputs_for
from agents.distillation.procedures import ProcedureConfig
from agents.distillation.records import method_name
from agents.distillation.sources import MADE_UP, MIXED_FROM, PLAY, SOURCES
from agents.distillation.temperature import check_temperature
from agents.distillation.trainer import TeachingConfig
from ebu.errors import UsageError
from ebu.run.cli import at_most, not_negative, positive
from ebu.run.settings import one_of

MAIN_LOSSES = ("kl", "hard", "hinton", "centred", "regression", "noisy")
MAY_CHANGE = frozenset({"out", "min_retention", "checkpoint_minutes", "baselines", "export"})
"""Settings that change nothing in what is made, but for whether it is."""
MAY_GROW = frozenset({"games", "seeds", "baseline_seeds", "from_scratch", "generations"})

BASELINES_HELP = (
    "Other methods that every student is taught by, to compare: a main loss, and losses added with "
    "their weights, for instance hard regression kl+hint=0.1 kl+distance=1. May change."
)
STATES_FROM_HELP = (
    "Where states come from: play (the teacher's and, from the second round, a student's), replay "
    "(the teacher's own memory), noise, mixed (two states blended or cut together, of "
    f"{MIXED_FROM:,} that the teacher plays), kegnet (generators, experimental), or a directory of "
    "saved states. What is made up is held out made up."
)


@dataclass(frozen=True)
class AddedLosses:
    """Weights of the losses that may stand beside the main one; 0 leaves a loss out."""

    hint: float = 0.0
    """Weight of FitNets' hint: the third convolution, through a 1×1 convolution."""
    hint_dense: float = 0.0
    """Weight of the same for the hidden layer."""
    attention: float = 0.0
    """Weight of attention transfer: maps of the three convolutions."""
    distance: float = 0.0
    """Weight of the relational loss on distances between the states of a minibatch."""
    angle: float = 0.0
    """Weight of the relational loss on angles, over the first 64 states of a minibatch."""
    adversarial: float = 0.0
    """Weight of a discriminator between the two policies; experimental."""


@dataclass(frozen=True)
class DistillConfig:
    """Who is distilled into what, on which states, by which losses."""

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directory of the run whose agent is the teacher; nothing in it is changed. Several runs of
    one game teach as an ensemble, runs of several games teach one network with a head for each."""
    out: Path
    """Where everything goes. The same command on the same directory goes on where it stopped."""
    students: tuple[str, ...] = ("net1", "net2", "net3")
    """Networks: net1, net2, net3, widths (16-16-16/64), teacher (its own), and the teacher with
    fewer ranks: teacher@half, teacher@energy=0.9, teacher@vbmf, teacher@tucker=16,32,32,32."""
    seeds: int = 3
    """Students of each name, of which the one with the lowest held-out loss is chosen. May grow."""
    seed: int = 0
    """Seed of the states, of the games that are scored, and of the first student of each name."""
    weights: Literal["final", "best"] = "final"
    """The teacher's newest weights, or those of its best evaluation."""
    loss: str = "kl"
    """Main loss: kl (policy distillation), hard, hinton, centred, regression, noisy."""
    baselines: Annotated[tuple[str, ...], tyro.conf.arg(help=BASELINES_HELP)] = ("hard",)
    baseline_seeds: int = 1
    """Students of each name that each of these methods teaches. May grow."""
    from_scratch: int = 0
    """Frames for which train.py trains each student's network on games alone, with the teacher's
    settings, as another baseline; 0: none. May grow."""
    temperature: str = "auto"
    """Softens the teacher: auto (its median gap between two actions), rusu (0.01), a number."""
    outputs: Literal["logits", "values"] | None = None
    """What hinton and noisy make: logits of a policy or action values [default: logits]."""
    states: int = 200_000
    """States to collect or make; 7 kB each on Atari. From replay at most so many, from a directory
    all."""
    states_from: Annotated[str, tyro.conf.arg(help=STATES_FROM_HELP)] = PLAY
    rounds: int = 3
    """Rounds of playing for states: the teacher plays the first, a student the others."""
    num_envs: int = 16
    """Games played side by side for states."""
    games: int | None = None
    """Games that everything is scored in [default: the protocol's, 30 under paper]. May grow: then
    all is scored again."""
    export: bool = True
    """Export the chosen students and the teacher to ONNX, float32 and int8, and measure both."""
    min_retention: float | None = None
    """Exit with 1 if a chosen student keeps less than this share of the teacher's score."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    precision: Literal["float32", "bfloat16", "auto"] = "auto"
    """Arithmetic of the networks in training. auto: bfloat16 where the device has it."""
    threads: int = 0
    """Threads of torch and of the emulators; 0 takes one for each processor core."""
    checkpoint_minutes: float = 2.0
    """Minutes between two checkpoints of a training; changes nothing in the result."""
    procedures: ProcedureConfig = field(default_factory=ProcedureConfig)
    teaching: TeachingConfig = field(default_factory=TeachingConfig)
    added: AddedLosses = field(default_factory=AddedLosses)
    constants: LossConfig = field(default_factory=LossConfig)

    @property
    def may_grow(self) -> frozenset[str]:
        """Settings that may; not the seeds where another seed might be chosen as a teacher."""
        return MAY_GROW - {"seeds"} if self.procedures.generations > 1 else MAY_GROW

    def plan(self) -> list[Pupil]:
        """Every student to be taught, those of the main method first.

        Raises `UsageError` for settings that no student can be taught by.
        """
        self._check_numbers()
        self.teaching.check()
        self.constants.check()
        check_temperature(self.temperature)
        if not self.run_dirs:
            raise UsageError("name the directory of the teacher's run, for instance runs/pong")
        if not self.students:
            raise UsageError("--students: name at least one, for instance net2")
        if len(set(self.students)) < len(self.students):
            raise UsageError(f"--students {' '.join(self.students)}: name each once")
        self._check_source()
        one_of("--loss", self.loss, MAIN_LOSSES)
        self.procedures.check(self.students)
        main = self._checked({self.loss: 1.0, **asdict(self.added), **self.procedures.losses})
        main = {name: weight for name, weight in main.items() if weight}
        others = [self._checked(method_of(text)) for text in self.baselines]
        names = [method_name(weights) for weights in others]
        if len(set(names)) < len(names):
            raise UsageError(f"--baselines {' '.join(self.baselines)}: name each once")
        how = self.procedures.name
        others = [weights for weights in others if how or weights != main]
        return [
            *self._pupils(main, self.seeds, how),
            *(pupil for weights in others for pupil in self._pupils(weights, self.baseline_seeds)),
        ]

    def _pupils(
        self, weights: Mapping[str, float], seeds: int, procedure: str = ""
    ) -> Iterator[Pupil]:
        for name in self.students:
            for seed in range(self.seed, self.seed + seeds):
                yield Pupil(name, weights, seed, procedure)

    def _checked(self, weights: dict[str, float]) -> dict[str, float]:
        outputs = outputs_for(weights, self.outputs)
        check_weights(weights, outputs)
        if self.states_from in MADE_UP and next(iter(weights)) == "hinton" and outputs == "values":
            raise UsageError(
                f"--states-from {self.states_from}: the hard term of hinton for values needs games "
                "that were played: choose --outputs logits, another loss, or --states-from play"
            )
        return weights

    def _check_numbers(self) -> None:
        positive(
            {
                "--seeds": self.seeds,
                "--baseline-seeds": self.baseline_seeds,
                "--states": self.states,
                "--rounds": self.rounds,
                "--num-envs": self.num_envs,
                "--checkpoint-minutes": self.checkpoint_minutes,
                **({} if self.games is None else {"--games": self.games}),
            }
        )
        at_most(
            {
                "--seeds": (self.seeds, 1_000),
                "--baseline-seeds": (self.baseline_seeds, 1_000),
                "--rounds": (self.rounds, 1_000),
                "--num-envs": (self.num_envs, 10_000),
                "--threads": (self.threads, 10_000),
                "--games": (self.games or 0, 1_000_000),
            }
        )
        not_negative(
            {
                "--seed": self.seed,
                "--from-scratch": self.from_scratch,
                "--threads": self.threads,
                **({} if self.min_retention is None else {"--min-retention": self.min_retention}),
            }
        )

    def _check_source(self) -> None:
        if not os.path.isdir(self.states_from):
            one_of("--states-from", self.states_from, [*SOURCES, "a directory of saved states"])
        if self.states_from == PLAY and self.states < self.rounds * self.num_envs:
            raise UsageError(
                f"--states {self.states}: {self.rounds} rounds in {self.num_envs} games need at "
                f"least {self.rounds * self.num_envs}"
            )


def method_of(text: str) -> dict[str, float]:
    """The losses of a method by their weights, main one first: `kl+hint=0.1` is kl and a hint.

    Raises `UsageError` for a text that is no such method.
    """
    main, *added = text.split("+")
    one_of("--baselines", main, MAIN_LOSSES)
    weights = {main: 1.0}
    for part in added:
        name, _, weight = part.partition("=")
        name = name.replace("-", "_")
        one_of(f"--baselines {text}:", name, asdict(AddedLosses()))
        try:
            weights[name] = float(weight)
        except ValueError:
            raise UsageError(
                f"--baselines {text}: {part} has no weight: write for instance {main}+{name}=0.1"
            ) from None
        if not weights[name] > 0:
            raise UsageError(f"--baselines {text}: the weight of {name} must be positive")
    return weights
