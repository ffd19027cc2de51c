"""K learners as one: K Q-networks that take a gradient step together on the same states."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from agents.learner import Learner, Trained
from agents.settings import LearnerConfig

IN_TURN = {"cpu"}
"""Kinds of device on which K networks compute one after the other instead of in one pass.

A processor that is busy with the arithmetic of one network gains nothing from fewer launches, and
loses in bfloat16 and with many networks (docs/performance_design.md). In turn each network learns
what it would alone, to the last bit.
"""


class StackedNetworks(nn.Module):
    """K networks of one kind in one pass: states (B, stack, *frame_shape) → values (K, B, A).

    Every parameter has a leading axis K; its name is that in a single network, after `networks.`.
    The first convolution is one with K times the filters, since the networks share its input; later
    ones are grouped, linear layers are batched products: the number of launches is that of one.
    On devices `IN_TURN` the pass is one of each network, without gradients.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.num_networks = len(networks)
        weights = [dict(network.named_parameters()) for network in networks]
        # Holds the stacked parameters; passes put those of single networks in their place.
        self.networks = networks[0]
        for path in weights[0]:
            layer, _, name = path.rpartition(".")
            stacked = nn.Parameter(_stacked([each[path].detach() for each in weights]))
            setattr(self.networks.get_submodule(layer), name, stacked)

    def forward(self, states: Tensor) -> Tensor:
        device = states.device.type
        if device in IN_TURN:
            of_each = map(self.weights_of, range(self.num_networks))
            return torch.stack([self.one(weights, states) for weights in of_each])
        autocast = torch.is_autocast_enabled(device)
        weights = dict(self.networks.named_parameters())
        with _LayersIn(device) if autocast else nullcontext():
            values: Tensor = vmap(lambda one: functional_call(self.networks, one, (states,)))(
                weights
            )
        return values

    def one(self, weights: dict[str, Tensor], states: Tensor) -> Tensor:
        """Action values (B, A) of states (B, stack, *frame_shape) with the weights of one."""
        values: Tensor = functional_call(self.networks, weights, (states,))
        return values

    def weights_of(self, index: int) -> dict[str, Tensor]:
        """The parameters of one of the networks, named as in a single network; views, no copies."""
        return {name: stacked.detach()[index] for name, stacked in self.networks.named_parameters()}


class _Single(NamedTuple):
    """One of K learners by itself.

    | field | meaning |
    | --- | --- |
    | weights | by their names, what its network computes with |
    | trained | how they change |
    """

    weights: dict[str, Tensor]
    trained: Trained


class StackedLearner(Learner):
    """K learners that take every gradient step together, on the same states and actions.

    Each has its own online and target network, initial weights, optimizer averages, targets and
    loss, and learns what it would learn alone; the target networks follow at the same time.
    Arguments are those of `Learner` and the number K of learners. Shapes:

    | method | takes | gives |
    | --- | --- | --- |
    | values, target_values | states (B, stack, *frame_shape) | (K, B, A) float32 |
    | update | states, actions (B,) int64, targets (K, B) float32 | losses (K,), values (K, B) |
    """

    online: StackedNetworks
    _fast_online: StackedNetworks

    def __init__(
        self,
        config: LearnerConfig,
        *,
        num_learners: int,
        stack: int,
        frame_shape: tuple[int, ...],
        num_actions: int,
        device: torch.device,
        precision: str,
        rng: np.random.Generator,
    ) -> None:
        self.num_learners = num_learners
        super().__init__(
            config,
            stack=stack,
            frame_shape=frame_shape,
            num_actions=num_actions,
            device=device,
            precision=precision,
            rng=rng,
        )
        self._singles = self._singly() if device.type in IN_TURN else []

    @property
    def target_axes(self) -> tuple[int, ...]:
        return (self.num_learners,)

    def _built(self, build: Callable[[], nn.Module]) -> nn.Module:
        return StackedNetworks([build() for _ in range(self.num_learners)])

    def update(
        self, states: Tensor, actions: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if not self._singles:
            return super().update(states, actions, targets, weights)
        of_each = []
        for single, its_targets in zip(self._singles, targets, strict=True):
            network = functools.partial(self.online.one, single.weights)
            values = self._forward(network, states)
            of_each.append(self._descend(single.trained, values, actions, its_targets, weights))
        losses, values = map(torch.stack, zip(*of_each, strict=True))
        return losses, values

    def _singly(self) -> list[_Single]:
        """Each learner by itself: parts of the stacked weights and averages, and no copies."""
        singles = []
        for index in range(self.num_learners):
            weights = self._leaves(self.online, index)
            rounded = weights
            if self._fast_online is not self.online:
                rounded = self._leaves(self._fast_online, index)
            trained = Trained(
                list(weights.values()), list(rounded.values()), self._optimizer_of(weights)
            )
            singles.append(_Single(rounded, trained))
        columns = zip(*(single.trained.weights for single in singles), strict=True)
        for weight, parts in zip(self.online.parameters(), columns, strict=True):
            slots = [
                single.trained.optimizer.state[part]
                for single, part in zip(singles, parts, strict=True)
            ]
            for name in slots[0]:
                stacked = _stacked([slot[name] for slot in slots])
                self.optimizer.state[weight][name] = stacked
                for slot, part in zip(slots, stacked, strict=True):
                    slot[name] = part
        return singles

    @staticmethod
    def _leaves(networks: StackedNetworks, index: int) -> dict[str, Tensor]:
        weights = networks.weights_of(index)
        return {name: weight.requires_grad_() for name, weight in weights.items()}

    @torch.no_grad()
    def values_of(self, learners: Tensor, states: Tensor) -> Tensor:
        """Online action values (N, A) float32 of N states, each by its own learner.

        | argument | shape, dtype |
        | --- | --- |
        | learners | (N,) int64, whose values are asked for, on the learner's device |
        | states | (N, stack, *frame_shape) |
        """
        if not self._singles:
            # As many launches for all learners as for one, and of the same shapes every time.
            return self.values(states)[learners, torch.arange(len(states), device=self.device)]
        with self._autocast:
            by_learner = torch.cat(
                [
                    self.online.one(self._singles[k].weights, states[learners == k])
                    for k in learners.unique().tolist()
                ]
            )
        values = torch.empty_like(by_learner, dtype=torch.float32)
        values[learners.argsort(stable=True)] = by_learner.float()
        return values

    @torch.no_grad()
    def copy_weights(self, source: int) -> None:
        """Give all learners the online and the target network of one of them.

        Each keeps its own optimizer averages.
        """
        for weights in (*self.online.parameters(), *self.target.parameters()):
            weights.copy_(weights[source].clone())
        self.refresh()


class _LayersIn(TorchFunctionMode):
    """Layers compute in autocast's dtype, which inside vmap does not reach them all."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        is_layer = func in (functional.conv2d, functional.linear)
        if is_layer and torch.is_autocast_enabled(self.device_type):
            dtype = torch.get_autocast_dtype(self.device_type)
            args = [arg.to(dtype) if isinstance(arg, Tensor) else arg for arg in args]
        return func(*args, **(kwargs or {}))


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as (K, *shape), each with its strides.

    Convolutions run fastest in the layout their weights were given.
    """
    first = weights[0]
    stacked = torch.empty_strided(
        (len(weights), *first.shape), (first.numel(), *first.stride()), dtype=first.dtype
    )
    return torch.stack(list(weights), out=stacked)
