"""`evaluate.py` on real runs: what it scores, what it refuses, what it leaves alone."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agents import load_agent
from ebu import evaluation
from ebu.commands import evaluate, scoring, showing
from ebu.commands.evaluate_arguments import EvaluateConfig
from ebu.commands.evaluation import check_fits, rules_of, run
from ebu.commands.evaluation_record import as_table
from ebu.commands.reporting.scores import final_record
from ebu.commands.train_arguments import parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.errors import EbuError, UsageError
from ebu.evaluation import environments_for
from envs import MOST_STEPS, make_vector
from envs.film import CannotFilmError
from envs.protocols import MACHADO, PAPER, PROTOCOLS

ROOT = Path(__file__).parents[2]
# Frames after which the short protocols cut a game: 50 agent steps.
CAP = 200


def train(run_dir: Path, flags: str) -> Path:
    """A few steps of training, an evaluation and a checkpoint among them."""
    args = f"--num-envs 2 --replay-capacity 400 --threads 1 --run-dir {run_dir} {flags}".split()
    config = parse_arguments(args)
    trainer = build_trainer(config)
    try:
        assert trainer.run(config.frames)
    finally:
        trainer.close()
    return run_dir


@pytest.fixture(scope="module", autouse=True)
def short_protocols() -> Any:
    """The protocols as they are, but for the length of a game."""
    with pytest.MonkeyPatch.context() as patch:
        for protocol in (PAPER, MACHADO):
            short = dataclasses.replace(protocol, eval_max_frames=CAP, eval_episodes=5)
            patch.setitem(PROTOCOLS, protocol.name, short)
        yield


TRAINED = {
    "breakout": "--game Breakout --frames 1600 --eval-every-frames 800 --eval-episodes 1 "
    "--random-start-actions 4",
    "machado": "--game breakout --frames 80 --protocol machado --epsilon-end 0.07",
    "cartpole": "--game CartPole-v1 --frames 200 --eval-every-frames 100 --eval-episodes 2",
    "bfloat16": "--game breakout --frames 400 --precision bfloat16",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs by name, each trained when first asked for; results alone may be added to them."""
    directory = tmp_path_factory.mktemp("runs")

    def get(name: str) -> Path:
        run_dir = directory / name
        return run_dir if run_dir.exists() else train(run_dir, TRAINED[name])

    return get


@pytest.fixture
def copied(runs: Callable[[str], Path], tmp_path: Path) -> Path:
    """The run on Breakout without results, to be damaged."""
    without = shutil.ignore_patterns("evaluations")
    return Path(shutil.copytree(runs("breakout"), tmp_path / "copied", ignore=without))


def config_for(run_dir: Path, **options: Any) -> EvaluateConfig:
    return EvaluateConfig(run_dir, **{"threads": 1, "device": "cpu", **options})


def digests(directory: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


def command(*args: object) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it on a machine without a display."""
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in displays}
    return subprocess.run(
        [sys.executable, "evaluate.py", *map(str, args)],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_prints_a_table_and_changes_nothing_but_adds_its_result(
    runs: Callable[[str], Path], tmp_path: Path
) -> None:
    run_dir = runs("breakout")
    shutil.rmtree(run_dir / "evaluations", ignore_errors=True)
    before = digests(run_dir)
    flags = ["--episodes", 2, "--protocol", "paper", "--threads", 1]
    ended = command(run_dir, *flags, "--json", tmp_path / "e.json")
    assert ended.returncode == 0, ended.stderr
    assert "2/2" in ended.stderr  # the bar
    ((path, _),) = digests(run_dir).items() - before.items()
    assert before.items() <= digests(run_dir).items()
    record = json.loads((tmp_path / "e.json").read_text())
    assert Path(path).parent == run_dir / "evaluations"
    assert json.loads(Path(path).read_text()) == record
    newest = max(path.name for path in (run_dir / "checkpoints").iterdir())
    trained = int(newest.removeprefix("frames-"))
    expected = {"game": "breakout", "policy": "agent", "weights": "final", "epsilon": 0.05}
    expected |= {"trained_frames": trained, "human_table": "nature2015", "precision": "float32"}
    assert expected.items() <= record.items()
    assert len(record["returns"]) == record["games"] == 2
    assert record["mean"] == pytest.approx(np.mean(record["returns"]))
    assert record["frames_played"] == sum(record["lengths_frames"])
    assert record["human_normalised"] == pytest.approx((record["mean"] - 1.7) / (31.8 - 1.7))
    rows = dict(line.split("  ", 1) for line in ended.stdout.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["weights"] == f"final, after {trained:,} frames of training"
    assert rows["games"].startswith("2 (not the protocol's 30), ")
    assert rows["raw mean"].startswith(f"{record['mean']:.2f} ± ")
    assert "human 31.8, random 1.7" in rows["human-normalised"]


QUESTIONS: list[dict[str, Any]] = [
    *({}, {"seed": 1}, {"num_envs": 2}, {"weights": "best"}),
    *({"epsilon": 0.05000001}, {"random": True}, {"max_steps": 3}),
]


def test_every_question_has_a_file_of_its_own_in_the_run_directory(copied: Path) -> None:
    before = digests(copied)
    records: dict[int, Any] = {}
    for number, question in enumerate([*QUESTIONS, QUESTIONS[0]]):
        record = run(config_for(copied, **{"episodes": 3, **question}))
        assert records.setdefault(number % len(QUESTIONS), record) == record
    assert before.items() <= digests(copied).items()
    kept = [json.loads(path.read_text()) for path in (copied / "evaluations").iterdir()]
    assert len(kept) == len(QUESTIONS)
    assert all(record in kept for record in records.values())
    (best,) = (copied / "best").iterdir()
    assert best.name == f"frames-{records[3]['trained_frames']:012d}"


def test_games_of_another_length_are_not_the_score_of_the_run(copied: Path) -> None:
    whole = run(config_for(copied, episodes=2))
    cut = run(config_for(copied, episodes=2, max_steps=3))
    assert cut["frames_played"] < whole["frames_played"]
    assert final_record(copied, "paper", 2) == whole
    # The run's own limit is no other.
    path = copied / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["eval_max_steps"] = 3
    path.write_text(json.dumps(config))
    random = config_for(copied, episodes=2, random=True)
    assert run(dataclasses.replace(random, max_steps=3)) == run(random)


def test_a_run_directory_that_cannot_be_written_still_has_its_score_shown(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "evaluations").write_text("in the way")
    record = run(config_for(copied, episodes=1, json=tmp_path / "e.json"))
    assert json.loads((tmp_path / "e.json").read_text()) == record
    lines = capsys.readouterr().err.splitlines()
    (warning,) = (line for line in lines if line.startswith("warning: "))
    assert str(copied) in warning


def test_the_rules_that_are_played_are_recorded_and_set_apart_from_the_protocol(
    runs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    real = evaluation.evaluate

    def noticing(*args: Any, **options: Any) -> Any:
        given.update(options)
        return real(*args, **options)

    monkeypatch.setattr(evaluation, "evaluate", noticing)
    record = run(config_for(runs("breakout"), epsilon=0.01))
    assert given["epsilon"] == record["epsilon"] == 0.01
    assert given["random_start_actions"] == 4
    assert record["protocol_epsilon"] == 0.05
    assert max(record["lengths_frames"]) <= CAP
    assert as_table(record).count("not the protocol's 0.05") == 1
    assert "not the protocol's" not in as_table(run(config_for(runs("breakout"))))
    assert given["epsilon"] == 0.05
    machado = run(config_for(runs("machado"), episodes=1))
    assert given["epsilon"] == machado["epsilon"] == 0.07
    assert machado["human_table"] == "57table"
    assert "machado (separate evaluation)" in as_table(machado)


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_it_plays_in_the_precision_of_the_run(
    has_bfloat16: bool,
    runs: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[str] = []

    def noticing(*args: Any) -> Any:
        seen.append(args[-1])
        return load_agent(*args)

    monkeypatch.setattr("ebu.commands.evaluation.load_agent", noticing)
    monkeypatch.setattr("ebu.commands.evaluation.has_bfloat16", lambda device: has_bfloat16)
    record = run(config_for(runs("bfloat16"), episodes=1))
    assert seen == [record["precision"]] == ["bfloat16"]
    assert ("emulated" in capsys.readouterr().err) != has_bfloat16


def test_an_evaluation_never_plays_the_games_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    real = make_vector

    def noticing(*args: Any, **given: Any) -> Any:
        seeds.append(given["seed"])
        return real(*args, **given)

    monkeypatch.setattr(scoring, "make_vector", noticing)
    for seed in range(2):
        run_dir = train(tmp_path / str(seed), f"--game breakout --frames 16 --seed {seed}")
        run(config_for(run_dir, episodes=1, seed=seed))
    assert len(seeds) == len(set(seeds)) == 4


def test_random_play_is_scored_in_the_same_setting_without_weights(
    runs: Callable[[str], Path], copied: Path
) -> None:
    agent = run(config_for(runs("breakout")))
    shutil.rmtree(copied / "checkpoints")
    record = run(config_for(copied, random=True))
    same = ("game", "protocol", "games", "human_table", "num_envs", "seed")
    assert [record[key] for key in same] == [agent[key] for key in same]
    assert (record["policy"], record["weights"], record["epsilon"]) == ("random", None, 1.0)
    assert "uniformly random actions" in as_table(record)
    assert "not the protocol's" not in as_table(record)
    # It knows no action set.
    assert run(config_for(copied, random=True, protocol="machado"))["protocol"] == "machado"


def test_games_are_shared_out_evenly(runs: Callable[[str], Path]) -> None:
    run_dir = runs("breakout")
    shares = {episodes: environments_for(episodes) for episodes in (1, 5, 16, 17, 30, 100)}
    assert shares == {1: 1, 5: 5, 16: 16, 17: 9, 30: 15, 100: 15}
    for options, num_envs in (({}, 5), ({"num_envs": 3}, 3), ({"render": True}, 1)):
        assert rules_of(config_for(run_dir, **options)).evaluator.num_envs == num_envs


# --- films ----------------------------------------------------------------------------------


def test_the_film_is_of_the_best_game(runs: Callable[[str], Path], tmp_path: Path) -> None:
    record = run(config_for(runs("breakout"), random=True, video=tmp_path / "best.gif"))
    best = int(np.argmax(record["returns"]))
    pictures = record["lengths_frames"][best] // 4 + 1
    with Image.open(tmp_path / "best.gif") as gif:
        # Pillow joins pictures that are the same, and adds up their times.
        shown = 0
        for t in range(getattr(gif, "n_frames", 1)):
            gif.seek(t)
            shown += gif.info["duration"] // 70
        assert shown == -(-pictures // 2)
        assert gif.size == (160, 210)


def test_the_window_follows_the_game(
    runs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("ebu.commands.evaluation.check_display", lambda: None)
    monkeypatch.setattr(showing, "LIVE_FPS", 100_000)
    shown: list[np.ndarray] = []

    class Noticing(showing.Window):
        def watch(self, actions: np.ndarray) -> None:
            super().watch(actions)
            shown.append(np.asarray(self._image.get_array()).copy())

    monkeypatch.setattr("ebu.commands.showing.Window", Noticing)
    record = run(config_for(runs("breakout"), episodes=1, render=True, random=True))
    assert len(shown) == record["lengths_frames"][0] // 4
    assert len({picture.tobytes() for picture in shown}) > 10


# --- Gymnasium ------------------------------------------------------------------------------


def test_a_gymnasium_run_is_scored_without_human_scores(runs: Callable[[str], Path]) -> None:
    record = run(config_for(runs("cartpole"), episodes=3))
    assert record["game"] == "CartPole-v1"
    assert record["human_normalised"] is None
    assert record["mean"] == pytest.approx(np.mean(record["lengths_frames"]))  # a point a step
    assert "no human score" in as_table(record)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "machado"}, "machado plays 18 actions.*knows 4.*--protocol paper"),
        ({"protocol": "nature"}, "--protocol nature: choose one of paper, machado"),
        ({"episodes": -3}, "--episodes must be positive, not -3"),
        ({"num_envs": -1}, "--num-envs must be at least 0"),
        ({"episodes": 4, "num_envs": 5}, "--num-envs 5: .* --episodes is 4"),
        ({"epsilon": float("nan")}, "--epsilon must be between 0 and 1"),
        ({"epsilon": 0.1, "random": True}, "--epsilon says nothing with --random"),
        ({"weights": "best", "random": True}, "--weights best says nothing with --random"),
        ({"max_steps": MOST_STEPS + 1}, "--max-steps must be at most 536,870,911, not 536870912"),
        ({"device": "tpu"}, "--device tpu: choose one of auto, cpu, cuda"),
        ({"video": Path("game.avi")}, r"ends in \.gif or \.mp4"),
        ({"video": Path("/nowhere/game.gif")}, "there is no directory /nowhere"),
        ({"json": Path("/nowhere/e.json")}, "there is no directory /nowhere"),
        ({"json": Path("/")}, "is a directory"),
        ({"json": Path("e.gif"), "video": Path("e.gif")}, "--json and --video are both e.gif"),
    ],
)
def test_what_cannot_be_done_is_refused_before_playing(
    runs: Callable[[str], Path],
    options: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir = runs("breakout")
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("played"))
    with pytest.raises(UsageError, match=words):
        run(config_for(run_dir, **options))


FOREIGN = {
    "text": "precious",
    "number": "5",
    "null": "null",
    "list": '["returns", "precious"]',
    "record": '{"returns": [1.0], "policy": "agent"}',
}


@pytest.mark.parametrize("kind", ["config", "link", "pipe", *FOREIGN])
def test_a_result_takes_the_place_of_no_other_file(
    kind: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied / "config.json" if kind == "config" else copied / "here"
    if kind == "link":
        path.symlink_to(copied / "config.json")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in FOREIGN:
        path.write_text(FOREIGN[kind])
    before = digests(copied)
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("played"))
    with pytest.raises(UsageError, match="name another"):
        run(config_for(copied, json=path))
    assert digests(copied) == before
    with pytest.raises(UsageError, match="name another" if kind in ("link", "pipe") else "ends in"):
        run(config_for(copied, video=path))


def test_a_limit_of_games_that_no_emulator_counts_is_refused(copied: Path) -> None:
    path = copied / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["eval_max_steps"] = 2**62
    path.write_text(json.dumps(config))
    ended = command(copied, "--random", "--episodes", 1, "--threads", 1)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert "cut after 1 to 536,870,911 steps, not after 4,611,686,018,427,387,904" in line


def test_a_result_is_replaced_by_the_next(copied: Path, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.touch()
    for games in (2, 3):
        run(config_for(copied, json=path, episodes=games))
        assert json.loads(path.read_text())["games"] == games


def test_an_environment_without_pictures_is_refused_before_playing(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_film(*_: Any) -> Any:
        raise CannotFilmError("too dark")
        yield

    run_dir = runs("cartpole")
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("played"))
    monkeypatch.setattr(showing, "film", cannot_film)
    with pytest.raises(UsageError, match="no pictures for --video or --render: too dark"):
        run(config_for(run_dir, video=tmp_path / "best.gif"))


def test_another_stack_is_named(runs: Callable[[str], Path]) -> None:
    run_dir = runs("breakout")
    agent, rules = load_agent(run_dir), rules_of(config_for(run_dir))
    agent.config["environment"]["stack"] = 3
    with (
        contextlib.closing(rules.evaluator.make_env()) as env,
        pytest.raises(UsageError, match=r"shows 4 frames of .* trained on 3 of"),
    ):
        check_fits(agent, env, run_dir, rules)


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("environment", "num_actions", 6, "config.json .num_actions was 4, is 6"),
        ("settings", "game", "brekout", "config.json .game was breakout, is brekout"),
        ("settings", "protocol", "gone", "--protocol gone"),
        ("settings", "precision", "float8", "precision 'float8': restore"),
        *(
            ("settings", name, None, rf"config\.json.*{name}|{name}.*config\.json")
            for name in ("game", "agent", "protocol", "network", "random_start_actions")
        ),
    ],
)
def test_an_altered_configuration_is_one_line(
    copied: Path, part: str, name: str, value: object, words: str
) -> None:
    path = copied / "config.json"
    settings = json.loads(path.read_text())
    settings[part][name] = value
    if value is None:
        del settings[part][name]
    path.write_text(json.dumps(settings))
    with pytest.raises(EbuError, match=words) as refused:
        run(config_for(copied))
    assert "\n" not in str(refused.value)


def test_without_a_display_nothing_is_rendered(runs: Callable[[str], Path]) -> None:
    ended = command(runs("breakout"), "--render")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert "--video FILE.gif" in line


def test_an_interrupted_evaluation_has_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: EvaluateConfig, announce: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr("ebu.commands.evaluation.run", interrupted)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "somewhere"])
    assert evaluate.main() == 130
    assert capsys.readouterr() == ("", "interrupted: no result\n")


def test_a_film_that_was_interrupted_is_named_next_to_the_score(
    runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ebu.commands.evaluation.film_best", interrupted)
    words = [runs("breakout"), "--episodes", 1, "--threads", 1, "--video", tmp_path / "best.gif"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    assert evaluate.main() == 130
    output, messages = capsys.readouterr()
    assert "raw mean" in output
    assert messages.endswith(f"interrupted: {tmp_path / 'best.gif'} is not written\n")
