"""Optimizers whose state exists before the first step and is restored in place.

A captured step finds its averages at the addresses it was captured with, and a fused optimizer
walks through weights and averages in the order in which both lie in memory.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ebu.subnormals import flush_subnormals


class CenteredRMSProp(torch.optim.Optimizer):
    """RMSProp of Graves 2013 (eq. 38-40) without momentum, as in DQN 2015 and EBU.

    m <- rho m + (1 - rho) g;  v <- rho v + (1 - rho) g^2;  w <- w - lr g / sqrt(v - m^2 + eps)

    torch's own RMSprop adds epsilon outside the root, which is another step size altogether.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, rho: float = 0.95, epsilon: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "rho": rho, "epsilon": epsilon})
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight] = {
                    "mean": torch.zeros_like(weight),
                    "square": torch.zeros_like(weight),
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step on the gradients as they stand."""
        for group in self.param_groups:
            weights = list(group["params"])
            gradients = [weight.grad for weight in weights]
            means = [self.state[weight]["mean"] for weight in weights]
            squares = [self.state[weight]["square"] for weight in weights]
            torch._foreach_lerp_(means, gradients, 1 - group["rho"])
            torch._foreach_mul_(squares, group["rho"])
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - group["rho"])
            variances = torch._foreach_addcmul(squares, means, means, -1.0)
            # Rounding can leave a variance a little below zero; epsilon covers it.
            torch._foreach_add_(variances, group["epsilon"])
            torch._foreach_sqrt_(variances)
            torch._foreach_addcdiv_(weights, gradients, variances, -group["lr"])


class _Adam(torch.optim.AdamW):
    """Flushes subnormal numbers on the CPU.

    Averages of the gradients of units that no longer fire shrink to them and stay; a step then
    takes ten times as long.
    """

    def step(self, closure: Any = None) -> Any:
        if self.param_groups[0]["params"][0].is_cuda:
            return super().step(closure)
        with flush_subnormals():
            return super().step(closure)


def adam(
    weights: Sequence[Tensor],
    *,
    learning_rate: float,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    capturable: bool = False,
) -> torch.optim.Optimizer:
    """Fused Adam (Kingma, Ba 2015), with weight decay AdamW (Loshchilov, Hutter 2019).

    `capturable`: its steps become part of CUDA graphs.
    """
    optimizer = _Adam(
        weights,
        lr=learning_rate,
        eps=epsilon,
        weight_decay=weight_decay,
        fused=True,
        capturable=capturable,
    )
    for weight in weights:
        optimizer.state[weight] = {
            "step": torch.zeros((), device=weight.device),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    return optimizer


def averages_of(
    optimizer: torch.optim.Optimizer, module: nn.Module
) -> dict[str, dict[str, Tensor]]:
    """What an optimizer keeps of each of a module's weights, by their names."""
    return {name: dict(optimizer.state[weight]) for name, weight in module.named_parameters()}


@torch.no_grad()
def load_averages(
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
    averages: Mapping[str, Mapping[str, Any]],
) -> None:
    """Take up what `averages_of` gave. Raises `KeyError` or `RuntimeError` for another module's."""
    for name, weight in module.named_parameters():
        for slot, value in averages[name].items():
            optimizer.state[weight][slot].copy_(value)
