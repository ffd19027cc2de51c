"""Any ONNX file as a policy: its one input takes states, one output has a number for each action.

| input | what it is given |
| --- | --- |
| (B, stack, H, W), (B, H, W, stack) | frames, oldest first, before or after the pixels |
| (B, D), (B, stack, D) | numbers |
| uint8, float | pixels from 0 to 255, or from 0 to 1 where that is asked for |

A batch size of 1 in the file is respected. Files that this project exported name their outputs,
game and protocol.
"""

from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor

from agents.distillation.deploy.onnx_policy import open_session
from agents.foreign.policy import ForeignPolicy
from agents.trained import Outputs
from ebu.run.reading import RefusedFileError

_INPUTS = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(double)": np.float64}
_FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")
_VALUES, _LOGITS = ("values", "q_values", "q"), ("logits", "action_logits", "policy_logits")


class OnnxAnswer:
    """What an ONNX file answers for stacks, whatever the layout of its input."""

    def __init__(self, content: bytes, name: str, *, unit_pixels: bool) -> None:
        self._session = open_session(content, name)
        self._unit_pixels = unit_pixels
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _INPUTS:
            raise RefusedFileError("it does not have one input of bytes or floats")
        (self._input,) = inputs
        if isinstance(self._input.shape[0], int) and self._input.shape[0] != 1:
            raise RefusedFileError(f"it takes {self._input.shape[0]} states at once alone")
        self.output = self._choose_output()
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.about: dict[str, str] = dict(metadata)

    def _choose_output(self) -> Any:
        """The output with a number for each action: the only one it may be, or one by its name."""
        found = [
            each
            for each in self._session.get_outputs()
            if each.type in _FLOATS and len(each.shape) == 2 and each.shape[1] != 1
        ]
        named = [each for each in found if each.name.lower() in (*_VALUES, *_LOGITS)]
        if len(found) > 1 and len(named) == 1:
            found = named
        if len(found) != 1:
            names = ", ".join(each.name for each in self._session.get_outputs())
            raise RefusedFileError(f"of its outputs ({names}) not one has a number for each action")
        return found[0]

    def __call__(self, stacks: Tensor) -> Tensor:
        array = self._arrange(stacks.numpy())
        parts = np.split(array, len(array)) if self._input.shape[0] == 1 else [array]
        answers = [self._session.run([self.output.name], {self._input.name: p})[0] for p in parts]
        return torch.from_numpy(np.concatenate(answers))

    def _arrange(self, stacks: np.ndarray) -> np.ndarray:
        batch, stack, *shape = stacks.shape
        layouts = {
            (stack, *shape): stacks,
            (*shape, stack): np.moveaxis(stacks, 1, -1),
            (stack * int(np.prod(shape)),): stacks.reshape(batch, -1),
        }
        wanted = self._input.shape[1:]
        fitting = [array for sizes, array in layouts.items() if _fits(sizes, wanted)]
        if not fitting:
            raise ValueError(f"it takes states of {wanted}, and the game shows {[stack, *shape]}")
        array = fitting[0]
        if self._unit_pixels and stacks.dtype == np.uint8:
            array = array / np.float32(255)
        return np.ascontiguousarray(array, dtype=_INPUTS[self._input.type])


def _fits(sizes: tuple[int, ...], wanted: list[Any]) -> bool:
    """Whether these sizes are the wanted ones; a name stands for any size."""
    return len(sizes) == len(wanted) and all(
        not isinstance(size, int) or size == own for own, size in zip(sizes, wanted, strict=True)
    )


def read(name: str, content: bytes, outputs: Outputs | None, *, unit_pixels: bool) -> ForeignPolicy:
    """The policy in an ONNX file.

    Raises `UsageError` without onnxruntime, `EbuError` for what is no ONNX file, ValueError, one
    line, for a file that gives no number for each action.
    """
    answer = OnnxAnswer(content, name, unit_pixels=unit_pixels)
    found, columns = answer.output, answer.output.shape[1]
    says = answer.about.get("outputs", "values" if found.name.lower() in _VALUES else "")
    says = "logits" if not says and found.name.lower() in _LOGITS else says
    own = cast(Outputs, says) if says in get_args(Outputs) else None
    return ForeignPolicy(
        name=name,
        kind="ONNX file",
        policy=answer,
        outputs=outputs or own,
        num_actions=columns if isinstance(columns, int) else None,
        game=answer.about.get("game"),
        protocol=answer.about.get("protocol"),
        action_set=answer.about.get("action_set"),
    )
