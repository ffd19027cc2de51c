"""Optimizers whose state exists before the first step and is restored in place.

A captured step finds its averages at the addresses it was captured with, and a fused optimizer
walks through weights and averages in the order in which both lie in memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ebu.subnormals import flush_subnormals

RHO = 0.95
"""How slowly the averages of `CenteredRMSProp` move (Mnih et al. 2015)."""


class Optimizer(ABC):
    """Changes weights by their gradients; weights without one are left as they are.

    Not a `torch.optim.Optimizer`: making one imports torch's compiler, a second of every start, and
    its bookkeeping is a fifth of an update of a small network (docs/performance_design.md).

    | attribute | meaning |
    | --- | --- |
    | state | what it keeps of each weight, by the names of its slots |
    | learning_rate | step size, which may change between steps |
    """

    def __init__(self, weights: Iterable[Tensor], learning_rate: float) -> None:
        self.state = {weight: self._slots_of(weight) for weight in weights}
        self.learning_rate = learning_rate

    @abstractmethod
    def _slots_of(self, weight: Tensor) -> dict[str, Tensor]:
        """What is kept of a weight before the first step."""

    @abstractmethod
    def _take_step(
        self, weights: list[Tensor], gradients: list[Tensor], slots: dict[str, list[Tensor]]
    ) -> None:
        """Change weights and slots in place."""

    @torch.no_grad()
    def step(self) -> None:
        """Take one step on the gradients as they stand."""
        kept = {weight: slots for weight, slots in self.state.items() if weight.grad is not None}
        if kept:
            names = next(iter(kept.values()))
            self._take_step(
                list(kept),
                [weight.grad for weight in kept],  # type: ignore[misc]
                {name: [slots[name] for slots in kept.values()] for name in names},
            )

    def zero_grad(self) -> None:
        """Let no weight have a gradient."""
        for weight in self.state:
            weight.grad = None


class CenteredRMSProp(Optimizer):
    """RMSProp of Graves 2013 (eq. 38-40) without momentum, as in DQN 2015 and EBU.

    m <- rho m + (1 - rho) g;  v <- rho v + (1 - rho) g^2;  w <- w - lr g / sqrt(v - m^2 + eps)

    torch's own RMSprop adds epsilon outside the root, which is another step size altogether.
    """

    def __init__(
        self, weights: Iterable[Tensor], *, learning_rate: float, epsilon: float = 0.01
    ) -> None:
        super().__init__(weights, learning_rate)
        self.epsilon = epsilon

    def _slots_of(self, weight: Tensor) -> dict[str, Tensor]:
        return {"mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}

    def _take_step(
        self, weights: list[Tensor], gradients: list[Tensor], slots: dict[str, list[Tensor]]
    ) -> None:
        means, squares = slots["mean"], slots["square"]
        torch._foreach_lerp_(means, gradients, 1 - RHO)
        torch._foreach_mul_(squares, RHO)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - RHO)
        variances = torch._foreach_addcmul(squares, means, means, -1.0)
        # Rounding can leave a variance a little below zero; epsilon covers it.
        torch._foreach_add_(variances, self.epsilon)
        torch._foreach_sqrt_(variances)
        torch._foreach_addcdiv_(weights, gradients, variances, -self.learning_rate)


class Adam(Optimizer):
    """Adam (Kingma, Ba 2015), with weights that decay AdamW (Loshchilov, Hutter 2019).

    A step is one call of torch's fused kernel. On the CPU it takes subnormal numbers as 0: averages
    of the gradients of units that no longer fire shrink to them and stay, and a step then takes ten
    times as long.
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        *,
        learning_rate: float,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        decayed: Iterable[Tensor] = (),
    ) -> None:
        super().__init__(weights, learning_rate)
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self._decayed = set(decayed)

    def _slots_of(self, weight: Tensor) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), device=weight.device),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }

    def _take_step(
        self, weights: list[Tensor], gradients: list[Tensor], slots: dict[str, list[Tensor]]
    ) -> None:
        with nullcontext() if weights[0].is_cuda else flush_subnormals():
            torch._foreach_add_(slots["step"], 1)
            if self.weight_decay:
                decayed = [weight for weight in weights if weight in self._decayed]
                torch._foreach_mul_(decayed, 1 - self.learning_rate * self.weight_decay)
            torch._fused_adamw_(
                weights,
                gradients,
                slots["exp_avg"],
                slots["exp_avg_sq"],
                [],
                slots["step"],
                lr=self.learning_rate,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.0,
                eps=self.epsilon,
                amsgrad=False,
                maximize=False,
            )


def averages_of(optimizer: Optimizer, module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """What an optimizer keeps of each of a module's weights, by their names."""
    return {name: dict(optimizer.state[weight]) for name, weight in module.named_parameters()}


@torch.no_grad()
def load_averages(
    optimizer: Optimizer,
    module: nn.Module,
    averages: Mapping[str, Mapping[str, Any]],
) -> None:
    """Take up what `averages_of` gave. Raises `KeyError` or `RuntimeError` for another module's."""
    for name, weight in module.named_parameters():
        for slot, value in averages[name].items():
            optimizer.state[weight][slot].copy_(value)
