"""Networks as ONNX files, float32 and int8: the same answers as torch's, or no file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from agents.distillation.dataset import Dataset
from agents.distillation.deploy import deployment, export, onnx_policy
from agents.distillation.deploy.deployment import (
    parity_states,
    write_checked,
)
from agents.distillation.deploy.export import Plain, onnx_bytes, quantise
from agents.distillation.deploy.onnx_policy import (
    OnnxPolicy,
    compare,
)
from agents.networks import build_network
from agents.trained import Outputs, TrainedAgent
from ebu.errors import EbuError, UsageError
from tests.agents.distillation.small_pipelines import SIDE, rng_of, teacher_of
from tests.agents.distillation.test_dataset import set_of


def agent_of(
    network: str = "net3", *, outputs: Outputs = "logits", seed: int = 0, stack: int = 4
) -> TrainedAgent:
    """An agent whose action depends on what it sees."""
    agent = teacher_of(seed, network=network, outputs=outputs, stack=stack, num_actions=4)
    # Of a network without training one output is always the highest.
    with torch.no_grad():
        last = [layer for layer in agent.network.modules() if isinstance(layer, nn.Linear)][-1]
        outputs_now = agent.network(states_of(stack=stack).stacks(torch.arange(64)))
        last.bias.sub_(outputs_now.mean(dim=0))
    return agent


def states_of(*lengths: int, stack: int = 4) -> Dataset:
    """Episodes of frames of blocks of one colour each."""
    states = set_of(*(lengths or (20,) * 8), stack=stack, shape=(SIDE, SIDE))
    blocks = torch.randint(256, (len(states.frames), 4, 4), dtype=torch.uint8, generator=rng_of(3))
    return replace(states, frames=blocks.repeat_interleave(9, 1).repeat_interleave(9, 2))


STATES = states_of()
EVERY = torch.arange(len(STATES))


@pytest.fixture(scope="module")
def agent() -> TrainedAgent:
    return agent_of()


@pytest.fixture(scope="module")
def content(agent: TrainedAgent) -> bytes:
    return onnx_bytes(agent, "net3-kl")


# --- float32 --------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["net3", "dueling"])
def test_quantiles_are_exported_as_their_means(network: str) -> None:
    built = build_network(
        network,
        stack=4,
        frame_shape=(SIDE, SIDE),
        num_actions=4,
        generator=torch.Generator().manual_seed(0),
        quantiles=5,
    )
    stacks = STATES.stacks(torch.arange(6))
    torch.testing.assert_close(Plain(built)(stacks), built(stacks), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "outputs", "stack"),
    [
        ("net3", "logits", 4),
        ("dueling@tucker=2,3,4,5,svd=6", "values", 3),
    ],
)
def test_a_file_answers_as_torch_does_for_any_number_of_states(
    tmp_path: Path, network: str, outputs: Outputs, stack: int
) -> None:
    agent, states = agent_of(network, outputs=outputs, stack=stack), states_of(stack=stack)
    path = tmp_path / "new" / "agent.onnx"
    parity = write_checked(agent, path, states, name="it")
    assert parity["states"] == len(states)
    assert parity["agreement"] == 1
    assert parity["largest_difference"] < 1e-5
    policy = OnnxPolicy(path)
    assert (policy.outputs, policy.stack, policy.num_actions) == (outputs, stack, 4)
    assert policy.frame_shape == (SIDE, SIDE)
    for count in (1, 2, 5):
        stacks = states.stacks(torch.arange(count))
        answered = policy.outputs_of(stacks.numpy())
        assert answered.dtype == np.float32
        np.testing.assert_allclose(answered, agent.outputs_of(stacks), 1e-5, 1e-5)
        assert policy.act(stacks[-1].numpy()) == agent.act(stacks[-1])
    # Not all the same action: the comparison means something.
    assert len({policy.act(states.stacks(index[None])[0].numpy()) for index in EVERY}) > 1


def test_bytes_go_in_and_outputs_come_out(content: bytes) -> None:
    graph = onnx.load_from_string(content).graph
    (stacks,), (outputs,) = graph.input, graph.output
    assert (stacks.name, outputs.name) == ("stacks", "logits")
    assert stacks.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert outputs.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    sizes = [size.dim_param or size.dim_value for size in stacks.type.tensor_type.shape.dim]
    assert sizes == ["batch", 4, SIDE, SIDE]


def test_the_same_agent_gives_the_same_bytes_and_no_paths(
    agent: TrainedAgent, content: bytes
) -> None:
    assert onnx_bytes(agent, "net3-kl") == content
    assert str(Path(export.__file__).parents[2]).encode() not in content
    assert len(content) < 1.05 * 4 * sum(w.numel() for w in agent.network.parameters()) + 20_000


def test_a_file_that_computes_something_else_is_refused_and_not_written(
    tmp_path: Path, agent: TrainedAgent, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net3.onnx"
    path.write_bytes(b"as it was")
    monkeypatch.setattr(deployment, "onnx_bytes", lambda *_: content)
    with pytest.raises(EbuError, match=r"net3\.onnx is refused.* over 160 states") as refusal:
        write_checked(agent_of(seed=1), path, STATES, name="other")
    assert "\n" not in str(refusal.value)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("net3.onnx", b"as it was")]
    write_checked(agent, path, STATES, name="net3-kl")
    assert path.read_bytes() == content


class Answers:
    """A policy with these outputs, row after row."""

    def __init__(self, rows: Sequence[Sequence[float]], kind: Callable[[Any], Any]) -> None:
        self._rows, self._kind = iter(rows), kind

    def outputs_of(self, stacks: Any) -> Any:
        return self._kind([next(self._rows) for _ in stacks])


def test_parity_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_policy, "COMPARE_BATCH", 2)
    reference = [[0.0, 1.0, 3.0, 2.0], [5.0, 1.0, 1.0, 4.0], [2.0, 0.0, 0.0, 0.0]]
    # In the second state another action has become the best one.
    found = [[0.0, 1.0, 3.5, 2.0], [4.25, 1.0, 1.0, 4.5], [2.0, 0.0, 0.0, 0.0]]
    agent: Any = Answers(reference, torch.tensor)
    policy: Any = Answers(found, np.array)
    parity = compare(agent, policy, STATES, EVERY[:3])
    assert parity["states"] == 3
    assert parity["largest_difference"] == pytest.approx(0.75 / 3)
    assert parity["agreement"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("count", [1, 50, 10_000])
def test_parity_is_on_held_out_states_first(count: int) -> None:
    held_out = set(STATES.held_out.tolist())
    found = parity_states(STATES, count).tolist()
    assert len(found) == len(set(found)) == min(count, len(STATES))
    assert len(held_out.intersection(found)) == min(count, len(held_out))


# --- int8 -----------------------------------------------------------------------------------


def test_an_int8_file_is_small_and_nearly_the_same(agent: TrainedAgent, content: bytes) -> None:
    small = quantise(content, STATES, EVERY[::2])
    assert quantise(content, STATES, EVERY[::2]) == small
    # Of a network as small as this one, much of a file is not weights.
    assert len(small) < len(content) / 2
    policy = OnnxPolicy(small)
    assert policy.about == OnnxPolicy(content).about
    judge = STATES.stacks(EVERY[1::2])
    outputs, reference = policy.outputs_of(judge.numpy()), agent.outputs_of(judge).numpy()
    # Rounding to 8 bits shows, and is not more than that.
    differences = np.abs(outputs - reference)
    assert 1e-4 < differences.mean() < 0.05 * np.ptp(reference, axis=1).mean()
    assert (outputs.argmax(axis=1) == reference.argmax(axis=1)).mean() > 0.9


def test_no_step_of_an_activation_is_spent_on_what_a_relu_cuts_off() -> None:
    agent = agent_of()
    convolutions = [layer for layer in agent.network.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for layer in convolutions:
            assert layer.bias is not None
            layer.bias[0] = -100
    content = onnx_bytes(agent, "net3")
    outputs = OnnxPolicy(quantise(content, STATES, EVERY[::2])).outputs_of(
        STATES.stacks(EVERY[1::2]).numpy()
    )
    reference = agent.outputs_of(STATES.stacks(EVERY[1::2])).numpy()
    spread = np.ptp(reference, axis=1).mean()
    assert np.abs(outputs - reference).mean() < 0.05 * spread


def test_bytes_enter_an_int8_file_as_they_are(content: bytes) -> None:
    graph = onnx.load_from_string(quantise(content, STATES, STATES.held_out)).graph
    (first,) = (node for node in graph.node if "stacks" in node.input)
    assert first.op_type == "DequantizeLinear"
    assert "Cast" not in {node.op_type for node in graph.node}
    weights = {w.name: w for w in graph.initializer}
    scale, zero = (onnx.numpy_helper.to_array(weights[name]) for name in first.input[1:])
    assert zero.dtype == np.uint8
    assert (scale.item(), zero.item()) == (1, 0)
    kinds = {w.data_type for w in graph.initializer if len(w.dims) > 1}
    assert kinds == {onnx.TensorProto.UINT8}
    # The outputs leave as they were computed.
    (last,) = (node for node in graph.node if "logits" in node.output)
    assert last.op_type in ("Gemm", "Add", "MatMul")


# --- playing --------------------------------------------------------------------------------


def test_a_file_plays_with_the_draws_of_its_agent(agent: TrainedAgent, content: bytes) -> None:
    best, second = agent.outputs_of(STATES.stacks(EVERY)).topk(2).values.unbind(dim=1)
    # Where two outputs are nearly equal, rounding decides.
    policy, stacks = OnnxPolicy(content), STATES.stacks(EVERY[best - second > 1e-3][:50])
    forced = np.arange(50) < 5
    played = [
        each.choose(stacks, epsilon=0.3, rng=np.random.default_rng(4), forced_random=forced)
        for each in (agent, policy)
    ]
    for one, other in zip(*played, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_no_such_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="no file"):
        OnnxPolicy(tmp_path / "none.onnx")
    model = onnx.load_from_string(content)
    model.graph.output[0].name = "actions"
    model.graph.node[-1].output[0] = "actions"
    damaged = {
        "half.onnx": content[: len(content) // 2],
        "text.onnx": b"no network",
        "other.onnx": model.SerializeToString(),
    }
    for name, found in damaged.items():
        (tmp_path / name).write_bytes(found)
        with pytest.raises(EbuError, match=f"{name} is (no ONNX file|not a network)") as refusal:
            OnnxPolicy(tmp_path / name)
        assert "\n" not in str(refusal.value)
