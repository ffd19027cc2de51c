"""Networks as ONNX files, float32 and int8.

A file needs neither this project nor torch: one input `stacks`, (B, stack, *frame_shape), uint8
for images and float32 for vectors, oldest frame first; one output `values` or `logits` (B, A)
float32; any B, /255 inside.
"""

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from agents.distillation.dataset import Dataset
from agents.distillation.settings import require_export
from agents.foreign.layers import PlainPolicy
from agents.impala import ImpalaTorso
from agents.networks import (
    FirstConvolution,
    GridCells,
    GridTorso,
    LowRankDense,
    NatureTorso,
    PlainHead,
    QNetwork,
    VectorTorso,
)
from agents.trained import TrainedAgent
from ebu.errors import UsageError

if TYPE_CHECKING:
    import onnx

INPUT = "stacks"
OPSET = 20
CALIBRATION_BATCH = 32
_AS_BYTES = {"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}
ONLY_SINGLE_NETWORKS = "only single networks of convolutions and dense layers are exported"


def exportable(network: nn.Module) -> bool:
    """Whether a network can be exported: no ensemble, and nothing but torch's."""
    if isinstance(network, QNetwork):
        return isinstance(network[0], NatureTorso | ImpalaTorso | GridTorso | VectorTorso)
    return isinstance(network, PlainPolicy)


def onnx_bytes(agent: TrainedAgent, name: str) -> bytes:
    """The float32 file of an agent, with its name as metadata.

    The metadata are `agent`, `network`, `outputs`, `num_actions`, `game` and `protocol`, and where
    it is not the protocol's `action_set`. The same agent gives the same bytes, with the same
    versions of torch and onnxscript.

    Raises `UsageError` for a network that is not `exportable` and where packages are missing.
    """
    require_export()
    import onnx

    environment = agent.config["environment"]
    dtype = getattr(torch, environment["frame_dtype"])
    with _quiet("torch.onnx"):
        program = torch.onnx.export(
            Plain(agent.network),
            # A batch of one would be taken for a constant.
            (torch.zeros(2, environment["stack"], *environment["frame_shape"], dtype=dtype),),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[agent.outputs],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    graph = model.graph
    # Without traces of this machine's paths.
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
    del graph.value_info[:]
    settings = agent.config["settings"]
    about = {
        "agent": name,
        "network": settings["network"],
        "outputs": agent.outputs,
        "num_actions": agent.num_actions,
        "game": settings["game"],
        "protocol": settings["protocol"],
    }
    if settings.get("action_set"):
        about["action_set"] = settings["action_set"]
    onnx.helper.set_model_props(model, {key: str(value) for key, value in about.items()})
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def quantise(content: bytes, states: Dataset, which: Tensor) -> bytes:
    """The int8 file of a network from its float32 file, `content`.

    Each activation's range is the widest seen on the states (K,) int64 of the dataset; some
    hundreds are enough. Input, output and metadata are those of the float32 file.

    Static quantisation: weights have a scale for each output channel and are stored as bytes around
    128, activations are uint8. Signed weights would overflow on processors with AVX2 and without
    VNNI, where onnxruntime adds two products of a signed and an unsigned byte in 16 bits. Pixels
    are bytes already and enter as they are; the first layer over vectors and grids, whose numbers
    have different units or are codes, and the outputs stay float32: one step of 256 over the range
    of all action values would be wider than the gap between two actions.

    Raises `UsageError` where packages are missing.
    """
    require_export()
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load_from_string(content)
    about = {entry.key: entry.value for entry in model.metadata_props}
    (stacks,) = model.graph.input
    input_type = stacks.type.tensor_type
    images = input_type.elem_type == onnx.TensorProto.UINT8 and len(input_type.shape.dim) == 4
    overrides = {_consumer(model.graph, INPUT).output[0]: [_AS_BYTES]} if images else {}
    with tempfile.TemporaryDirectory() as directory, _quiet(""):
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
            nodes_to_exclude=[] if images else [_first_layer(model.graph).name],
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                "TensorQuantOverrides": overrides,
            },
        )
        result = onnx.load(path)
    if images:
        _enter_as_bytes(result.graph)
    onnx.helper.set_model_props(result, about)
    onnx.checker.check_model(result, full_check=True)
    quantised_content: bytes = result.SerializeToString(deterministic=True)
    return quantised_content


# --- the network in ordinary layers ---------------------------------------------------------


class Plain(nn.Module):
    """A policy's weights in torch's ordinary layers, which ONNX has.

    Stacks (B, stack, *frame_shape) uint8 or float32 in, outputs (B, A) float32. The first dense
    layer's columns are reordered once, for features flattened by channel, then pixel; the
    division by 255 is in the first convolution's weights.

    Raises `UsageError` for a network that is not `exportable`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not exportable(network):
            raise UsageError(ONLY_SINGLE_NETWORKS)
        network = copy.deepcopy(network).cpu()
        self.num_quantiles = network.num_quantiles if isinstance(network, QNetwork) else 0
        convolutions, self.head = (
            _of_network(network) if isinstance(network, QNetwork) else _of_policy(network)
        )
        self.convolutions = nn.ModuleList(convolutions)
        # Grids are scaled by how they are stored.
        self.cells = any(isinstance(layer, GridCells) for layer in convolutions)
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.eval().requires_grad_(False)

    def forward(self, stacks: Tensor) -> Tensor:
        features = stacks if self.cells else stacks.float()
        for convolution in self.convolutions:
            features = convolution(features)
        outputs: Tensor = self.head(features.flatten(1))
        if self.num_quantiles:
            outputs = outputs.unflatten(1, (-1, self.num_quantiles)).mean(-1)
        return outputs


def _of_network(network: QNetwork) -> tuple[list[nn.Module], nn.Module]:
    """The convolutions, each with its activation, and the rest of a network of this project."""
    torso, head = network
    if isinstance(torso, VectorTorso):
        _, dense, relu = torso
        for each in head.modules():
            if isinstance(each, PlainHead):
                each[0] = _linear(each[0])
        return [], nn.Sequential(_linear(dense), relu, head)
    channels = [layer for layer in torso.modules() if isinstance(layer, nn.Conv2d)][-1]
    for each in head.modules():
        if isinstance(each, PlainHead):
            _by_channel(each, channels.out_channels)
    if isinstance(torso, GridTorso):
        cells, convolution, _, _ = torso
        return [cells, nn.Sequential(convolution, nn.ReLU())], head
    if isinstance(torso, ImpalaTorso):
        with torch.no_grad():
            cast(nn.Conv2d, torso.stages[0]).weight.div_(255)
        return [*torso.stages, nn.ReLU()], head
    assert isinstance(torso, NatureTorso)
    first, _, second, _, third, _, _ = torso
    assert isinstance(first, FirstConvolution)
    plain = skip_init(
        nn.Conv2d, first.in_channels, first.out_channels, 2 * first.block, first.block
    )
    plain.weight, plain.bias = nn.Parameter(first.weight / 255), first.bias
    return [nn.Sequential(layer, nn.ReLU()) for layer in (plain, second, third)], head


def _of_policy(policy: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """The same of a policy from elsewhere."""
    assert isinstance(policy, PlainPolicy)
    activation = getattr(nn, policy.activation)
    if policy.divided:
        with torch.no_grad():
            cast(nn.Conv2d, policy.convolutions[0]).weight.div_(255)
    *hidden, last = policy.dense
    dense = [each for layer in hidden for each in (layer, activation())]
    convolutions = [nn.Sequential(layer, activation()) for layer in policy.convolutions]
    return [*convolutions], nn.Sequential(*dense, last)


def _by_channel(head: PlainHead, channels: int) -> None:
    """Make a head's layers ordinary ones, the first over features ordered by channel, pixel."""
    head[0] = _linear(head[0])
    first = next(layer for layer in head[0].modules() if isinstance(layer, nn.Linear))
    # (units, pixels · channels) -> (units, channels · pixels)
    by_channel = first.weight.unflatten(1, (-1, channels)).transpose(1, 2).flatten(1)
    first.weight = nn.Parameter(by_channel.contiguous())


def _linear(layer: nn.Module) -> nn.Module:
    if isinstance(layer, LowRankDense):
        return nn.Sequential(*map(_linear, layer))
    assert isinstance(layer, nn.Linear)
    bias = layer.bias is not None
    linear: nn.Module = skip_init(nn.Linear, layer.in_features, layer.out_features, bias=bias)
    linear.load_state_dict(layer.state_dict())
    return linear


# --- parts ----------------------------------------------------------------------------------


class _Reader:
    """The states as onnxruntime asks for them."""

    def __init__(self, states: Dataset, which: Tensor) -> None:
        parts = which.split(CALIBRATION_BATCH)
        self._stacks: Iterator[Tensor] = (states.stacks(part) for part in parts)

    def get_next(self) -> dict[str, np.ndarray] | None:
        stacks = next(self._stacks, None)
        return None if stacks is None else {INPUT: stacks.cpu().numpy()}


def _consumer(graph: "onnx.GraphProto", name: str) -> "onnx.NodeProto":
    found: list[onnx.NodeProto] = [node for node in graph.node if name in node.input]
    (node,) = found
    return node


def _first_layer(graph: "onnx.GraphProto") -> "onnx.NodeProto":
    found: onnx.NodeProto = next(n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul"))
    return found


def _enter_as_bytes(graph: "onnx.GraphProto") -> None:
    """Take out the cast to float32 and the quantisation back, by a scale of 1, to the same byte."""
    cast = _consumer(graph, INPUT)
    quantise = _consumer(graph, cast.output[0])
    dequantise = _consumer(graph, quantise.output[0])
    dequantise.input[0] = INPUT
    graph.node.remove(cast)
    graph.node.remove(quantise)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Suppress warnings and the remarks of a logger, such as that torchvision is missing."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
