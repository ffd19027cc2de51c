"""What a student minimises: the weighted sum of losses chosen by name."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.distillation import losses
from agents.distillation.settings import (
    CONVOLUTIONS,
    LOSSES,
    DistillConfig,
    check_weights,
    flag_of,
    load_experimental,
)
from agents.trained import Outputs
from ebu.errors import UsageError


class Minibatch(NamedTuple):
    """The inputs of the losses of one minibatch.

    | field | shape | meaning |
    | --- | --- | --- |
    | student, teacher | by name | "outputs" (B, A), and what `Objective.layers` names of conv1, |
    | | | conv2, conv3 (B, C, H, W) and hidden (B, D): for instance `Features._asdict()` |
    | actions | (B,) int64 | actions taken, for the hard term of students of values |
    | targets | (B,) float32 | targets of their values; NaN: unknown |
    | peers | (K, B, A) | logits of the other students in mutual learning |
    """

    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    actions: Tensor | None = None
    targets: Tensor | None = None
    peers: Tensor | None = None


class Objective(nn.Module):
    """The weighted sum of named losses, with their own parameters and random numbers.

    The parameters, of hints' regressors and the discriminator, are trained with the student and
    then dropped. `state_dict` holds them and the state of the generator.

    | argument | meaning |
    | --- | --- |
    | weights | by the names of `LOSSES`; a loss of weight 0 is not computed |
    | config | constants of the losses |
    | temperature | τ of the teacher, in units of its outputs |
    | outputs | whether the student's outputs are values or a policy's logits |
    | student_widths, teacher_widths | channels or units of the compared layers |
    | generator | draws first weights, then noise; on the CPU |

    Raises `UsageError` for weights that do not suit such a student.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        config: DistillConfig,
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
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.config = config
        self.temperature = temperature
        self.outputs = outputs
        self.generator = generator
        self.layers = frozenset(layer for name in self.weights for layer in LOSSES[name].layers)
        """Layers besides the outputs that a minibatch must hold of both networks."""
        for name in self.weights:
            for layer in LOSSES[name].layers:
                if layer not in student_widths or layer not in teacher_widths:
                    raise UsageError(f"--{flag_of(name)} compares {layer}, which the networks lack")
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
            self.discriminator = load_experimental("adversarial").Discriminator(num_actions)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The total (), and each loss () by its name, without its weight and without gradient."""
        computed = {name: _COMPUTE[name](self, minibatch) for name in self.weights}
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
        teacher, student = _outputs(minibatch)
        real, made = torch.softmax(teacher / self.temperature, dim=1), torch.softmax(student, dim=1)
        loss: Tensor = self.discriminator.losses(real, made)
        return loss


_COMPUTE: dict[str, Callable[[Objective, Minibatch], Tensor]] = {
    "kl": Objective._kl,
    "hard": lambda _, minibatch: losses.hard_label(*_outputs(minibatch)),
    "hinton": Objective._hinton,
    "centred": lambda _, minibatch: losses.centred_regression(*_outputs(minibatch)),
    "regression": lambda _, minibatch: losses.regression(*_outputs(minibatch)),
    "noisy": Objective._noisy,
    "hint": lambda objective, minibatch: objective._hint(minibatch, "conv3"),
    "hint_dense": lambda objective, minibatch: objective._hint(minibatch, "hidden"),
    "attention": Objective._attention,
    "distance": lambda _, minibatch: losses.relational_distance(*_hidden(minibatch)),
    "angle": lambda _, minibatch: losses.relational_angle(*_hidden(minibatch)),
    "adversarial": Objective._adversarial,
    "mutual": lambda _, minibatch: losses.mutual(
        _given(minibatch.peers), minibatch.student["outputs"]
    ),
}


def _outputs(minibatch: Minibatch) -> tuple[Tensor, Tensor]:
    return minibatch.teacher["outputs"], minibatch.student["outputs"]


def _hidden(minibatch: Minibatch) -> tuple[Tensor, Tensor]:
    return minibatch.teacher["hidden"], minibatch.student["hidden"]


def _given(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("a loss needs a part of the minibatch that is not given")
    return tensor
