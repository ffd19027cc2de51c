"""Exported networks in int8: static quantisation, calibrated on states as they are played.

Weights have a scale for each output channel and are stored as bytes around 128, activations are
uint8. Signed weights would overflow on processors with AVX2 and without VNNI, where onnxruntime
adds two products of a signed and an unsigned byte in 16 bits.

What needs no rounding gets none: pixels are bytes already and enter as they are, and outputs stay
float32, since one step of 256 over the range of all action values would be wider than the gap
between two actions.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from agents.distillation.dataset import StateSet
from agents.distillation.deploy.export import INPUT, require_export

if TYPE_CHECKING:
    import onnx

CALIBRATION_STATES = 512
CHUNK = 32


def quantised(content: bytes, states: StateSet, which: Tensor) -> bytes:
    """The int8 file of an exported network, `content` being its float32 file.

    Each activation's range is the widest seen in the states (K,) int64 of the set; some hundreds
    of held-out ones will do. The file keeps input, output and metadata of the float32 one.

    Raises `UsageError` where packages are missing.
    """
    require_export()
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load_from_string(content)
    about = {entry.key: entry.value for entry in model.metadata_props}
    cast = _consumer(model.graph, INPUT)
    with tempfile.TemporaryDirectory() as directory, _quiet():
        path = Path(directory) / "int8.onnx"
        quantize_static(
            model,
            str(path),
            _Reader(states, which),
            quant_format=QuantFormat.QDQ,
            # With "Relu" the steps of an activation are not spent on what the ReLU cuts off.
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Relu"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8,
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                "TensorQuantOverrides": {
                    cast.output[0]: [
                        {"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}
                    ]
                },
            },
        )
        result = onnx.load(path)
    _enter_as_bytes(result.graph)
    onnx.helper.set_model_props(result, about)
    onnx.checker.check_model(result, full_check=True)
    quantised_content: bytes = result.SerializeToString(deterministic=True)
    return quantised_content


def calibration_states(states: StateSet) -> tuple[Tensor, Tensor]:
    """Held-out states to calibrate on, at most 512, evenly spread, and those to judge by: others.

    Indices (K,) and (L,) int64. Of a single held-out state both are that one.
    """
    held_out = states.held_out
    if len(held_out) < 2:
        return held_out, held_out
    count = min(CALIBRATION_STATES, len(held_out) // 2)
    chosen = torch.zeros(len(held_out), dtype=torch.bool)
    chosen[torch.linspace(0, len(held_out) - 1, count).long()] = True
    return held_out[chosen], held_out[~chosen]


class _Reader:
    """The states as onnxruntime asks for them."""

    def __init__(self, states: StateSet, which: Tensor) -> None:
        self._stacks: Iterator[Tensor] = (states.stacks(part) for part in which.split(CHUNK))

    def get_next(self) -> dict[str, np.ndarray] | None:
        stacks = next(self._stacks, None)
        return None if stacks is None else {INPUT: stacks.cpu().numpy()}


def _consumer(graph: "onnx.GraphProto", name: str) -> "onnx.NodeProto":
    found: list[onnx.NodeProto] = [node for node in graph.node if name in node.input]
    (node,) = found
    return node


def _enter_as_bytes(graph: "onnx.GraphProto") -> None:
    """Take out the cast to float32 and the quantisation back, by a scale of 1, to the same byte."""
    cast = _consumer(graph, INPUT)
    quantise = _consumer(graph, cast.output[0])
    dequantise = _consumer(graph, quantise.output[0])
    dequantise.input[0] = INPUT
    graph.node.remove(cast)
    graph.node.remove(quantise)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to prepare models first: these have nothing to be folded or inferred."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
