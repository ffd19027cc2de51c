"""Noisy layers: noise of learned size on weights explores in place of random actions.

Fortunato et al., *Noisy Networks for Exploration*, ICLR 2018, with factorised noise. What is random
is drawn on the host, from a generator that is saved.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.networks import Dense, QNetwork, build_network
from ebu.staging import Staging

FIRST_SCALE = 0.5
"""Scales of the noise at first, over the root of the number of inputs (Hessel et al. 2018)."""


class WeightNoise(Dense):
    """What noise adds to the outputs of a dense layer: e_out * (S (e_in * x) + s), by element.

    That is the layer with S * e_out e_in^T for its weights and s * e_out for its biases (eq. 9-11).

    | attribute | shape | meaning |
    | --- | --- | --- |
    | weight, bias | (q, p), (q,) | the scales S and s of the noise, which are trained |
    | of_inputs, of_outputs | (p,), (q,) | e_in, e_out: noise f(x) = sgn(x) √abs(x), x normal |
    """

    of_inputs: Tensor
    of_outputs: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        for scales in self.parameters():
            nn.init.constant_(scales, FIRST_SCALE / math.sqrt(layer.in_features))
        self.register_buffer("of_inputs", torch.zeros(layer.in_features), persistent=False)
        self.register_buffer("of_outputs", torch.zeros(layer.out_features), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.of_outputs * super().forward(self.of_inputs * features)


def build_noisy_network(name: str, **arguments: Any) -> QNetwork:
    """As `build_network`, with noise on the dense layers of the head; in `eval` mode without it.

    Weights without the noise have the names that they have in a plain network.
    """
    network = build_network(name, **arguments)
    _, head = network
    for layer in [each for each in head.modules() if isinstance(each, nn.Linear)]:
        layer.noise = WeightNoise(layer)
        # The layer itself stays as it is, and gives the same bits without its noise.
        layer.register_forward_hook(_add_noise)
    return network


def _add_noise(layer: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
    if not layer.training:
        return outputs
    noise: Tensor = layer.get_submodule("noise")(*inputs)
    return outputs + noise


def without_noise(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a plain network among those of a noisy one."""
    return {name: weight for name, weight in weights.items() if ".noise." not in name}


class Noise:
    """The noise of several networks, all of it independent; nothing if none is noisy."""

    def __init__(self, networks: Sequence[nn.Module], seed: Sequence[int]) -> None:
        layers = [layer for network in networks for layer in network.modules()]
        noisy = [layer for layer in layers if isinstance(layer, WeightNoise)]
        self._places = [each for layer in noisy for each in (layer.of_inputs, layer.of_outputs)]
        self._sizes = [len(place) for place in self._places]
        self._rng = np.random.default_rng(seed)

    def draw(self, times: int) -> dict[str, np.ndarray]:
        """Draw the argument of `put` several times, a row for each: (times, size) float32."""
        if not self._places:
            return {}
        normal = self._rng.standard_normal((times, sum(self._sizes)), dtype=np.float32)
        return {"noise": np.copysign(np.sqrt(np.abs(normal)), normal)}

    def put(self, noise: Tensor) -> None:
        """Let the networks compute with this noise (size,)."""
        torch._foreach_copy_(self._places, list(noise.split(self._sizes)))

    def renew(self, staging: Staging) -> None:
        """Draw new noise and compute with it."""
        for drawn in self.draw(1).values():
            self.put(staging.upload(drawn)[0])

    def state_dict(self) -> dict[str, Any]:
        return {"noise": self._rng.bit_generator.state} if self._places else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._places:
            self._rng.bit_generator.state = state["noise"]
