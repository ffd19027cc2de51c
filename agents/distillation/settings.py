"""Every setting of a distillation and the students that follow from them; imports no torch."""

import importlib
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from agents.architectures import check_student
from agents.distillation.records import StudentRecord, chosen, method_name, student_name
from agents.foreign.flags import PolicyFlags
from ebu.errors import UsageError
from ebu.run.hints import install_command
from ebu.run.settings import (
    Bounds,
    Device,
    NotNegative,
    NotNegativeFloat,
    OneOf,
    Positive,
    PositiveFloat,
    Share,
    Threads,
    one_of,
    read_float,
)

if TYPE_CHECKING:
    from agents.trained import Outputs

PLAY, REPLAY, NOISE, MIXED, KEGNET = "play", "replay", "noise", "mixed", "kegnet"
SOURCES = (PLAY, REPLAY, NOISE, MIXED, KEGNET)
"""Sources of states by name; any other is a directory."""
SYNTHETIC = (NOISE, MIXED, KEGNET)
"""Sources of states that were never played: their actions and rewards mean nothing."""
MIXED_FROM = 2_000
"""States that the teacher plays for mixtures of two of them."""
AUTO, RUSU, RUSU_TEMPERATURE = "auto", "rusu", 0.01
LOWEST, HIGHEST = 1e-6, 1e6
"""Of temperatures and weights: with others a loss is no float32 number."""
CONVOLUTIONS = ("conv1", "conv2", "conv3")
INT8 = "int8"
"""The procedure's name of students that are trained through the rounding of their int8 files."""

EXPERIMENTAL = {
    **dict.fromkeys((NOISE, MIXED), "synthetic"),
    KEGNET: "kegnet",
    "adversarial": "adversarial",
    "ensemble": "ensembles",
    "factorised": "factorised",
    "generations": "generations",
    "mutual": "mutual",
    "several games": "several_games",
}
"""Modules of `agents.distillation.experimental` by the names they are asked for under."""
WARNINGS = {
    KEGNET: "experimental: states from KegNet's generators; students of them are selected on "
    "generated states, so judge them by their scores alone",
    "adversarial": "experimental: no gain of an adversarial loss has been published on Atari",
}
"""What to say where a source of states or a loss of this name is used."""


def load_experimental(name: str) -> ModuleType:
    """Import the module registered under this name in `EXPERIMENTAL`."""
    return importlib.import_module(f"agents.distillation.experimental.{EXPERIMENTAL[name]}")


class Stopped(Exception):
    """Told to stop. What is finished is on the disk: the same command resumes there."""


class Loss(NamedTuple):
    """The only student outputs that a loss suits (None: either), and layers that it compares."""

    outputs: "Outputs | None" = None
    layers: tuple[str, ...] = ()


MAIN_LOSSES = {
    "kl": Loss("logits"),
    "hard": Loss("logits"),
    "hinton": Loss(),
    "centred": Loss("logits"),
    "regression": Loss("values"),
    "noisy": Loss(),
}
ADDED_LOSSES = {
    "hint": Loss(layers=("conv3",)),
    "hint_dense": Loss(layers=("hidden",)),
    "attention": Loss(layers=CONVOLUTIONS),
    "distance": Loss(layers=("hidden",)),
    "angle": Loss(layers=("hidden",)),
    "adversarial": Loss("logits"),
}
LOSSES = {**MAIN_LOSSES, **ADDED_LOSSES, "mutual": Loss("logits")}
"""All losses by name; `losses` computes them. An ensemble, refined labels and generations are
no losses of their own: they give other teacher outputs to `kl`."""

MAY_CHANGE = frozenset(
    {
        *("out", "min_retention", "retention_test", "smallest"),
        *("checkpoint_minutes", "baselines"),
        *("export", "trust_env"),
    }
)
"""Settings that change no result, only whether it is computed."""
MAY_GROW = frozenset({"games", "seeds", "baseline_seeds", "from_scratch", "generations"})

BASELINES_HELP = (
    "Other methods to train every student by, for comparison: a main loss, and added losses with "
    "their weights, for instance hard regression kl+hint=0.1 kl+distance=1. May change."
)
STATES_FROM_HELP = (
    "Where states come from: play (the teacher's and, from the second round, a student's), replay "
    "(the teacher's own memory), noise, mixed (two states blended or cut together, of "
    f"{MIXED_FROM:,} that the teacher plays), kegnet (generators, experimental), or a directory of "
    "saved states. Held-out states are of the same source."
)
Repetitions = Annotated[int, Bounds(1, 1_000)]
Weight = Annotated[float, Bounds(0, HIGHEST)]


class StudentSpec(NamedTuple):
    """A student to train: its name, its losses by weight (main one first), its seed.

    `procedure` is part of the method's name and of the random numbers' source: it tells apart
    students with the same losses that are trained by different procedures.
    """

    student: str
    weights: Mapping[str, float]
    seed: int
    procedure: str = ""

    @property
    def method(self) -> str:
        losses = method_name(self.weights)
        return f"{losses}-{self.procedure}" if self.procedure else losses

    @property
    def name(self) -> str:
        return student_name(self.student, self.method, self.seed)


@dataclass(frozen=True)
class DistillConfig:
    """Who is distilled into what, on which states, by which losses."""

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The teacher, which is only read: a run directory; or a policy from elsewhere, a zip of
    Stable-Baselines3, weights of CleanRL, an ONNX file, or a function (module:function). Several of
    one game are an ensemble of teachers, of several games they train one network with a head for
    each."""
    out: Path
    """Output directory. Run the same command again to resume."""
    trust_env: bool = False
    """Import the module that the runs' environment is from (module:Env-v0): its code runs."""
    students: tuple[str, ...] = ("net1", "net2", "net3")
    """Networks: net1, net2, net3, widths (16-16-16/64), teacher (its own), and the teacher with
    fewer ranks: teacher@half, teacher@energy=0.9, teacher@vbmf, teacher@tucker=16,32,32,32."""
    seeds: Repetitions = 3
    """Students of each name, of which the one with the lowest held-out loss is chosen. May grow."""
    seed: NotNegative = 0
    """Seed of the states, of the scored games, and of the first student of each name."""
    weights: Literal["final", "best"] = "final"
    """The teacher's newest weights, or those of its best evaluation."""
    loss: Annotated[str, OneOf(*MAIN_LOSSES)] = "kl"
    """Main loss: kl (policy distillation), hard, hinton, centred, regression, noisy."""
    baselines: Annotated[tuple[str, ...], tyro.conf.arg(help=BASELINES_HELP)] = ("hard",)
    baseline_seeds: Repetitions = 1
    """Students of each name and baseline method. May grow."""
    from_scratch: NotNegative = 0
    """Frames for which train.py trains each student's network without a teacher, with the
    teacher's settings, as another baseline; 0: none. May grow."""
    temperature: str = AUTO
    """Softens the teacher: auto (its median gap between two actions), rusu (0.01), a number."""
    outputs: Literal["logits", "values"] | None = None
    """What students of hinton and noisy output: logits of a policy or action values [default:
    logits]."""
    states: Positive = 200_000
    """States to collect or make; 7 kB each on Atari. From replay at most this many, from a
    directory all."""
    states_from: Annotated[str, tyro.conf.arg(help=STATES_FROM_HELP)] = PLAY
    kegnet_samples: Annotated[int, Bounds(1, 10**12)] = 9_600
    """Samples that each of KegNet's five generators is trained on; its authors' are 5,120,000."""
    rounds: Repetitions = 3
    """Rounds of playing for states: the teacher plays the first, a student the others."""
    num_envs: Annotated[int, Bounds(1, 10_000)] = 16
    """Environments stepped together for states."""
    games: Annotated[int | None, Bounds(1, 1_000_000)] = None
    """Games of every score [default: the protocol's, 30 under paper]. May grow: then everything is
    scored again."""
    export: bool = True
    """Export the chosen students and the teacher to ONNX, float32 and int8, and measure both."""
    min_retention: NotNegativeFloat | None = None
    """Exit with 1 unless each chosen student retains at least this share of the teacher's score."""
    retention_test: Literal["bound", "mean"] = "bound"
    """What --min-retention tests: the lower end of the 95 % interval, or the mean alone."""
    smallest: bool = False
    """Name the smallest student that retains --min-retention [then 0.95] by --retention-test, and
    exit with 1 without one. Without --students it looks among seven sizes, those below the
    teacher's."""
    device: Device = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    precision: Literal["float32", "tf32", "bfloat16", "auto"] = "auto"
    """Arithmetic of the networks in training. auto: bfloat16 where the device has it."""
    threads: Threads = 0
    """Threads of torch and of the emulators; 0 takes all processor cores but one."""
    checkpoint_minutes: PositiveFloat = 2.0
    """Minutes between two checkpoints of a student's training; changes no result."""
    generations: Repetitions = 1
    """Generations of students: the chosen student of each name is the teacher of the next
    (born-again networks; with --students teacher self-distillation). May grow."""
    refine_labels: bool = False
    """Label refinery: students see states shifted by up to 4 pixels, with the outputs of the
    teacher, or of the last generation, for what is shown."""
    unshifted_labels: bool = False
    """With --refine-labels: the outputs for the state before the shift, since a teacher that was
    never trained on shifted states may be wrong about them."""
    mutual: bool = False
    """Train the students of a seed together, each also on the others' policies; a single name is
    trained with a second student of that name."""
    all_learners: bool = False
    """Use all learners of an adaptive_ebu run as an ensemble, not only the one that plays best."""
    updates: Positive = 8_000
    """Gradient steps on each student."""
    batch_size: Annotated[int, Bounds(1, 65_536)] = 128
    """States in a minibatch, drawn uniformly from those to train on."""
    learning_rate: PositiveFloat = 1e-3
    """Step size of Adam at the start; it falls to 0 along half a cosine."""
    log_every_updates: Positive = 500
    """Updates between two measurements on the held-out states, written for TensorBoard."""
    hint: Weight = 0.0
    """Weight of FitNets' hint: the third convolution, through a 1×1 convolution."""
    hint_dense: Weight = 0.0
    """Weight of the same for the hidden layer."""
    attention: Weight = 0.0
    """Weight of attention transfer: maps of the three convolutions."""
    distance: Weight = 0.0
    """Weight of the relational loss on distances between the states of a minibatch."""
    angle: Weight = 0.0
    """Weight of the relational loss on angles, over the first 64 states of a minibatch."""
    adversarial: Weight = 0.0
    """Weight of a discriminator between the two policies; experimental."""
    hinton_temperature: Annotated[float, Bounds(LOWEST, HIGHEST)] = 1.0
    """Softening of both sides in Hinton's mix, on top of the teacher's temperature."""
    soft_weight: Share = 0.5
    """Weight of the soft term in Hinton's mix; the hard term has the rest."""
    noise_scale: Weight = 0.5
    """Noise on a noisy teacher's values, in spreads of the state's values."""
    int8_aware: bool = False
    """Quantisation-aware training: students learn through the rounding of their int8 files. With
    --baselines kl, int8 files of students without it are scored, too."""
    policy: PolicyFlags = field(default_factory=PolicyFlags)

    @property
    def may_grow(self) -> frozenset[str]:
        """Settings that may grow; not the seeds where another seed might become a teacher."""
        return MAY_GROW - {"seeds"} if self.generations > 1 else MAY_GROW

    def best_of(self, students: Sequence[StudentRecord]) -> list[StudentRecord]:
        """The chosen student of each name, of the main method's last generation.

        The first student is of the main method.
        """
        main = of_generation(students[0]["method"], self.generations)
        return [
            chosen([s for s in students if (s["student"], s["method"]) == (name, main)])
            for name in self.students
        ]

    def exported_of(self, students: Sequence[StudentRecord]) -> list[StudentRecord]:
        """Those to export: the chosen ones, and with `int8_aware` those without the rounding."""
        plain = method_name(self._main_losses())
        others = [s for s in students if self.int8_aware and s["method"] == plain]
        names = dict.fromkeys(s["student"] for s in others)
        return [
            *self.best_of(students),
            *(chosen([s for s in others if s["student"] == name]) for name in names),
        ]

    @property
    def main_method(self) -> str:
        """The method of the students that are asked for; others are baselines."""
        return StudentSpec("", self._main_losses(), 0, self._procedure).method

    @property
    def _procedure(self) -> str:
        labels = "unshifted" if self.unshifted_labels else "refined"
        return "-".join([labels] * self.refine_labels + [INT8] * self.int8_aware)

    def _main_losses(self) -> dict[str, float]:
        losses = {self.loss: 1.0} | {name: getattr(self, name) for name in ADDED_LOSSES}
        losses["mutual"] = float(self.mutual)
        return {name: weight for name, weight in losses.items() if weight}

    def plan(self) -> list[StudentSpec]:
        """Every student to train, those of the main method first.

        Raises `UsageError` for settings that no student can be trained with.
        """
        if not self.run_dirs:
            raise UsageError("name the directory of the teacher's run, for instance runs/pong")
        if not self.students:
            raise UsageError("--students: name at least one, for instance net2")
        if len(set(self.students)) < len(self.students):
            raise UsageError(f"--students {' '.join(self.students)}: name each once")
        for name in self.students:
            check_student(name)
        read_temperature(self.temperature)
        self._check_source()
        if self.generations > 1:
            if self.mutual:
                raise UsageError("--mutual and --generations are two procedures: leave one out")
            refuse_factorised("--generations", self.students)
        if self.unshifted_labels and not self.refine_labels:
            raise UsageError(
                "--unshifted-labels says how to label shifted states: add --refine-labels"
            )
        if self.export:
            require_export(", or leave that out with --no-export")
        main = self._check_losses(self._main_losses())
        if self.int8_aware and (self.mutual or self.generations > 1):
            raise UsageError("--int8-aware is a procedure of its own: leave the other one out")
        if self.int8_aware and any(LOSSES[name].layers for name in main):
            raise UsageError("--int8-aware rounds layers: leave out what compares them")
        others = [self._check_losses(read_method(text)) for text in self.baselines]
        names = [method_name(weights) for weights in others]
        if len(set(names)) < len(names):
            raise UsageError(f"--baselines {' '.join(self.baselines)}: name each once")
        others = [weights for weights in others if self._procedure or weights != main]
        return [
            *self._specs(main, self.seeds, self._procedure),
            *(spec for weights in others for spec in self._specs(weights, self.baseline_seeds)),
        ]

    def _specs(
        self, weights: Mapping[str, float], seeds: int, procedure: str = ""
    ) -> Iterator[StudentSpec]:
        for name in self.students:
            for seed in range(self.seed, self.seed + seeds):
                yield StudentSpec(name, weights, seed, procedure)

    def _check_losses(self, weights: dict[str, float]) -> dict[str, float]:
        """The same losses by their weights; raises `UsageError` where they do not fit."""
        outputs = student_outputs(weights, self.outputs)
        check_weights(weights, outputs)
        if "hinton" in weights and outputs == "values" and self.states_from in SYNTHETIC:
            raise UsageError(
                f"--states-from {self.states_from}: the hard term of hinton for values needs games "
                "that were played: choose --outputs logits, another loss, or --states-from play"
            )
        return weights

    def _check_source(self) -> None:
        if not os.path.isdir(self.states_from):
            one_of("--states-from", self.states_from, [*SOURCES, "a directory of saved states"])
        if self.states_from == PLAY and self.states < self.rounds * self.num_envs:
            raise UsageError(
                f"--states {self.states}: {self.rounds} rounds in {self.num_envs} games need at "
                f"least {self.rounds * self.num_envs}"
            )


def of_generation(name: str, generation: int) -> str:
    """The name of a method, or a procedure, in a generation; the first has no suffix."""
    return name if generation == 1 else f"{name}-gen{generation}".removeprefix("-")


def student_outputs(weights: Mapping[str, float], asked: "Outputs | None") -> "Outputs":
    """The outputs of a student with these losses: what the main one needs, or what is asked."""
    return LOSSES[next(iter(weights))].outputs or asked or "logits"


def check_weights(weights: Mapping[str, float], outputs: "Outputs") -> None:
    """Raise `UsageError` for an unknown loss, a bad weight, a loss that does not suit the outputs,
    and where all weights are 0."""
    for name, weight in weights.items():
        one_of("--loss", name, LOSSES)
        if not (weight >= 0 and math.isfinite(weight)):
            raise UsageError(f"--{flag_of(name)} must be a weight of 0 or more, not {weight}")
        suited = LOSSES[name].outputs
        if weight > 0 and suited not in (None, outputs):
            fitting = [other for other, loss in LOSSES.items() if loss.outputs in (None, outputs)]
            raise UsageError(
                f"{name} is a loss for students whose outputs are {suited}, and this one's are "
                f"{outputs}: choose among {', '.join(fitting)}"
            )
    if not any(weights.values()):
        raise UsageError("every loss has weight 0: give one a positive weight")


def flag_of(name: str) -> str:
    """The flag of a loss, without its dashes."""
    return name.replace("_", "-")


def read_method(text: str) -> dict[str, float]:
    """The losses of a method by weight, main one first: `kl+hint=0.1` is kl with a hint.

    Raises `UsageError` for a text that is no such method.
    """
    main, *added = text.split("+")
    one_of("--baselines", main, MAIN_LOSSES)
    weights = {main: 1.0}
    for part in added:
        name, _, weight = part.partition("=")
        name = name.replace("-", "_")
        one_of(f"--baselines {text}:", name, ADDED_LOSSES)
        try:
            weights[name] = read_float(weight)
        except ValueError:
            raise UsageError(
                f"--baselines {text}: {part} has no weight: write for instance {main}+{name}=0.1"
            ) from None
        if not 0 < weights[name] <= HIGHEST:
            raise UsageError(
                f"--baselines {text}: the weight of {name} must be positive, and no more than "
                f"{HIGHEST:g}"
            )
    return weights


def read_temperature(setting: str) -> float | None:
    """The temperature of a setting, None for auto. Raises `UsageError` for what is none."""
    if setting in (AUTO, RUSU):
        return None if setting == AUTO else RUSU_TEMPERATURE
    try:
        value = read_float(setting)
    except ValueError:
        value = 0.0
    if not LOWEST <= value <= HIGHEST:
        raise UsageError(
            f"--temperature {setting}: choose {AUTO} (the teacher's median gap between its two "
            f"best actions), {RUSU} ({RUSU_TEMPERATURE}) or a positive number, from {LOWEST:g} to "
            f"{HIGHEST:g}"
        )
    return value


def refuse_factorised(procedure: str, students: Sequence[str]) -> None:
    """Raise `UsageError` for a student that starts from a teacher's weights."""
    for name in students:
        if "@" in name:
            raise UsageError(
                f"--students {name} starts from the weights of one teacher, and with {procedure} "
                "students start from new weights: leave it out"
            )


def require_export(otherwise: str = "") -> None:
    """Raise `UsageError`, one line, where packages of the extra `export` are missing.

    `otherwise`: what can be done without them.
    """
    needed = ("onnx", "onnxscript", "onnxruntime")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"exporting needs {' and '.join(missing)}: {install_command('export')}{otherwise}"
        )
