"""Methods of distillation: losses by weight, and the student that each of them makes."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from agents.distillation.records import method_name, student_name
from ebu.errors import UsageError
from ebu.run.settings import one_of

if TYPE_CHECKING:
    from agents.trained import Outputs

CONVOLUTIONS = ("conv1", "conv2", "conv3")


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
            weights[name] = float(weight)
        except ValueError:
            raise UsageError(
                f"--baselines {text}: {part} has no weight: write for instance {main}+{name}=0.1"
            ) from None
        if not weights[name] > 0:
            raise UsageError(f"--baselines {text}: the weight of {name} must be positive")
    return weights
