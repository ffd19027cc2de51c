"""Networks as ONNX files: bytes in, action values or logits out, the same as torch's.

A file answers without this project and without torch: one input `stacks` (B, stack, H, W) uint8,
oldest frame first, one output `values` or `logits` (B, A) float32, B free, /255 inside.
"""

import copy
import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from agents.distillation.dataset import StateSet
from agents.networks import FirstConvolution, LowRankDense, NatureTorso, PlainHead, QNetwork
from agents.trained import TrainedAgent
from ebu.errors import EbuError, UsageError
from ebu.run.files import write_whole
from ebu.run.hints import install_command

if TYPE_CHECKING:
    from agents.distillation.deploy.onnx_policy import OnnxPolicy

INPUT = "stacks"
OPSET = 20
PARITY_STATES = 10_000
TOLERANCE = 1e-3
"""Largest difference that a file may show, as a share of the outputs' spread within a state.

Rounding leaves a millionth of the outputs themselves, of which the spread may be a hundredth.
"""
LEAST_AGREEMENT = 0.999
"""Share of states in which a file must choose torch's action: rounding may break ties."""
CHUNK = 256
ONLY_SINGLE_NETWORKS = "only single networks over images, such as Atari's, are exported"


def exportable(network: nn.Module) -> bool:
    """Whether there can be a file of this network: not of an ensemble, nor over flat numbers."""
    return isinstance(network, QNetwork) and isinstance(network[0], NatureTorso)


def require_export() -> None:
    """Raise `UsageError`, one line, where packages of the extra `export` are missing."""
    needed = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"exporting needs {' and '.join(missing)}: {install_command('export')}")


@dataclass(frozen=True)
class Parity:
    """How a file's outputs compare with torch's.

    | field | meaning |
    | --- | --- |
    | states | number of states compared |
    | largest_difference | of any output, as a share of `spread` |
    | spread | best minus worst output of a state, the mean over states, in units of the outputs |
    | agreement | share of the states in which both choose the same action |
    """

    states: int
    largest_difference: float
    spread: float
    agreement: float

    def check(self, name: str) -> None:
        """Raise `EbuError`, one line, where the file called `name` differs beyond the tolerance."""
        if self.largest_difference <= TOLERANCE and self.agreement >= LEAST_AGREEMENT:
            return
        raise EbuError(
            f"{name} is refused and not written: over {self.states:,} states its outputs differ "
            f"from torch's by up to {self.largest_difference:.2g} of their spread, at most "
            f"{TOLERANCE:g} being allowed, and {self.agreement:.2%} of its actions are torch's, "
            f"{LEAST_AGREEMENT:.1%} being required: try the pinned versions of constraints.txt"
        )


def export(agent: TrainedAgent, path: Path, states: StateSet, *, name: str) -> Parity:
    """Write an agent's network as an ONNX file, once it has been found to compute the same.

    | argument | meaning |
    | --- | --- |
    | states | on 10,000 of them both are compared: those held out, then others |
    | name | of the agent, for the metadata |

    The metadata are `agent`, `network`, `outputs`, `num_actions`, `game` and `protocol`. The same
    agent gives the same bytes, with the same versions of torch and onnxscript.

    Raises `UsageError` for a network that is not `exportable` and where packages are missing,
    `EbuError` where outputs differ beyond the tolerance or the file cannot be written; a file that
    was there is then as it was.
    """
    from agents.distillation.deploy.onnx_policy import OnnxPolicy

    content = onnx_bytes(agent, name)
    parity = compare(agent, OnnxPolicy(content, path.name), states, parity_states(states))
    parity.check(path.name)
    write_whole(path, content)
    return parity


def parity_states(states: StateSet, count: int = PARITY_STATES) -> Tensor:
    """Indices (at most count,) of the states held out, then of others; evenly spread."""
    held_out = _spread(states.held_out, count)
    return torch.cat([held_out, _spread(states.train, count - len(held_out))])


def _spread(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    return indices[torch.linspace(0, len(indices) - 1, count).long()]


def compare(agent: TrainedAgent, policy: "OnnxPolicy", states: StateSet, which: Tensor) -> Parity:
    """A file's outputs beside torch's on the states (K,) int64 of a set; K ≥ 1."""
    largest, spread, agreeing = 0.0, 0.0, 0
    for part in which.split(CHUNK):
        stacks = states.stacks(part)
        reference = agent.outputs_of(stacks).double().cpu().numpy()
        outputs = policy.outputs_of(stacks.cpu().numpy())
        largest = max(largest, float(np.abs(outputs - reference).max()))
        spread += float(np.ptp(reference, axis=1).sum())
        agreeing += int((outputs.argmax(axis=1) == reference.argmax(axis=1)).sum())
    spread /= len(which)
    # Outputs that are all alike have no spread, and should have no difference either.
    relative = largest / spread if spread else (math.inf if largest else 0.0)
    return Parity(len(which), relative, spread, agreeing / len(which))


def onnx_bytes(agent: TrainedAgent, name: str) -> bytes:
    """What `export` writes, unchecked.

    Raises `UsageError` for a network that is not `exportable` and where packages are missing.
    """
    require_export()
    import onnx

    environment = agent.config["environment"]
    with _quiet():
        program = torch.onnx.export(
            Plain(agent.network),
            # A batch of one would be taken for a constant.
            (torch.zeros(2, environment["stack"], *environment["frame_shape"], dtype=torch.uint8),),
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
    # Traces with the paths of this machine; the weights' names say where they are from.
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
    onnx.helper.set_model_props(model, {key: str(value) for key, value in about.items()})
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on itself, and on torchvision, which is not needed."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


# --- the network in ordinary layers ---------------------------------------------------------


class Plain(nn.Module):
    """A Q-network's own weights in torch's ordinary layers, which ONNX knows as they are.

    Stacks (B, stack, H, W) uint8 in, outputs (B, A) float32. Features are flattened by channel,
    then pixel, and the first dense layer's columns put into that order once, so that none are moved
    for each state; pixels are divided by 255 in the first convolution's weights.

    Raises `UsageError` for a network that is not `exportable`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not exportable(network):
            raise UsageError(ONLY_SINGLE_NETWORKS)
        torso, head = cast(QNetwork, copy.deepcopy(network).cpu())
        assert isinstance(torso, NatureTorso)
        first, _, second, _, third, _, _ = torso
        assert isinstance(first, FirstConvolution)
        self.conv1 = skip_init(
            nn.Conv2d, first.in_channels, first.out_channels, 2 * first.block, first.block
        )
        self.conv1.weight = nn.Parameter(first.weight / 255)
        self.conv1.bias = first.bias
        self.conv2, self.conv3 = second, third
        channels = [layer for layer in third.modules() if isinstance(layer, nn.Conv2d)][-1]
        for dense in head.modules():
            if isinstance(dense, PlainHead):
                _by_channel(dense, channels.out_channels)
        self.head = head
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.eval().requires_grad_(False)

    def forward(self, stacks: Tensor) -> Tensor:
        features = self.conv1(stacks.float()).relu()
        features = self.conv3(self.conv2(features).relu()).relu()
        outputs: Tensor = self.head(features.flatten(1))
        return outputs


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
