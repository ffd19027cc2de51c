"""One gradient step on a Q-network: weights, target weights, optimizer.

The learner knows no episode and no game: it is given states, actions and targets.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.networks import FirstConvolution, OutputLayer, QNetwork, build_network
from agents.noisy import Noise, build_noisy_network, without_noise
from agents.optimizers import Adam, CenteredRMSProp, Optimizer, averages_of, load_averages
from agents.settings import LearnerConfig
from ebu.quantiles import quantile_huber
from ebu.run.ranks import SINGLE, Ranks
from ebu.state_checks import check_state

NEW_SHARE = 0.2
"""Of a new draw in the convolutions after a reset (D'Oro et al. 2023)."""

MOST_BETWEEN_AVERAGED = 16
"""Updates from one network to the next that goes into the averaged weights."""


class Learner:
    """A Q-network, its target network and its optimizer.

    | argument | meaning |
    | --- | --- |
    | stack, frame_shape | states are (B, stack, *frame_shape), uint8 or float32 |
    | num_actions | number of actions A |
    | config | network, loss and optimizer |
    | device | of weights and states |
    | precision | `bfloat16` for the network's arithmetic but its output layer's; any other leaves |
    | | it in float32, as weights, targets and losses always are |
    | rng | draws the initial weights |
    | ranks | average every gradient over their parts of the minibatch |
    """

    def __init__(
        self,
        config: LearnerConfig,
        *,
        stack: int,
        frame_shape: tuple[int, ...],
        num_actions: int,
        device: torch.device,
        precision: str,
        rng: np.random.Generator,
        ranks: Ranks = SINGLE,
    ) -> None:
        self.config = config
        self.ranks = ranks
        self.device = device
        self.updates = 0
        self._autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
        )
        self._seed = int(rng.integers(2**63))
        self._build = functools.partial(
            build_noisy_network if config.noisy else build_network,
            config.network,
            stack=stack,
            frame_shape=frame_shape,
            num_actions=num_actions,
            output_scale=config.output_scale,
            quantiles=config.quantiles,
        )
        generator = torch.Generator().manual_seed(self._seed)
        build = functools.partial(self._build, generator=generator)
        self.online, self.target = (self._built(build).to(device) for _ in range(2))
        self.target.requires_grad_(False)
        # Passes compute with these. In bfloat16 they are copies, rounded once when weights change
        # instead of in every pass.
        self._fast_online, self._fast_target = self.online, self.target
        if precision == "bfloat16":
            self._fast_online = _rounded(copy.deepcopy(self.online))
            self._fast_target = _rounded(copy.deepcopy(self.target))
        self.noise = Noise((self._fast_online, self._fast_target), (self._seed, 1))
        self.sync_target()
        self.average, self._average_every = None, 0
        if config.average_updates:
            self.average = copy.deepcopy(self.online)
            # So that an average is of a hundred networks or more, and groups of updates stay whole.
            self._average_every = min(max(config.average_updates // 100, 1), MOST_BETWEEN_AVERAGED)
        self.optimizer = self._optimizer_of(dict(self.online.named_parameters()))
        self._trained = Trained(
            list(self.online.parameters()),
            list(self._fast_online.parameters()),
            self.optimizer,
            ranks,
        )

    def _built(self, build: Callable[[], nn.Module]) -> nn.Module:
        """The trained module: a network, or several from repeated calls."""
        return build()

    def _optimizer_of(self, weights: Mapping[str, Tensor]) -> Optimizer:
        config = self.config
        if config.optimizer == "rmsprop":
            return CenteredRMSProp(
                weights.values(),
                learning_rate=config.learning_rate,
                epsilon=config.optimizer_epsilon,
            )
        return Adam(
            weights.values(),
            learning_rate=config.learning_rate,
            epsilon=config.optimizer_epsilon,
            weight_decay=config.weight_decay,
            decayed=[
                weight for name, weight in without_noise(weights).items() if name.endswith("weight")
            ],
        )

    @torch.no_grad()
    def values(self, states: Tensor) -> Tensor:
        """Online action values (B, A) float32 of states (B, stack, *frame_shape)."""
        return self._forward(self._fast_online, states)

    @torch.no_grad()
    def playing_values(self, states: Tensor) -> Tensor:
        """As `values`, without noise, and with the averaged weights if there are any."""
        network = self._fast_online if self.average is None else self.average
        network.eval()
        values = self._forward(network, states)
        network.train()
        return values

    @torch.no_grad()
    def target_values(self, states: Tensor) -> Tensor:
        """The target network's action values (B, A) float32 of states (B, stack, *frame_shape)."""
        return self._forward(self._fast_target, states)

    @torch.no_grad()
    def target_quantiles(self, states: Tensor) -> Tensor:
        """The target network's quantiles (N, B, A) float32 of states (B, stack, *frame_shape)."""
        return self._forward(_quantiles_of(self._fast_target), states).permute(2, 0, 1)

    def update(
        self, states: Tensor, actions: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take one gradient step of the Huber loss between Q(s, a) and the targets.

        | argument | shape, dtype |
        | --- | --- |
        | states | (B, stack, *frame_shape) |
        | actions | (B,) int64 |
        | targets | (B,) float32; with quantiles (N, B), for the quantile Huber loss |
        | weights | (B,) float32, by which the losses are multiplied; all 1 if absent |

        Returns the loss () and the values Q(s, a) before the step, shaped as the targets, on the
        device.
        """
        network = self._fast_online
        if self.config.quantiles:
            values = self._forward(_quantiles_of(network), states).permute(2, 0, 1)
        else:
            values = self._forward(network, states)
        taken = self._descend(self._trained, values, actions, targets, weights)
        if self.config.target_average:
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.target.parameters()),
                    list(self.online.parameters()),
                    self.config.target_average,
                )
                _round_to(self._fast_target, self.target)
        return taken

    @property
    def target_axes(self) -> tuple[int, ...]:
        """The axes of targets before the last, which counts transitions."""
        return (self.config.quantiles,) if self.config.quantiles else ()

    @property
    def longest_group(self) -> int:
        """Updates that may be made before they are counted: up to a copy, reset or average."""
        config = self.config
        if config.target_average:
            return 1
        periods = (config.target_sync_updates, config.reset_updates, self._average_every)
        return min(every - self.updates % every for every in periods if every)

    @torch.no_grad()
    def count_updates(self, count: int) -> bool:
        """Update the averaged weights and, when it is due, the target or, in a reset, the network.

        Call after updates, at most `longest_group` of them. Returns whether there was a reset.
        """
        self.updates += count
        if self.average is not None and self.updates % self._average_every == 0:
            # Networks since the last reset, which were not averaged with those before it.
            every = self.config.reset_updates
            since = (self.updates % every or every) if every else self.updates
            share = min(1.0, self._average_every / min(since, self.config.average_updates))
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.online.parameters()), share
            )
        if self.config.reset_updates and self.updates % self.config.reset_updates == 0:
            self._reset()
            return True
        if not self.config.target_average and self.updates % self.config.target_sync_updates == 0:
            self.sync_target()
        return False

    def _reset(self) -> None:
        """Reinitialise the head, shrink the torso towards a new draw, clear the optimizer.

        The target and the averaged weights start from the result.
        """
        generator = torch.Generator().manual_seed((self._seed + self.updates) % 2**63)
        drawn = self._build(generator=generator).to(self.device)
        for part, new, share in zip(
            self.online.children(), drawn.children(), (NEW_SHARE, 1.0), strict=True
        ):
            for weight, drawn_weight in zip(part.parameters(), new.parameters(), strict=True):
                weight.lerp_(drawn_weight, share)
        for slots in self.optimizer.state.values():
            for slot in slots.values():
                slot.zero_()
        self._start_copies()

    def tensors(self) -> list[Tensor]:
        """All tensors that an update changes."""
        networks = [self.online, self._fast_online]
        if self.config.target_average:
            networks += [self.target, self._fast_target]
        return [*(weight for each in networks for weight in each.parameters()), *self._slots()]

    def _slots(self) -> Iterator[Tensor]:
        """What the optimizer keeps of each weight."""
        for weight in self.online.parameters():
            yield from self.optimizer.state[weight].values()

    def _start_copies(self) -> None:
        """Let the target and the averaged weights start from the online ones."""
        self.sync_target()
        if self.average is not None:
            self.average.load_state_dict(self.online.state_dict())

    @torch.no_grad()
    def sync_target(self) -> None:
        """Copy the online weights to the target network."""
        torch._foreach_copy_(list(self.target.parameters()), list(self.online.parameters()))
        self.refresh()

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take these weights of one plain network; several learners all start from them.

        Raises ValueError where they are of another network.
        """
        every = self.online.state_dict()
        try:
            self.online.load_state_dict(
                every
                | {
                    name: weights[name.removeprefix("networks.")].expand_as(own)
                    for name, own in without_noise(every).items()
                }
            )
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"these weights are of another network: {error}") from error
        self._start_copies()

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute with the weights as they are now; call after they were set from outside."""
        _round_to(self._fast_online, self.online)
        _round_to(self._fast_target, self.target)

    def _forward(self, network: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
        with self._autocast:
            values = network(states)
        return values.float()

    def _descend(
        self,
        trained: "Trained",
        values: Tensor,
        actions: Tensor,
        targets: Tensor,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """What `update` does with the network's values (B, A), or quantiles (N, B, A)."""
        actions = actions.expand(values.shape[:-1])
        values = values.gather(-1, actions[..., None]).squeeze(-1)
        delta = self.config.huber_delta
        if self.config.quantiles:
            losses = quantile_huber(values, targets, delta=delta)
        else:
            losses = functional.huber_loss(values, targets, reduction="none", delta=delta)
        if weights is not None:
            losses = losses * weights
        loss = losses.sum(-1) if self.config.loss_reduction == "sum" else losses.mean(-1)
        if self.config.loss_reduction == "sum" and not self.ranks.is_single:
            # Its mean over the ranks is the sum over the whole minibatch.
            loss = loss * self.ranks.world_size
        trained.descend(loss)
        return loss.detach(), values.detach()

    @torch.no_grad()
    def share(self) -> None:
        """Take the weights and averages of the first rank: of a start, or of a checkpoint."""
        if self.ranks.is_single:
            return
        networks = [self.online, self.target, *([] if self.average is None else [self.average])]
        weights = [weight for network in networks for weight in network.parameters()]
        self.ranks.broadcast([*weights, *self._slots()])
        self.refresh()

    def state_dict(self) -> dict[str, Any]:
        """What changes; without what `share` gives to every rank but the first."""
        shared = {}
        if self.ranks.is_first:
            shared = {
                "online": dict(self.online.state_dict()),
                "target": dict(self.target.state_dict()),
                "optimizer": averages_of(self.optimizer, self.online),
                **({} if self.average is None else {"average": dict(self.average.state_dict())}),
            }
        return {"updates": self.updates, **shared, **self.noise.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; several ranks then `share`."""
        check_state(state, self.state_dict(), path="learner/")
        self.updates = state["updates"]
        self.noise.load_state_dict(state)
        if not self.ranks.is_first:
            return
        self.online.load_state_dict(state["online"])
        self.target.load_state_dict(state["target"])
        self.refresh()
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        load_averages(self.optimizer, self.online, state["optimizer"])


class Trained:
    """Weights, their optimizer, and what the loss is a function of.

    | argument | meaning |
    | --- | --- |
    | weights | float32, with gradients of their own if they are rounded |
    | rounded | the same tensors, or copies in lower precision: the leaves of the loss |
    | ranks | average the gradient, in one tensor, before the step |
    """

    def __init__(
        self,
        weights: list[Tensor],
        rounded: list[Tensor],
        optimizer: Optimizer,
        ranks: Ranks = SINGLE,
    ) -> None:
        self.weights, self.rounded, self.optimizer, self._ranks = weights, rounded, optimizer, ranks
        self._gradient = torch.empty(0)
        self._gradients: list[Tensor] = []
        if not ranks.is_single:
            self._gradient, self._gradients = _in_one_tensor(weights)

    def descend(self, losses: Tensor) -> None:
        """Take one step down the gradient of losses () or (K,)."""
        for leaf in self.rounded:
            leaf.grad = None
        losses.backward(torch.ones_like(losses))
        if self.rounded[0] is self.weights[0] and self._ranks.is_single:
            self.optimizer.step()
            return
        with torch.no_grad():
            self._gradients = self._gradients or [torch.empty_like(each) for each in self.weights]
            torch._foreach_copy_(
                self._gradients,
                [leaf.grad for leaf in self.rounded],  # type: ignore[misc]
            )
            self._ranks.average(self._gradient)
            for weight, gradient in zip(self.weights, self._gradients, strict=True):
                weight.grad = gradient
            self.optimizer.step()
            if self.rounded[0] is not self.weights[0]:
                torch._foreach_copy_(self.rounded, self.weights)


def _in_one_tensor(weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A tensor (n,) for all gradients, and its parts, each laid out in memory as its weight."""
    whole = torch.empty(sum(map(Tensor.numel, weights)), device=weights[0].device)
    parts, start = [], 0
    for weight in weights:
        parts.append(whole.as_strided(weight.shape, weight.stride(), start))
        start += weight.numel()
    return whole, parts


def _quantiles_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
    assert isinstance(network, QNetwork)
    return network.quantiles


def _round_to(fast: nn.Module, network: nn.Module) -> None:
    """Copy a network's weights to what passes compute with, unless that is the network itself."""
    if fast is not network:
        torch._foreach_copy_(list(fast.parameters()), list(network.parameters()))


def _rounded(network: nn.Module) -> nn.Module:
    """The network with the weights of its layers in bfloat16, but for those of float32."""
    # The first convolution divides its weights, in float32, before they are rounded.
    kept = (FirstConvolution, OutputLayer)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, kept):
            module.to(torch.bfloat16)
    return network
