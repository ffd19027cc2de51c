"""The documents on agents: the example of a new one runs, and every agent has its section."""

import dataclasses
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agents
import agents.registry
from agents import AGENTS, Agent, AgentConfig
from ebu.commands.train_arguments import parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.errors import UsageError

ROOT = Path(__file__).parent.parent
MODULE, CHANGE = re.findall(
    r"```(?:python agents/expected_sarsa\.py|diff)\n(.*?)```",
    (ROOT / "docs/extending.md").read_text(),
    re.S,
)
PAGE = (ROOT / "docs/agents.md").read_text()
PARTS = ["Idea", "Target", "What differs from DQN", "Defaults and their source", "Deviations"]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Agent]]:
    """The agent of docs/extending.md, made and registered as it says there."""
    registry = tmp_path / "agents/registry.py"
    registry.parent.mkdir()
    registry.write_text(Path(agents.registry.__file__).read_text())
    (registry.parent / "expected_sarsa.py").write_text(MODULE)
    subprocess.run(["git", "apply"], cwd=tmp_path, input=CHANGE, text=True, check=True)
    monkeypatch.setattr(agents, "__path__", [*agents.__path__, str(registry.parent)])
    namespace: dict[str, dict[str, type[Agent]]] = {}
    exec(registry.read_text(), namespace)
    assert namespace["AGENTS"].keys() - AGENTS.keys() == {"expected_sarsa"}
    monkeypatch.setitem(AGENTS, "expected_sarsa", namespace["AGENTS"]["expected_sarsa"])
    yield AGENTS["expected_sarsa"]
    del sys.modules["agents.expected_sarsa"]
    del agents.expected_sarsa


def test_the_example_is_short() -> None:
    registered = re.findall(r"^\+[^+]", CHANGE, re.M)
    assert len(MODULE.splitlines()) + len(registered) <= 40


def test_the_example_trains_and_goes_on(
    example: type[Agent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert importlib.import_module("agents.expected_sarsa").ExpectedSarsa is example
    flags = "--agent expected_sarsa --policy-epsilon 0.05 --game CartPole-v1 --frames 600 "
    flags += "--num-envs 2 --threads 1 --device cpu --learning-starts 100 --replay-capacity 1000 "
    flags += "--eval-every-frames 0 --updates-per-step 0.25"
    args = [*flags.split(), "--run-dir", str(tmp_path / "run")]
    for until, updates in ((300, 49), (600, 124)):
        trainer = build_trainer(parse_arguments(args))
        assert type(trainer.agent) is example
        assert trainer.agent.config.policy_epsilon == 0.05  # type: ignore[attr-defined]
        assert trainer.run(until)
        assert trainer.updates == pytest.approx(updates, abs=2)
        trainer.close()


def test_the_example_refuses_what_does_not_fit(
    example: type[Agent], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="--policy-epsilon must lie between 0 and 1"):
        parse_arguments(["--agent", "expected_sarsa", "--policy-epsilon", "2"])
    with pytest.raises(UsageError, match="did you mean expected_sarsa"):
        parse_arguments(["--agent", "expected_sars"])
    with pytest.raises(SystemExit):
        parse_arguments(["--agent", "expected_sarsa", "--help"])
    assert "--policy-epsilon" in capsys.readouterr().out


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_has_its_section_with_its_defaults(name: str) -> None:
    sections = dict(section.split("\n", 1) for section in re.split(r"^## ", PAGE, flags=re.M)[1:])
    section = sections[name]
    positions = [section.find(f"**{part}.**") for part in PARTS]
    assert positions == sorted(positions)
    assert positions[0] >= 0
    code = re.findall(r"`([\w/]+\.py)`, `(?:\w+\.)?(\w+)`", section[: positions[2]])
    assert code
    for path, function in code:
        assert f"def {function}(" in (ROOT / path).read_text()
    config = AGENTS[name].config_type()
    shared = {field.name for field in dataclasses.fields(AgentConfig)} - {"cuda_graphs"}
    own = {field.name for field in dataclasses.fields(config)} - shared - {"cuda_graphs"}
    table = dict(re.findall(r"^\| `--([\w-]+)` \| (\S+) \|", section, flags=re.M))
    expected = {}
    for field in shared if name == "dqn" else own:
        value = getattr(config, field)
        expected[field.replace("_", "-")] = "yes" if value is True else str(value)
    assert table == expected
