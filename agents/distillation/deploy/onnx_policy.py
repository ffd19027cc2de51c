"""An exported network as a policy, and how its outputs compare with torch's."""

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from agents.agent import epsilon_greedy
from agents.trained import TrainedAgent
from ebu.errors import EbuError, UsageError
from ebu.interfaces import Exploration
from ebu.run.hints import install_command
from ebu.run.reading import read_file

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TOLERANCE = 1e-3
"""Largest difference from torch's outputs, as a share of the outputs' spread within a state.

Rounding leaves a millionth of the outputs themselves, of which the spread may be a hundredth.
"""
LEAST_AGREEMENT = 0.999
"""Share of states in which a file must choose torch's action: rounding may break ties."""
COMPARE_BATCH = 256


STATES = ("tensor(uint8)", "tensor(float)")
"""Types of a file's input: images, and vectors."""
MOST_BYTES = 1 << 30


def open_session(content: bytes, name: str) -> "InferenceSession":
    """An ONNX file in onnxruntime, on one thread of the CPU; `name` is what messages call it.

    Raises `UsageError` where onnxruntime is missing, `EbuError` for what is no ONNX file.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UsageError(f"playing by ONNX files needs onnxruntime: {install_command('export')}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # A file is whole: weights that it says lie elsewhere are not read.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", "/dev/null/no-such-folder"
    )
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # onnxruntime's own errors have no base but Exception.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise EbuError(f"{name} is no ONNX file that can be run: {reason}") from error


class OnnxPolicy:
    """The policy of an ONNX file, computed by onnxruntime on one thread of the CPU.

    | argument | meaning |
    | --- | --- |
    | file | a path, or the content of a file |
    | name | what messages call it; the path if not given |

    | attribute | meaning |
    | --- | --- |
    | about | the file's metadata, strings by name; see `export` |
    | outputs | "values" or "logits" |
    | stack, frame_shape | of the states it takes |
    | num_actions | number of actions A |

    Raises `UsageError` where onnxruntime is missing or there is no such file, `EbuError` for a file
    that cannot be read or is no such network.
    """

    def __init__(self, file: str | Path | bytes, name: str = "") -> None:
        name = name or ("the file" if isinstance(file, bytes) else str(file))
        if not isinstance(file, bytes):
            if not Path(file).is_file():
                raise UsageError(f"there is no file {name}: export a network first")
            try:
                file = read_file(Path(file), MOST_BYTES)
            except (OSError, ValueError) as error:
                raise EbuError(f"{name} is refused: {error}") from error
        self._session = open_session(file, name)
        try:
            (stacks,), (outputs,) = self._session.get_inputs(), self._session.get_outputs()
            if stacks.type not in STATES or outputs.name not in ("values", "logits"):
                raise ValueError(f"it takes {stacks.type} and gives {outputs.name}")
            _, self.stack, *shape = stacks.shape
        except ValueError as error:
            raise EbuError(
                f"{name} is not a network that was exported here ({error}): export it again"
            ) from error
        self._input = stacks.name
        self.frame_shape: tuple[int, ...] = tuple(shape)
        self.outputs: str = outputs.name
        self.num_actions: int = outputs.shape[1]
        self.about: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def outputs_of(self, stacks: np.ndarray) -> np.ndarray:
        """Values or logits (B, A) float32 of stacks (B, stack, *frame_shape)."""
        outputs: np.ndarray = self._session.run(None, {self._input: stacks})[0]
        return outputs

    def act(self, stack: np.ndarray) -> int:
        """The greedy action for one stack (stack, *frame_shape), oldest frame first."""
        return int(self.outputs_of(stack[None]).argmax())

    def choose(
        self, stacks: Tensor, **exploration: Unpack[Exploration]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `TrainedAgent.choose`, with the same draws: `ebu.evaluation.evaluate` plays by it."""
        outputs = torch.from_numpy(self.outputs_of(stacks.cpu().numpy()))
        return epsilon_greedy(outputs, **exploration)


class Parity(TypedDict):
    """How a file's outputs compare with torch's.

    | key | meaning |
    | --- | --- |
    | states | number of states compared |
    | largest_difference | of any output, as a share of the outputs' mean spread within a state |
    | agreement | share of the states in which both choose the same action |
    | tolerance | the largest difference that is allowed |
    """

    states: int
    largest_difference: float
    agreement: float
    tolerance: float


def check_parity(parity: Parity, name: str) -> None:
    """Raise `EbuError`, one line, where the file called `name` differs beyond the tolerance."""
    difference, agreement = parity["largest_difference"], parity["agreement"]
    # What is no number is refused, too.
    if not (difference <= TOLERANCE and agreement >= LEAST_AGREEMENT):
        raise EbuError(
            f"{name} is refused and not written: over {parity['states']:,} states its outputs "
            f"differ from torch's by up to {difference:.2g} of their spread, at most {TOLERANCE:g} "
            f"being allowed, and {agreement:.2%} of its actions are torch's, {LEAST_AGREEMENT:.1%} "
            "being required: try the pinned versions of constraints.txt"
        )


class States(Protocol):
    """States by their indices, such as a `Dataset`."""

    def stacks(self, indices: Tensor, /) -> Tensor: ...


def compare(agent: TrainedAgent, policy: OnnxPolicy, states: States, which: Tensor) -> Parity:
    """Compare a file's outputs with torch's on the states (K,) int64 of `states`; K ≥ 1."""
    largest, spread, agreeing = 0.0, 0.0, 0
    for part in which.split(COMPARE_BATCH):
        stacks = states.stacks(part)
        reference = agent.outputs_of(stacks).double().cpu().numpy()
        outputs = policy.outputs_of(stacks.cpu().numpy())
        largest = max(largest, float(np.abs(outputs - reference).max()))
        spread += float(np.ptp(reference, axis=1).sum())
        agreeing += int((outputs.argmax(axis=1) == reference.argmax(axis=1)).sum())
    spread /= len(which)
    # Outputs without any spread must be equal.
    relative = largest / spread if spread else (math.inf if largest else 0.0)
    return {
        "states": len(which),
        "largest_difference": relative,
        "agreement": agreeing / len(which),
        "tolerance": TOLERANCE,
    }
