"""What a student is trained by: losses by name, each with its weight."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.distillation import losses
from agents.trained import Outputs
from ebu.errors import UsageError
from ebu.run.cli import not_negative, positive, shares
from ebu.run.settings import one_of

DISCRIMINATOR_UNITS = 64
CONVOLUTIONS = ("conv1", "conv2", "conv3")


@dataclass(frozen=True)
class LossConfig:
    """The constants of the losses that have some."""

    hinton_temperature: float = 1.0
    """Softening of both sides in Hinton's mix, on top of the teacher's temperature."""
    soft_weight: float = 0.5
    """Weight of the soft term in Hinton's mix; the hard term has the rest."""
    noise_scale: float = 0.5
    """Noise on a noisy teacher's values, in spreads of the state's values."""

    def check(self) -> None:
        """Raise `UsageError`, with the flag to change, for constants outside their range."""
        positive({"--hinton-temperature": self.hinton_temperature})
        shares({"--soft-weight": self.soft_weight})
        not_negative({"--noise-scale": self.noise_scale})


class Minibatch(NamedTuple):
    """What the losses of one minibatch are computed from.

    | field | shape | meaning |
    | --- | --- | --- |
    | student, teacher | by name | "outputs" (B, A), and what `Objective.layers` names of conv1, |
    | | | conv2, conv3 (B, C, H, W) and hidden (B, D): for instance `Features._asdict()` |
    | actions | (B,) int64 | what was done, for the hard term of students of values |
    | targets | (B,) float32 | towards what its value is moved; NaN: unknown |
    | peers | (K, B, A) | logits of the students that learn beside this one |
    """

    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    actions: Tensor | None = None
    targets: Tensor | None = None
    peers: Tensor | None = None


class Term(NamedTuple):
    """A loss by its name.

    | field | meaning |
    | --- | --- |
    | meaning | its line in a command's help |
    | compute | the loss of a minibatch |
    | layers | layers beside the outputs that it compares |
    | outputs | the only kind of student that it suits; None: either |
    """

    meaning: str
    compute: "Callable[[Objective, Minibatch], Tensor]"
    layers: tuple[str, ...] = ()
    outputs: Outputs | None = None


class Objective(nn.Module):
    """The weighted sum of named losses, with what they learn and draw themselves.

    Its parameters, the hints' regressors and the discriminator, train along with the student and
    are then thrown away. All it holds is in `state_dict`: the state of the noise as well.

    | argument | meaning |
    | --- | --- |
    | weights | by the names of `TERMS`; those with weight 0 are not computed |
    | temperature | τ of the teacher, in units of its outputs |
    | outputs | whether the student's outputs are values or a policy's logits |
    | student_widths, teacher_widths | channels or units of the layers that are compared: conv1, |
    | | conv2, conv3, hidden |
    | generator | draws the weights of what is learnt, and afterwards the noise; on the CPU |

    Raises `UsageError` for weights that are no objective for such a student.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        config: LossConfig,
        *,
        temperature: float,
        outputs: Outputs,
        num_actions: int,
        student_widths: Mapping[str, int],
        teacher_widths: Mapping[str, int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        check_weights(weights, outputs)
        config.check()
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.config = config
        self.temperature = temperature
        self.outputs = outputs
        self.generator = generator
        self.layers = frozenset(layer for name in self.weights for layer in TERMS[name].layers)
        """Layers, beside the outputs, that a minibatch must hold of both networks."""
        for name in self.weights:
            for layer in TERMS[name].layers:
                if layer not in student_widths or layer not in teacher_widths:
                    raise UsageError(f"--{_flag(name)} compares {layer}, which the networks lack")
        self.regressors = nn.ModuleDict()
        if "hint" in self.weights:
            self.regressors["conv3"] = nn.Conv2d(
                student_widths["conv3"], teacher_widths["conv3"], kernel_size=1
            )
        if "hint_dense" in self.weights:
            self.regressors["hidden"] = nn.Linear(
                student_widths["hidden"], teacher_widths["hidden"]
            )
        if "adversarial" in self.weights:
            self.discriminator = nn.Sequential(
                nn.Linear(num_actions, DISCRIMINATOR_UNITS),
                nn.ReLU(),
                nn.Linear(DISCRIMINATOR_UNITS, 1),
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The total (), and each loss () by its name, without its weight and without gradient."""
        computed = {name: TERMS[name].compute(self, minibatch) for name in self.weights}
        total = torch.stack([self.weights[name] * loss for name, loss in computed.items()]).sum()
        return total, {name: loss.detach() for name, loss in computed.items()}

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state)

    def _kl(self, minibatch: Minibatch) -> Tensor:
        teacher, student = _outputs(minibatch)
        return losses.policy_divergence(teacher, student, temperature=self.temperature)

    def _hinton(self, minibatch: Minibatch) -> Tensor:
        teacher, student = _outputs(minibatch)
        config = self.config
        if self.outputs == "values":
            # Both in units of Q, as is the hard term: T² then has the units of a squared error.
            temperature = config.hinton_temperature * self.temperature
            hard = losses.taken_values(
                student, _given(minibatch.actions), _given(minibatch.targets)
            )
        else:
            # Divided by τ the teacher's values are logits, as the student's outputs are.
            temperature = config.hinton_temperature
            teacher = teacher / self.temperature
            hard = losses.hard_label(teacher, student)
        return losses.hinton(
            teacher, student, hard, temperature=temperature, soft_weight=config.soft_weight
        )

    def _noisy(self, minibatch: Minibatch) -> Tensor:
        teacher, student = _outputs(minibatch)
        noise = torch.randn(teacher.shape, generator=self.generator).to(teacher.device)
        noisy = losses.noisy(teacher, noise, scale=self.config.noise_scale)
        regression = losses.regression if self.outputs == "values" else losses.centred_regression
        return regression(noisy, student)

    def _hint(self, minibatch: Minibatch, layer: str) -> Tensor:
        regressed = self.regressors[layer](minibatch.student[layer])
        return losses.hint(regressed, minibatch.teacher[layer])

    def _attention(self, minibatch: Minibatch) -> Tensor:
        return losses.attention(
            [minibatch.teacher[layer] for layer in CONVOLUTIONS],
            [minibatch.student[layer] for layer in CONVOLUTIONS],
        )

    def _adversarial(self, minibatch: Minibatch) -> Tensor:
        """The losses of both players: each one's gradient reaches that player alone."""
        teacher, student = _outputs(minibatch)
        real = torch.softmax(teacher / self.temperature, dim=1)
        made = torch.softmax(student, dim=1)
        discriminator = self.discriminator
        fixed = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        judged = torch.func.functional_call(discriminator, fixed, made)
        return losses.deception_loss(judged) + losses.discriminator_loss(
            discriminator(real), discriminator(made.detach())
        )


TERMS: dict[str, Term] = {
    "kl": Term(
        "policy distillation: KL of the teacher's softmax at τ and the student's",
        Objective._kl,
        outputs="logits",
    ),
    "hard": Term(
        "cross-entropy with the teacher's best action",
        lambda _, minibatch: losses.hard_label(*_outputs(minibatch)),
        outputs="logits",
    ),
    "hinton": Term("soft and hard labels mixed, both sides softened", Objective._hinton),
    "regression": Term(
        "squared error of raw values",
        lambda _, minibatch: losses.regression(*_outputs(minibatch)),
        outputs="values",
    ),
    "centred": Term(
        "squared error of values centred and scaled in each state",
        lambda _, minibatch: losses.centred_regression(*_outputs(minibatch)),
        outputs="logits",
    ),
    "noisy": Term("squared error with noise on the teacher's values", Objective._noisy),
    "hint": Term(
        "FitNets: the third convolution through a 1×1 convolution",
        lambda objective, minibatch: objective._hint(minibatch, "conv3"),
        layers=("conv3",),
    ),
    "hint_dense": Term(
        "FitNets: the hidden layer through a linear one",
        lambda objective, minibatch: objective._hint(minibatch, "hidden"),
        layers=("hidden",),
    ),
    "attention": Term(
        "attention maps of the three convolutions", Objective._attention, layers=CONVOLUTIONS
    ),
    "distance": Term(
        "relational: distances between hidden layers",
        lambda _, minibatch: losses.relational_distance(*_hidden(minibatch)),
        layers=("hidden",),
    ),
    "angle": Term(
        "relational: angles between hidden layers",
        lambda _, minibatch: losses.relational_angle(*_hidden(minibatch)),
        layers=("hidden",),
    ),
    "mutual": Term(
        "mean KL of the students that learn at the same time",
        lambda _, minibatch: losses.mutual(_given(minibatch.peers), minibatch.student["outputs"]),
        outputs="logits",
    ),
    "adversarial": Term(
        "experimental: a discriminator between the two policies",
        Objective._adversarial,
        outputs="logits",
    ),
}
"""All losses by name. What a row of the method table calls for beyond these is no loss of its own:
an ensemble, a label refinery and born-again generations give other teacher outputs to `kl`."""


def check_weights(weights: Mapping[str, float], outputs: Outputs) -> None:
    """Raise `UsageError` for a name that is no loss, for one that does not suit a student of these
    outputs, for a weight that is negative or not finite, and where all are 0."""
    for name, weight in weights.items():
        one_of("--loss", name, TERMS)
        if not (weight >= 0 and math.isfinite(weight)):
            raise UsageError(f"--{_flag(name)} must be a weight of 0 or more, not {weight}")
        suited = TERMS[name].outputs
        if weight > 0 and suited not in (None, outputs):
            fitting = [other for other, term in TERMS.items() if term.outputs in (None, outputs)]
            raise UsageError(
                f"{name} is a loss for students whose outputs are {suited}, and this one's are "
                f"{outputs}: choose among {', '.join(fitting)}"
            )
    if not any(weights.values()):
        raise UsageError("every loss has weight 0: give one a positive weight")


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _outputs(minibatch: Minibatch) -> tuple[Tensor, Tensor]:
    return minibatch.teacher["outputs"], minibatch.student["outputs"]


def _hidden(minibatch: Minibatch) -> tuple[Tensor, Tensor]:
    return minibatch.teacher["hidden"], minibatch.student["hidden"]


def _given(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("a loss needs a part of the minibatch that is not given")
    return tensor
