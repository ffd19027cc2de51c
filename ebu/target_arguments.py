"""Check the arguments of `ebu.targets` and align their axes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class TargetArguments(NamedTuple):
    """Valid arguments on the device of next_values; … are the batch axes of the data."""

    rewards: Tensor  # (…, T)
    next_values: Tensor  # (…, T, A)
    actions: Tensor  # (…, T)
    terminated: Tensor  # (…) bool, or integers of which 0 is false
    gamma: float
    beta: float | Tensor  # host number, or float64 whose axes end with the batch axes
    beta_may_be_zero: bool
    lengths: Tensor | None  # (…)
    lead: tuple[int, ...]  # the result's batch axes

    @property
    def beta_column(self) -> float | Tensor:
        """β with a last axis for the steps."""
        return self.beta if isinstance(self.beta, float) else self.beta.unsqueeze(-1)

    def last_and_valid(self) -> tuple[Tensor, Tensor]:
        """Whether each step is its segment's last, and is no padding: (…, T) or (T,) each."""
        steps = self.rewards.shape[-1]
        position = torch.arange(steps, device=self.rewards.device)
        if self.lengths is None:
            return position == steps - 1, position < steps
        lengths = self.lengths.unsqueeze(-1)
        return position == lengths - 1, position < lengths

    def next_actions(self) -> Tensor:
        """a_{k+1}, int64 (…, T); 0 at the end and in the padding."""
        following = torch.zeros_like(self.actions, dtype=torch.int64)
        following[..., :-1] = self.actions[..., 1:]
        last, valid = self.last_and_valid()
        return following.masked_fill_(last | ~valid, 0)

    def rows(self) -> "TargetArguments":
        """The same with one batch axis, as views where possible."""
        num_rows = math.prod(self.lead)

        def rows(tensor: Tensor, *shape: int) -> Tensor:
            return tensor.expand((*self.lead, *shape)).reshape((num_rows, *shape))

        steps, num_actions = self.next_values.shape[-2:]
        return self._replace(
            rewards=rows(self.rewards, steps),
            next_values=rows(self.next_values, steps, num_actions),
            actions=rows(self.actions, steps),
            terminated=rows(self.terminated),
            beta=self.beta if isinstance(self.beta, float) else rows(self.beta),
            lengths=None if self.lengths is None else rows(self.lengths),
            lead=(num_rows,),
        )


def check_arguments(
    rewards: Tensor,
    next_values: Tensor,
    actions: Tensor,
    terminated: Tensor,
    gamma: float,
    beta: float | Tensor,
    lengths: Tensor | None,
) -> TargetArguments:
    """Check arguments against the table in `ebu.targets`; ValueError if they do not fit."""
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma is {gamma}; it must lie in [0, 1]")
    if rewards.dim() < 1 or next_values.dim() < 2 or 0 in next_values.shape[-2:]:
        raise ValueError(
            f"rewards {_shape(rewards)} and next_values {_shape(next_values)} must be (…, T) "
            "and (…, T, A) with at least one step and one action"
        )
    batch, steps = rewards.shape[:-1], rewards.shape[-1]
    extra = next_values.dim() - rewards.dim() - 1
    if extra not in (0, 1) or next_values.shape[extra:-1] != rewards.shape:
        raise ValueError(
            f"next_values {_shape(next_values)} does not fit rewards {_shape(rewards)}; it must "
            "have their shape and a last axis of actions, at most one first axis of learners"
        )
    _require_shape("actions", actions, rewards.shape)
    _require_shape("terminated", terminated, batch)
    if lengths is not None:
        _require_shape("lengths", lengths, batch)
        if lengths.is_cpu:
            of_rows = lengths.flatten().tolist() if batch else [lengths.item()]
            if any(not 1 <= length <= steps for length in of_rows):
                raise ValueError(f"lengths must lie in [1, {steps}]: {of_rows}")

    lead = tuple(next_values.shape[:-2])
    if isinstance(beta, Tensor) and (beta.dim() > 0 or not beta.is_cpu):
        beta, beta_may_be_zero = _check_betas(beta)
        if beta.dim() == 1:
            if extra and next_values.shape[0] != beta.shape[0]:
                raise ValueError(
                    f"beta has {beta.shape[0]} values and next_values {_shape(next_values)} "
                    f"the values of {next_values.shape[0]} learners"
                )
            beta = beta.reshape(-1, *(1 for _ in batch))
        try:
            lead = tuple(torch.broadcast_shapes(beta.shape, lead))
        except RuntimeError as error:
            raise ValueError(
                f"beta {_shape(beta)} does not broadcast against the batch axes {lead}"
            ) from error
        beta = _on_same_device(next_values, beta)
    else:
        beta = float(beta)
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta is {beta}; it must lie in [0, 1]")
        beta_may_be_zero = beta == 0.0
    return TargetArguments(
        rewards=_on_same_device(next_values, rewards),
        next_values=next_values,
        actions=_on_same_device(next_values, actions),
        terminated=_on_same_device(next_values, terminated),
        gamma=gamma,
        beta=beta,
        beta_may_be_zero=beta_may_be_zero,
        lengths=None if lengths is None else _on_same_device(next_values, lengths),
        lead=lead,
    )


def _check_betas(beta: Tensor) -> tuple[Tensor, bool]:
    """β in float64, and whether one of its values may be 0; on an accelerator it always may."""
    if beta.numel() == 0:
        raise ValueError("beta holds no value")
    beta = beta.double()
    if not beta.is_cpu:
        return beta, True
    if not bool(((beta >= 0.0) & (beta <= 1.0)).all()):
        raise ValueError(f"beta is {beta.tolist()}; it must lie in [0, 1]")
    return beta, bool((beta == 0.0).any())


def _on_same_device(there: Tensor, tensor: Tensor) -> Tensor:
    """The tensor on the device of `there`; `is_cpu` is faster than comparing devices."""
    return tensor if there.is_cpu and tensor.is_cpu else tensor.to(there.device)


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} {_shape(tensor)} must have shape {tuple(shape)}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
