"""Training through the rounding of an int8 file: rounded as the file is, with gradients."""

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from agents.distillation.deploy.export import onnx_bytes, quantise
from agents.distillation.deploy.onnx_policy import OnnxPolicy
from agents.distillation.deploy.rounded import RoundedStudent, round_weight
from tests.agents.distillation.test_export import EVERY, STATES, agent_of


def test_a_weight_is_a_byte_around_128_for_each_output() -> None:
    weight = torch.tensor([[1.275, -0.0149, 0.0], [0.0, 0.0, 0.0]])
    # A scale of 2 · 1.275 / 255 = 0.01; 127 levels above 0.
    torch.testing.assert_close(
        round_weight(weight), torch.tensor([[1.27, -0.01, 0.0], [0.0, 0.0, 0.0]])
    )


def test_a_student_is_rounded_as_its_file_and_only_where_it_learns() -> None:
    agent = agent_of("6-8-8/48", outputs="values")
    content = quantise(onnx_bytes(agent, "it"), STATES, EVERY)
    initial = {each.name: each for each in onnx.load_from_string(content).graph.initializer}
    name = "convolutions.2.0.weight"
    levels = numpy_helper.to_array(initial[f"{name}_quantized"]).astype(np.float32) - 128
    scale = numpy_helper.to_array(initial[f"{name}_scale"])[:, None, None, None]
    weights = dict(agent.network.named_parameters())
    torch.testing.assert_close(round_weight(weights["0.4.weight"]), torch.tensor(levels * scale))
    stacks = STATES.stacks(EVERY)
    own = agent.outputs_of(stacks)
    files = torch.tensor(OnnxPolicy(content).outputs_of(stacks.numpy()))
    network = agent.network.requires_grad_(True)
    student = RoundedStudent("6-8-8/48", network, "values")  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(student(stacks), own)
    rounded = student(stacks)
    # Nearer to the file than the exact outputs are, which know nothing of its weights.
    assert (rounded - files).abs().mean() < 0.95 * (own - files).abs().mean()
    rounded.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())
