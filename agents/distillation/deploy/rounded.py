"""Students that are trained through the rounding of their int8 file.

Quantisation-aware training (Jacob et al. 2018, "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference"): forward with weights and activations rounded as
`export.quantise` rounds them, backward as if they were not (straight-through).
"""

import torch
from torch import Tensor, nn

from agents.distillation.students import Student

_LEVELS = 255


class RoundedStudent(Student):
    """A student whose outputs are those of its int8 file while it is trained; else its own.

    Weights have a scale for each output channel, activations after a ReLU one for the minibatch.
    Over vectors and grids the first layer is not rounded, as in the file.
    """

    def forward(self, states: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(states)
        relus = [layer for layer in self.network.modules() if isinstance(layer, nn.ReLU)]
        hooks = [layer.register_forward_hook(_round_activation) for layer in relus]
        try:
            outputs: Tensor = torch.func.functional_call(
                self.network, self._rounded_weights(states.ndim == 4), (states,)
            )
        finally:
            for hook in hooks:
                hook.remove()
        return outputs.float()

    def _rounded_weights(self, images: bool) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = dict(self.network.named_parameters())
        names = [name for name, weight in weights.items() if weight.ndim > 1]
        for name in names if images else names[1:]:
            weights[name] = round_weight(weights[name])
        return weights


def round_weight(weight: Tensor) -> Tensor:
    """A weight (outputs, …) as a byte around 128 for each output channel."""
    largest = weight.detach().flatten(1).abs().amax(1)
    scale = (2 * largest / _LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    zero = torch.full_like(scale, 128, dtype=torch.int32)
    rounded: Tensor = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, 0, _LEVELS)
    return rounded


def _round_activation(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """An activation at 256 levels from 0 to its largest."""
    values = output.float()
    scale = (values.detach().amax() / _LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    zero = torch.zeros((), dtype=torch.int32, device=values.device)
    rounded: Tensor = torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, _LEVELS)
    return rounded.to(output.dtype)
