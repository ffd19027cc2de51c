"""A Python function as a policy: typed as `module:function`, called with stacks of frames."""

import importlib
import re

import torch
from torch import Tensor

from agents.foreign.policy import Answer, ForeignPolicy
from agents.trained import Outputs
from ebu.errors import UsageError

TYPED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def read(typed: str, outputs: Outputs | None) -> ForeignPolicy:
    """The policy of a function of stacks (B, stack, *frame_shape), as numpy has them, that returns
    (B, A): one value, or logit, for each action.

    Raises `UsageError` where it cannot be imported.
    """
    module, _, name = typed.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    # The module's own code runs.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{typed} cannot be imported: {reason}") from error
    if not callable(function):
        raise UsageError(f"{typed} is no function of stacks of frames")

    def answer(stacks: Tensor) -> Tensor:
        return torch.as_tensor(function(stacks.numpy()))

    given: Answer = answer
    return ForeignPolicy(typed, "function", given, outputs, num_actions=None)
