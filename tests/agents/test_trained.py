"""load_agent: the agent a run has trained, from its directory."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import (
    Agent,
    EbuConfig,
    Learner,
    LearnerConfig,
    Precision,
    build_agent,
    build_learner,
    load_agent,
)
from agents.settings import AdaptiveEbuConfig
from agents.stacked import StackedLearner
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import load_latest, save_checkpoint
from ebu.run.directory import read_config, write_config
from envs import VectorStep
from tests.made_up import CPU, assert_are_best

NUM_ACTIONS = 5
SHAPES: dict[str, Any] = {"image": (4, (36, 36), "uint8"), "flat": (1, (6,), "float32")}


def agent_of(
    seed: int, network: str = "nature", shape: str = "image", precision: str = "float32"
) -> Agent:
    stack, frame_shape, _ = SHAPES[shape]
    learner = Learner(
        LearnerConfig(network=network),
        stack=stack,
        frame_shape=frame_shape,
        num_actions=NUM_ACTIONS,
        device=CPU,
        precision=precision,
        rng=np.random.default_rng(seed),
    )
    return build_agent(EbuConfig(), learner, np.random.default_rng(seed))


def start_run(
    run_dir: Path, network: str = "nature", shape: str = "image", agent: str = "ebu"
) -> Path:
    stack, frame_shape, frame_dtype = SHAPES[shape]
    run_dir.mkdir(exist_ok=True)
    environment = {
        "num_actions": NUM_ACTIONS,
        "stack": stack,
        "frame_shape": list(frame_shape),
        "frame_dtype": frame_dtype,
        "frames_per_step": 4,
    }
    settings = {"agent": agent, "network": network, "game": "pong", "protocol": "paper", "seed": 3}
    write_config(run_dir, {"settings": settings, "environment": environment})
    return run_dir


def save(agent: Agent, frames: int, directory: Path) -> Path:
    state = {"agent": agent.state_dict(), "frames": frames}
    return save_checkpoint(directory, f"frames-{frames:012d}", state)


def stacks_of(count: int, shape: str = "image") -> Tensor:
    stack, frame_shape, dtype = SHAPES[shape]
    values = torch.rand(count, stack, *frame_shape, generator=torch.Generator().manual_seed(0))
    return (255 * values).to(torch.uint8) if dtype == "uint8" else 4 * values - 2


@pytest.mark.parametrize("network", ["nature", "dueling", "net2"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_loaded_agent_acts_as_the_one_that_was_trained(
    tmp_path: Path, network: str, shape: str, precision: Precision
) -> None:
    agent = agent_of(1, network, shape, precision)
    run_dir = start_run(tmp_path / "run", network, shape)
    save(agent, 400, run_dir / "checkpoints")
    trained = load_agent(run_dir, precision=precision)
    stacks = stacks_of(20, shape)
    values = agent.learner.values(stacks)
    assert torch.equal(trained.values(stacks), values)
    assert torch.equal(trained.outputs_of(stacks), values)
    assert values.dtype == torch.float32
    in_float32 = load_agent(run_dir).values(stacks)
    assert torch.equal(values, in_float32) == (precision != "bfloat16")
    in_training, of_loaded = (
        choose(stacks, epsilon=0.0, rng=np.random.default_rng(5))[0]
        for choose in (agent.play, trained.choose)
    )
    np.testing.assert_array_equal(in_training, of_loaded)
    # A single stack is another computation than the batch: it may round otherwise.
    if precision == "bfloat16":
        return
    for kind in (list(stacks), [stack.numpy() for stack in stacks]):
        actions = [trained.act(stack) for stack in kind]
        assert {type(action) for action in actions} == {int}
        assert_are_best(actions, values)


def test_of_several_learners_the_best_is_loaded(tmp_path: Path) -> None:
    stack, frame_shape, _ = SHAPES["image"]
    method = AdaptiveEbuConfig(learners=3)
    learner = build_learner(
        method,
        LearnerConfig(),
        stack=stack,
        frame_shape=frame_shape,
        num_actions=NUM_ACTIONS,
        device=CPU,
        precision="float32",
        rng=np.random.default_rng(1),
    )
    assert isinstance(learner, StackedLearner)
    agent = build_agent(method, learner, np.random.default_rng(1))
    run_dir, stacks = start_run(tmp_path / "run", agent="adaptive_ebu"), stacks_of(20)
    ends = np.ones(3, dtype=bool)
    for best, frames in ((2, 400), (1, 800)):
        rewards = np.where(np.arange(3) == best, frames, 0).astype(np.float32)
        agent.observe(VectorStep(np.zeros(3), 0 * rewards, ~ends, ~ends, ~ends, ends))
        agent.observe(VectorStep(np.zeros(3), rewards, ends, ~ends, ~ends, ~ends))
        save(agent, frames, run_dir / "checkpoints")
        loaded = load_agent(run_dir)
        assert loaded.frames == frames
        assert torch.equal(loaded.values(stacks), learner.values(stacks)[best])
        in_training, of_loaded = (
            choose(stacks, epsilon=0.2, rng=np.random.default_rng(5))
            for choose in (agent.play, loaded.choose)
        )
        assert all(map(np.array_equal, in_training, of_loaded))


def test_final_weights_are_the_newest_and_best_ones_lie_apart(tmp_path: Path) -> None:
    run_dir = start_run(tmp_path / "run")
    for seed, frames, directory in (
        (1, 400, "checkpoints"),
        (2, 800, "checkpoints"),
        (3, 600, "best"),
    ):
        save(agent_of(seed), frames, run_dir / directory)
    stacks = stacks_of(4)
    for weights, frames, seed in (("final", 800, 2), ("best", 600, 3)):
        trained = load_agent(run_dir, weights)  # type: ignore[arg-type]
        assert trained.frames == frames
        assert torch.equal(trained.values(stacks), agent_of(seed).learner.values(stacks))
    assert load_agent(run_dir).frames == 800


def damage(checkpoint: Path) -> None:
    path = checkpoint / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    run_dir = start_run(tmp_path / "run")
    save(agent_of(1), 400, run_dir / "checkpoints")
    damage(save(agent_of(2), 800, run_dir / "checkpoints"))
    trained = load_agent(run_dir)
    assert trained.frames == 400
    (warning,) = trained.warnings
    assert "frames-000000000800" in warning


def test_only_damaged_checkpoints_are_a_failure(tmp_path: Path) -> None:
    run_dir = start_run(tmp_path / "run")
    damage(save(agent_of(1), 400, run_dir / "checkpoints"))
    with pytest.raises(EbuError, match="damaged") as failure:
        load_agent(run_dir)
    assert not isinstance(failure.value, UsageError)


@pytest.mark.parametrize(("weights", "awaited"), [("final", "checkpoint"), ("best", "evaluation")])
def test_a_run_without_weights_says_what_to_wait_for(
    tmp_path: Path, weights: Any, awaited: str
) -> None:
    run_dir = start_run(tmp_path / "run")
    with pytest.raises(EbuError, match=awaited) as failure:
        load_agent(run_dir, weights)
    assert not isinstance(failure.value, UsageError)
    assert "\n" not in str(failure.value)


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(UsageError, match="not a run directory"):
            load_agent(path)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        '{"settings": {}, "environment": {}}',
        '{"settings": {"network": "nature"}, "environment": {"num_actions": 5}}',
    ],
)
def test_a_damaged_configuration_is_a_failure(tmp_path: Path, config: str) -> None:
    run_dir = start_run(tmp_path / "run")
    save(agent_of(1), 400, run_dir / "checkpoints")
    (run_dir / "config.json").write_text(config)
    with pytest.raises(EbuError, match=r"config\.json") as failure:
        load_agent(run_dir)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("part", "name"),
    [("settings", "game"), ("settings", "protocol"), ("environment", "frame_dtype")],
)
def test_what_a_configuration_lacks_is_named(part: str, name: str, tmp_path: Path) -> None:
    run_dir = start_run(tmp_path)
    save(agent_of(1), 400, run_dir / "checkpoints")
    config = read_config(run_dir)
    del config[part][name]
    write_config(run_dir, config)
    with pytest.raises(EbuError, match=rf"config\.json lacks {name}"):
        load_agent(run_dir)


def test_weights_of_another_network_are_a_failure(tmp_path: Path) -> None:
    run_dir = start_run(tmp_path / "run", network="dueling")
    save(agent_of(1, "nature"), 400, run_dir / "checkpoints")
    with pytest.raises(EbuError):
        load_agent(run_dir)


def test_loading_leaves_a_run_that_is_being_trained_alone(tmp_path: Path) -> None:
    run_dir = start_run(tmp_path / "run")
    save(agent_of(1), 400, run_dir / "checkpoints")
    # What the training process is writing at this moment.
    draft = run_dir / "checkpoints" / ".frames-000000000800.1.tmp"
    draft.mkdir()
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert load_agent(run_dir).frames == 400
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
    assert load_latest(run_dir / "checkpoints", state_only=True) is not None
