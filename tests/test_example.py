"""The examples play as this project does: one with it, one without any of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import ale_py
import numpy as np
import pytest
import torch
from torch import nn

from agents import load_agent
from agents.distillation.deploy.export import onnx_bytes
from agents.distillation.deploy.onnx_policy import OnnxPolicy
from agents.trained import TrainedAgent
from ebu.evaluation import evaluate
from ebu.frames import FrameStack, torch_dtype
from envs import make_vector
from envs.protocols import PROTOCOLS
from envs.vector import environment_seed
from examples import play_agent, play_onnx
from tests.agents.distillation.small_pipelines import teacher_of
from tests.distillations import GREY, NUMBERS, train

SEED = 3
ENV_SEED = environment_seed(SEED, 0, 0)
BLOCKED = ("torch", "onnx", "ebu", "agents", "envs")


def played_agent(protocol: str) -> TrainedAgent:
    """A network with random weights whose actions depend on what it sees of Breakout."""
    env = make_vector("breakout", 1, seed=0, protocol=PROTOCOLS[protocol], training=False)
    agent = teacher_of(
        outputs="logits",
        network="net3",
        num_actions=env.num_actions,
        stack=4,
        frame_shape=(84, 84),
        game="breakout",
        protocol=protocol,
    )
    stack = FrameStack(1, env.frame_shape, torch_dtype(env.frame_dtype), 4, torch.device("cpu"))
    rng, step, seen = np.random.default_rng(0), env.reset(), []
    for _ in range(60):
        seen.append(stack.push(step.frames, step.started).clone())
        env.send(rng.integers(env.num_actions, size=1))
        step = env.recv()
    env.close()
    (*_, last) = (layer for layer in agent.network.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        last.bias.sub_(agent.network(torch.cat(seen)).mean(dim=0))
    return agent


@pytest.fixture(scope="module", params=sorted(PROTOCOLS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "net3.onnx"
    path.write_bytes(onnx_bytes(played_agent(request.param), "net3"))
    return path


def test_the_example_plays_as_this_project_does(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = []

    class Recorded(ale_py.AtariVectorEnv):
        def step(self, actions: np.ndarray) -> Any:
            sent.append(int(actions[0]))
            return super().step(actions)

    monkeypatch.setattr(play_onnx, "AtariVectorEnv", Recorded)
    score = play_onnx.play(str(exported), seed=ENV_SEED)

    policy = OnnxPolicy(exported)
    protocol = PROTOCOLS[policy.about["protocol"]]
    env = make_vector("breakout", 1, seed=SEED, protocol=protocol, training=False)
    rng = np.random.default_rng(ENV_SEED)
    expected = evaluate(policy.choose, env, episodes=1, epsilon=0.05, rng=rng)
    env.close()
    assert expected is not None
    assert sent == expected.actions[0].tolist()
    assert score == expected.returns[0]
    # Exploration alone would not do it: both saw the same frames.
    assert np.bincount(sent).max() < 0.9 * len(sent)


@pytest.mark.parametrize(("protocol", "action_set"), [("paper", "full"), ("machado", "minimal")])
def test_the_actions_are_those_of_the_file(
    protocol: str, action_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = played_agent(protocol)
    agent.config["settings"]["action_set"] = action_set
    path = tmp_path / "net3.onnx"
    path.write_bytes(onnx_bytes(agent, "net3"))
    made: list[Any] = []

    class Refused(ale_py.AtariVectorEnv):
        def reset(self, **options: Any) -> Any:
            made.append(self.single_action_space)
            raise KeyboardInterrupt

    monkeypatch.setattr(play_onnx, "AtariVectorEnv", Refused)
    with pytest.raises(KeyboardInterrupt):
        play_onnx.play(str(path))
    assert [space.n for space in made] == [{"minimal": 4, "full": 18}[action_set]]


@pytest.mark.parametrize("exported", ["paper"], indirect=True)
def test_it_needs_neither_torch_nor_this_project(exported: Path) -> None:
    example = Path(play_onnx.__file__)
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in BLOCKED)
    code = (
        f"import sys; {blocked}; import runpy; sys.argv = ['play', {str(exported)!r}, '7']; "
        f"runpy.run_path({str(example)!r}, run_name='__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=exported.parent,
        check=True,
    )
    assert float(ran.stdout) == play_onnx.play(str(exported), seed=7)


@pytest.mark.parametrize("game", [GREY, NUMBERS])
def test_an_agent_sees_the_stacks_that_it_is_evaluated_on(
    game: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = train(tmp_path / "run", f"--game {game} --network net3 --frames 200")
    stacks, original = [], TrainedAgent.act

    def act(self: TrainedAgent, stack: torch.Tensor) -> int:
        stacks.append(stack.clone())
        return original(self, stack)

    monkeypatch.setattr(TrainedAgent, "act", act)
    score = play_agent.play(str(run_dir), seed=SEED)

    seen, agent = [], load_agent(run_dir)

    def choose(stacks: torch.Tensor, **options: Any) -> Any:
        seen.append(stacks[0].clone())
        return agent.choose(stacks, **options)

    env = make_vector(game, 1, seed=SEED, protocol=PROTOCOLS["paper"], training=False)
    expected = evaluate(choose, env, episodes=1, epsilon=0.0, rng=np.random.default_rng(0))
    env.close()
    assert expected is not None
    assert score == expected.returns[0]
    assert all(map(torch.equal, stacks, seen))
    assert len(stacks) == expected.stops[0] - expected.starts[0]
