"""Training through the rounding of an int8 file: rounded as the file is, with gradients."""

import copy
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from agents.distillation.deploy.export import onnx_bytes, quantise
from agents.distillation.deploy.onnx_policy import OnnxPolicy
from agents.distillation.deploy.rounded import RoundedStudent, round_weight
from agents.distillation.losses import policy_divergence
from agents.distillation.students import Student
from agents.distillation.trainer import StudentTrainer, Supervision
from agents.trained import TrainedAgent
from tests.agents.distillation.small_pipelines import config_with
from tests.agents.distillation.test_export import EVERY, STATES, agent_of

SUPERVISION = Supervision(
    agent_of(seed=1),
    STATES.relabelled(agent_of(seed=1).outputs_of),
    {"kl": 1.0},
    config_with(),
    temperature=0.02,
)


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


def train(agent: TrainedAgent, directory: Path, kind: type[Student], *, updates: int) -> None:
    """Train the agent on as a student of this kind, always with the same minibatches."""
    network = agent.network.requires_grad_(True)
    student = kind(agent.config["settings"]["network"], network, "logits")  # type: ignore[arg-type]
    config = config_with(updates=updates, batch_size=32, learning_rate=3e-3)
    trainer = StudentTrainer(
        directory, [student], [SUPERVISION], config, rng=np.random.default_rng(0)
    )
    assert trainer.run()
    trainer.close()
    agent.network.requires_grad_(False)


def test_an_update_through_rounding_is_another_one(tmp_path: Path) -> None:
    agents = [agent_of("4-4-4/16") for _ in range(3)]
    for number, kind in enumerate((Student, Student, RoundedStudent)):
        train(agents[number], tmp_path / f"{number}", kind, updates=2)
    plain, again, rounded = (
        torch.cat([weight.flatten() for weight in agent.network.parameters()]) for agent in agents
    )
    assert torch.equal(plain, again)
    assert not torch.equal(plain, rounded)


def error_of_file(agent: TrainedAgent) -> float:
    """The divergence of an agent's int8 file from the teacher, on the states of its training."""
    states = SUPERVISION.dataset
    content = quantise(onnx_bytes(agent, "it"), states, states.train)
    outputs = OnnxPolicy(content).outputs_of(states.stacks(states.train).numpy())
    labels = states.outputs[states.train]
    return float(policy_divergence(labels, torch.tensor(outputs), temperature=0.02))


def test_where_rounding_costs_much_a_file_is_better_by_training_through_it(tmp_path: Path) -> None:
    # A hidden unit that is never above 0, and so has no gradient, with large weights in all
    # outputs: they make the steps wide to which the other weights are rounded.
    agent = agent_of("8-8-8/64", seed=2)
    hidden, last = [each for each in agent.network.modules() if isinstance(each, nn.Linear)]
    with torch.no_grad():
        hidden.bias[0] = -100
        last.weight[:, 0] = 50
    train(agent, tmp_path / "start", Student, updates=200)
    errors = {}
    for kind in (Student, RoundedStudent):
        further = copy.deepcopy(agent)
        train(further, tmp_path / kind.__name__, kind, updates=200)
        errors[kind] = error_of_file(further)
    # Between 0.07 and 0.45 of it with eight other first weights and minibatches.
    assert errors[RoundedStudent] < 0.6 * errors[Student]
