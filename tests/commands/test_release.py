"""`release.py` on real runs: the folder plays as the run does, and holds nothing else."""

import dataclasses
import json
import shlex
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from agents import load_agent
from agents.distillation.deploy.onnx_policy import OnnxPolicy
from agents.distillation.students import build, save_student
from ebu.commands import release as release_command
from ebu.commands.evaluate_arguments import EvaluateConfig
from ebu.commands.evaluate_arguments import parse_arguments as parse_evaluation
from ebu.commands.evaluation import run
from ebu.commands.release import parse_arguments
from ebu.commands.releasing.folder import write_folder
from ebu.commands.releasing.push import check_push, push_folder
from ebu.commands.reporting.runs import read_run
from ebu.commands.train_arguments import parse_arguments as train_arguments
from ebu.commands.trainer import build_trainer
from ebu.errors import EbuError, UsageError
from ebu.evaluation import Evaluator
from envs import EnvironmentFault
from envs.protocols import PAPER, PROTOCOLS
from tests.distillations import train

ROOT = Path(__file__).parents[2]
RUNS = {
    "breakout": "--game breakout --network 4-4-4/8 --frames 400",
    "cartpole": "--network 4-4-4/8 --game CartPole-v1 --frames 200 "
    "--eval-every-frames 100 --eval-episodes 2",
    "alongside": "--game CartPole-v1 --frames 200 --distill 2-2-2/4",
}


@pytest.fixture(scope="module", autouse=True)
def short_protocol() -> Any:
    """The protocol as it is, but for the length of its games."""
    with pytest.MonkeyPatch.context() as patch:
        short = dataclasses.replace(PAPER, eval_max_frames=200, eval_episodes=3)
        patch.setitem(PROTOCOLS, "paper", short)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("runs")
    found = {name: train(directory / name, flags) for name, flags in RUNS.items()}
    agent = load_agent(found["cartpole"])
    shape = tuple(agent.config["environment"]["frame_shape"])
    student = build("2-2-2/4", agent.num_actions, stack=1, frame_shape=shape)
    found["student"] = directory / "student"
    save_student(found["student"], student, teacher=agent, teacher_dir=found["cartpole"], seed=4)
    found["online"] = found.pop("alongside") / "students" / "2-2-2_4"
    return found


def release(run_dir: Path, out: Path, flags: str = "", *, onnx: bool = False) -> Path:
    """Release a run, by default as if its network could not be exported, which takes seconds."""
    given = [run_dir, "--out", out, "--threads", 1, "--device", "cpu", *flags.split()]
    with pytest.MonkeyPatch.context() as patch:
        if not onnx:
            patch.setattr("ebu.commands.releasing.folder.exportable", lambda network: False)
        write_folder(parse_arguments([str(word) for word in given]))
    return out


@pytest.fixture(scope="module")
def folders(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A release of each run, to be read or copied."""
    directory = tmp_path_factory.mktemp("hub")
    return {
        name: release(run_dir, directory / name, onnx=name == "breakout")
        for name, run_dir in runs.items()
    }


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the release of the run on CartPole."""
    return Path(shutil.copytree(folders["cartpole"], tmp_path / "copied"))


def states_of(run_dir: Path) -> torch.Tensor:
    """Arbitrary states of the run's environment."""
    environment = load_agent(run_dir).config["environment"]
    shape = (5, environment["stack"], *environment["frame_shape"])
    states = np.random.default_rng(0).integers(256, size=shape)
    return torch.from_numpy(states).to(getattr(torch, environment["frame_dtype"]))


@pytest.mark.parametrize("name", ["breakout", "cartpole", "student", "online"])
def test_a_folder_plays_as_its_run_does_and_names_no_place(
    name: str, runs: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    out = folders[name]
    states = states_of(runs[name])
    of_run, released = load_agent(runs[name]), load_agent(out)
    assert torch.equal(of_run.outputs_of(states), released.outputs_of(states))
    assert (of_run.outputs, of_run.frames) == (released.outputs, released.frames)
    assert of_run.temperature == released.temperature
    assert (of_run.temperature is None) == (name == "student")
    # Its own evaluation, again, from the folder alone.
    (path,) = (out / "evaluations").iterdir()
    record = json.loads(path.read_text())
    moved = shutil.copytree(out, tmp_path / "moved")
    again = run(EvaluateConfig(moved, threads=1, device="cpu"))
    assert again["returns"] == record["returns"]
    if name in RUNS:
        assert read_run(moved).score == read_run(runs[name]).score
    for text in [*out.glob("*.json"), *out.glob("*/*.json"), out / "README.md"]:
        assert str(runs[name].parents[1]) not in text.read_text()
    card = (out / "README.md").read_text()
    low, high = record["interval_95"]
    assert f"| **{record['mean']:,.2f}** | [{low:,.2f}, {high:,.2f}] |" in card
    assert ("model.onnx" in card) == (out / "model.onnx").exists() == (name == "breakout")


def test_its_film_and_its_onnx_file_are_of_the_agent(folders: dict[str, Path]) -> None:
    folder = folders["breakout"]
    with av.open(str(folder / "replay.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) > 5
    states, agent = states_of(folder), load_agent(folder)
    outputs = OnnxPolicy(folder / "model.onnx").outputs_of(states.numpy())
    assert np.allclose(outputs, agent.outputs_of(states).numpy(), atol=1e-4)


def test_best_weights_are_what_is_loaded_and_no_others(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    out = release(runs["cartpole"], tmp_path / "best", "--weights best --episodes 2")
    best, states = load_agent(runs["cartpole"], "best"), states_of(out)
    for loaded in (load_agent(out), load_agent(out, "best")):
        assert loaded.frames == best.frames
        assert torch.equal(loaded.outputs_of(states), best.outputs_of(states))
    with pytest.raises(UsageError, match="--weights best"):
        load_agent(out, "final")
    assert run(EvaluateConfig(out, weights="best", episodes=2, threads=1))["weights"] == "best"


def test_the_card_has_every_evaluation_of_these_weights_and_the_baseline(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    without = shutil.ignore_patterns("evaluations")
    run_dir = Path(shutil.copytree(runs["cartpole"], tmp_path / "run", ignore=without))
    questions: list[dict[str, Any]] = [{"random": True}, {"epsilon": 0.5}, {"weights": "best"}]
    questions += [{"max_steps": 3}, {"max_steps": 3, "random": True}]
    for question in [{"episodes": 4}, *({"episodes": 2, **each} for each in questions)]:
        run(EvaluateConfig(run_dir, threads=1, device="cpu", **question))
    out = release(run_dir, tmp_path / "out")
    records = [json.loads(path.read_text()) for path in (out / "evaluations").iterdir()]
    assert sorted((r["policy"], str(r["weights"]), r["games"]) for r in records) == [
        *[("agent", "final", games) for games in (2, 3, 4)],
        ("random", "None", 2),
    ]
    (longest,) = (record for record in records if record["games"] == 4)
    card = (out / "README.md").read_text()
    assert f"value: {longest['mean']:.2f} +/- {longest['deviation']:.2f}" in card
    assert card.count("(not the protocol's)") == card.count("| random play |") == 1


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def link_out(path: Path) -> None:
    shutil.move(path, path.parent.with_name("elsewhere"))
    path.symlink_to(path.parent.with_name("elsewhere"))


def describe(**entries: Any) -> Callable[[Path], None]:
    """Alters what config.json says of the weights."""

    def alter(path: Path) -> None:
        config = json.loads((path.parent / "config.json").read_text())
        config["released"] |= entries
        (path.parent / "config.json").write_text(json.dumps(config))

    return alter


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        link_out,
        Path.unlink,
        lambda path: path.write_bytes(b""),
        describe(frames="many"),
        describe(weights="newest"),
        describe(sha256=None),
    ],
)
def test_damaged_weights_are_refused_in_one_line(
    copied: Path, damage: Callable[[Path], None]
) -> None:
    damage(copied / "model.safetensors")
    with pytest.raises(EbuError) as failure:
        load_agent(copied)
    assert "\n" not in str(failure.value)
    assert not isinstance(failure.value, UsageError)


def test_a_release_is_replaced_by_one_of_the_same_agent_alone(
    runs: dict[str, Path], copied: Path, tmp_path: Path
) -> None:
    (copied / ".git").mkdir()
    for stale in ("evaluations/stale.json", "model.onnx"):
        (copied / stale).write_text("{}")
    flip(copied / "model.safetensors")
    release(runs["cartpole"], copied)
    assert load_agent(copied).frames == load_agent(runs["cartpole"]).frames
    assert (copied / ".git").exists()
    assert len(list((copied / "evaluations").iterdir())) == 1
    assert not (copied / "model.onnx").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    (tmp_path / "notes" / "link").symlink_to(sys.executable)  # as a virtual environment has
    for out in (copied, runs["breakout"], tmp_path / "notes", copied / "README.md"):
        with pytest.raises(UsageError, match="--out"):
            release(runs["student"], out)
    with pytest.raises(UsageError, match="released already"):
        release(copied, tmp_path / "twice")


@pytest.mark.parametrize("weights", ["final", "best"])
def test_the_commands_it_prints_and_writes_work(
    weights: str,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "agent").mkdir()
    monkeypatch.chdir(tmp_path / "agent")
    monkeypatch.setattr("ebu.commands.releasing.folder.exportable", lambda network: False)
    flags = ["--out", ".", "--weights", weights, "--episodes", "2", "--threads", "1"]
    run_dir = shutil.copytree(runs["cartpole"], tmp_path / "run")
    typed = ["release.py", str(run_dir), *flags]
    monkeypatch.setattr(sys, "argv", typed)
    release_command.main()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "play it with: " in line]
    _, _, hint = line.partition("play it with: ")
    card = Path("README.md").read_text()
    # Its name is the folder's, however that was typed.
    assert "\n# agent\n" in card
    assert '- name: "agent"\n' in card
    (used,) = [line.strip() for line in card.splitlines() if "evaluate.py FOLDER" in line]
    for text in (hint, used.replace("FOLDER", ".")):
        _, words = text.split("evaluate.py ")
        config = parse_evaluation([*shlex.split(words), "--episodes", "1", "--threads", "1"])
        assert run(config)["weights"] == weights


def test_an_environment_that_fails_while_states_are_played_costs_no_earlier_release(
    runs: dict[str, Path], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Evaluator.play

    def failing(self: Evaluator, *given: Any, **named: Any) -> Any:
        if self.episodes == 1:
            raise EnvironmentFault("environment 0 failed")
        return play(self, *given, **named)

    monkeypatch.setattr(Evaluator, "play", failing)
    for name in ("replay.mp4", "model.onnx"):
        (copied / name).touch()
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(EbuError, match=r"environment 0 failed; run the same command again$"):
        release(runs["cartpole"], copied, onnx=True)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


class Killed(BaseException):
    """Ends a release where a signal would."""


def test_an_earlier_release_is_whole_until_the_evaluation_has_ended(
    runs: dict[str, Path], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(config: EvaluateConfig) -> dict[str, Any]:
        raise Killed

    monkeypatch.setattr("ebu.commands.releasing.folder.run", stopped)
    for name in ("replay.mp4", "model.onnx"):
        (copied / name).touch()
    before = sorted(copied.rglob("*"))
    with pytest.raises(Killed):
        release(runs["cartpole"], copied)
    assert sorted(copied.rglob("*")) == before


def test_a_release_stopped_before_any_of_its_files_is_completed_to_the_same(
    runs: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    stopped, replace = 0, Path.replace
    for last in range(20):
        out, written = tmp_path / str(last) / "cartpole", 0

        def counted(path: Path, target: Path, last: int = last) -> Path:
            nonlocal written
            if written == last:
                raise Killed
            written += 1
            return replace(path, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", counted)
            try:
                release(runs["cartpole"], out)
                break
            except Killed:
                stopped += 1
        with pytest.raises(UsageError, match="not a run directory"):
            load_agent(out)
        release(runs["cartpole"], out)
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == {
            path.name: path.read_bytes() for path in folders["cartpole"].iterdir() if path.is_file()
        }
    assert stopped == 6


def test_released_weights_are_not_trained_further(copied: Path) -> None:
    before = (copied / "config.json").read_bytes()
    flags = f"{RUNS['cartpole']} --num-envs 2 --threads 1 --run-dir {copied}"
    for given in (flags, f"--resume {copied} --frames 2000"):
        with pytest.raises(UsageError, match="released agent"):
            build_trainer(train_arguments(given.split()))
    assert (copied / "config.json").read_bytes() == before


class FakeHub:
    """The part of huggingface_hub that is used, which keeps what it is told."""

    def __init__(self, token: str | None, error: Exception | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        module, utils = types.ModuleType("huggingface_hub"), types.ModuleType("utils")
        module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        module.get_token = lambda: token  # type: ignore[attr-defined]
        module.HfApi = lambda: self  # type: ignore[attr-defined]
        utils.validate_repo_id = self.validate  # type: ignore[attr-defined]
        self.modules = {"huggingface_hub": module, "huggingface_hub.utils": utils}
        self.error = error

    def validate(self, name: str) -> None:
        if name.count("/") > 1:
            raise ValueError(f"{name} is no name")

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        self.calls.append((name, private, exist_ok))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append((repo_id, folder_path))


def test_a_folder_is_pushed_whole_with_a_token(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, folder = FakeHub("secret"), copied
    for name, module in hub.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    check_push("me/breakout")
    with pytest.raises(UsageError, match="is no name"):
        check_push("me/a/b")
    assert push_folder(folder, "me/breakout", private=True) == "https://hub/me/breakout"
    assert hub.calls == [("me/breakout", True, True), ("me/breakout", folder)]
    hub.error = OSError("503:\nbusy")
    with pytest.raises(EbuError, match="503: busy"):
        push_folder(folder, "me/breakout", private=False)
    for name, module in FakeHub(None).modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(UsageError, match="token"):
        check_push("me/breakout")


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "docs/results/agents").iterdir()), ids=lambda path: path.name
)
def test_committed_agents_load_and_their_cards_have_their_scores(folder: Path) -> None:
    agent = load_agent(folder)
    (path,) = (folder / "evaluations").iterdir()
    record = json.loads(path.read_text())
    assert (record["trained_frames"], record["game"]) == (
        agent.frames,
        agent.config["settings"]["game"],
    )
    assert f"**{record['mean']:,.2f}**" in (folder / "README.md").read_text()
