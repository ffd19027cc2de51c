"""A Python function as a policy: typed as `module:function`, called with stacks of frames."""

import hashlib
import importlib
import re
from pathlib import Path

import torch
from torch import Tensor

from agents.foreign.policy import FAILURES, Answer, ForeignPolicy, failure_line
from agents.trained import Outputs
from ebu.errors import UsageError

TYPED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def read(typed: str, outputs: Outputs | None) -> ForeignPolicy:
    """The policy of a function of stacks (B, stack, *frame_shape), as numpy has them, that returns
    (B, A): one value, or logit, for each action. Its digest is that of its module's file, if any.

    Raises `UsageError` where it cannot be imported.
    """
    name_of_module, _, name = typed.partition(":")
    try:
        module = importlib.import_module(name_of_module)
        function = getattr(module, name)
        file = Path(getattr(module, "__file__", None) or "")
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    # The module's own code runs.
    except FAILURES as error:
        raise UsageError(f"{typed} cannot be imported: {failure_line(error)}") from error
    if not callable(function):
        raise UsageError(f"{typed} is no function of stacks of frames")

    def answer(stacks: Tensor) -> Tensor:
        return torch.as_tensor(function(stacks.numpy()))

    given: Answer = answer
    return ForeignPolicy(typed, "function", given, outputs, num_actions=None, digest=digest)
