"""The pages on extensions and agents: their code runs, and every default is documented."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agents.settings import AGENTS, AgentConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / f"docs/{name}.md" for name in ("extending", "custom_environment")]
FLAGS = "--frames 300 --num-envs 2 --threads 1 --device cpu --learning-starts 100 "
FLAGS += "--replay-capacity 1000 --eval-every-frames 0 --updates-per-step 0.25"


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project to which everything on the pages was added, in their order."""
    copy = tmp_path_factory.mktemp("extended")
    for package in ("ebu", "agents", "envs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    shutil.copy(ROOT / "train.py", copy)
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for language, path, code in re.findall(r"```(\w+) ?(\S*)\n(.*?)```", text, re.S):
        if language == "diff":
            subprocess.run(["git", "apply"], cwd=copy, input=code, text=True, check=True)
        else:
            (copy / path).write_text(code, encoding="utf-8")
    return copy


def train(project: Path, flags: str, run_dir: str = "run") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", *FLAGS.split(), *flags.split(), "--run-dir", run_dir]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ("--agent rainbow_lite", {"n_step": 3, "double": True, "prioritized": True}),
        pytest.param(
            "--agent expected_sarsa --policy-epsilon 0.05",
            {"policy_epsilon": 0.05},
            marks=pytest.mark.slow,
        ),
        pytest.param("--agent combined_dqn", {"n_step": 1}, marks=pytest.mark.slow),
        pytest.param("--agent dqn --game my_module:MyEnv-v0", {}, marks=pytest.mark.slow),
        pytest.param("--agent ebu --network wide", {"network": "wide"}, marks=pytest.mark.slow),
    ],
    ids=["agent", "target", "sampler", "environment", "network"],
)
def test_an_extension_trains(extended: Path, flags: str, settings: dict[str, object]) -> None:
    run_dir = "-".join(re.findall(r"\w+", flags))
    flags = flags if "--game" in flags else f"{flags} --game CartPole-v1"
    for frames in (300, 600) if "sarsa" in flags else (600,):
        done = train(extended, f"{flags} --frames {frames}", run_dir)
        assert done.returncode == 0, done.stderr
    config = json.loads((extended / run_dir / "config.json").read_text())
    assert settings.items() <= config["settings"].items()
    last = (extended / run_dir / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["train/updates"] > 50


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--agent expected_sarsa --policy-epsilon 2", "--policy-epsilon"),
        ("--agent expected_sars", "did you mean expected_sarsa"),
    ],
)
def test_an_extension_refuses_what_does_not_fit(extended: Path, flags: str, message: str) -> None:
    refused = train(extended, flags)
    assert refused.returncode != 0
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def documented(text: str) -> dict[str, str]:
    """The defaults in a table of flags."""
    return dict(re.findall(r"^\| `--([\w-]+)` \| (\S+) \|", text, flags=re.M))


def defaults(settings: AgentConfig) -> dict[str, str]:
    """The settings as a page writes them."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    del values["cuda_graphs"]
    words = {True: "yes", False: "no"}
    return {
        name.replace("_", "-"): words[value] if isinstance(value, bool) else str(value)
        for name, value in values.items()
    }


def test_the_defaults_of_all_agents_are_documented() -> None:
    page = (ROOT / "docs/agents.md").read_text(encoding="utf-8")
    table = documented(page.partition("## What all agents share")[2].partition("\n## ")[0])
    assert table == defaults(AgentConfig())
    assert all(f"`{name}`" in page for name in AGENTS)


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_has_a_section_with_what_differs_from_the_shared_defaults(name: str) -> None:
    pages = [ROOT / f"docs/agents_{kind}.md" for kind in ("transitions", "segments")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert "**Idea.**" in section
    assert "**Deviations.**" in section
    shared = defaults(AgentConfig())
    if name != "dqn":  # whose defaults the others share where they have the flag
        shared |= defaults(AGENTS["dqn"])
    own = {flag: v for flag, v in defaults(AGENTS[name]).items() if shared.get(flag) != v}
    assert documented(section) == own
