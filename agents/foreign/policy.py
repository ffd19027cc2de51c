"""What is known of a policy from elsewhere before it meets a game."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from agents.foreign.layers import Layers
from agents.foreign.layers import build as build_layers
from agents.trained import Outputs
from ebu.errors import EbuError

FAILURES = (Exception, SystemExit)
"""What other code may raise. One that asks to exit has failed: the command has not."""


class Answer(Protocol):
    """Outputs (B, A) of stacks (B, stack, *frame_shape) on the CPU."""

    def __call__(self, stacks: Tensor, /) -> Tensor: ...


class Called(nn.Module):
    """A policy that is computed by something else than torch: an ONNX file, or a function.

    Raises `EbuError`, when called, for outputs that are not (B, A) finite numbers.
    """

    def __init__(self, name: str, answer: Answer, num_actions: int) -> None:
        super().__init__()
        self.name = name
        self._answer = answer
        self._num_actions = num_actions

    def forward(self, stacks: Tensor) -> Tensor:
        try:
            outputs = torch.as_tensor(self._answer(stacks.cpu())).float()
        except EbuError:
            raise
        except FAILURES as error:
            raise EbuError(f"{self.name} failed: {failure_line(error)}") from error
        expected = (len(stacks), self._num_actions)
        if tuple(outputs.shape) != expected:
            raise EbuError(
                f"{self.name} gives outputs of shape {tuple(outputs.shape)} for {len(stacks)} "
                f"states, and not {expected}: one for each action of the game"
            )
        if not bool(outputs.isfinite().all()):
            raise EbuError(f"{self.name} gives outputs that are not finite")
        return outputs.to(stacks.device)


def failure_line(error: BaseException) -> str:
    """What other code raised, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@dataclass(frozen=True)
class ForeignPolicy:
    """A policy from elsewhere, and what its file says of itself; None: it does not say.

    | field | meaning |
    | --- | --- |
    | name | what messages and reports call it |
    | kind | whose it is: "Stable-Baselines3 DQN" |
    | policy | its layers, or what computes its outputs |
    | outputs | action values or logits |
    | num_actions | number of outputs |
    | steps | it was trained for; 0: it does not say |
    | game, protocol, action_set | that it was trained on |
    | digest | SHA-256 of its file, or of a function's module |
    """

    name: str
    kind: str
    policy: Layers | Answer
    outputs: Outputs | None
    num_actions: int | None
    steps: int = 0
    game: str | None = None
    protocol: str | None = None
    action_set: str | None = None
    digest: str | None = None

    def network(
        self, stack: int, frame_shape: tuple[int, ...], num_actions: int
    ) -> tuple[str | None, nn.Module]:
        """The network for these states, and its name if it is one of this project's.

        Raises `UsageError` for a policy over other states.
        """
        if isinstance(self.policy, Layers):
            return build_layers(self.policy, stack, frame_shape)
        return None, Called(self.name, self.policy, num_actions)
