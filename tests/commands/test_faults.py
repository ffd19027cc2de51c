"""Runs in environments that fail: one line, what was learned is saved, and a way to go on."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs.watchdog
from ebu.commands import evaluate, report, train
from ebu.commands.training_evaluation import MOST_STARTS
from ebu.evaluation import Evaluator, seeds_at
from ebu.run.checkpoint import load_latest
from tests import faulty, faulty_calls
from tests.made_up import same

FLAGS = "--num-envs 2 --replay-capacity 2000 --learning-starts 60 --log-every-frames 100"
FLAGS += " --threads 1 --eval-every-frames 150 --eval-episodes 2 --batch-size 16 --device cpu"

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Runs a command of words in this process: its exit code, output and messages."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(envs.watchdog, "last_words", envs.watchdog.last_words)

    def run(module: Any, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            module.command()
        output, messages = capsys.readouterr()
        code = ended.value.code
        assert "Traceback" not in messages
        return int(code or 0), output, messages

    yield run
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def words_for(run_dir: Path, game: str, frames: int, *more: str) -> list[str]:
    words = ["--game", game, "--run-dir", str(run_dir), "--frames", str(frames), *FLAGS.split()]
    return [*words, *more]


def error_of(messages: str) -> str:
    (line,) = [line for line in messages.splitlines() if line.startswith("error: ")]
    return line


def test_a_fault_in_play_is_saved_and_new_games_go_on(tmp_path: Path, run: Command) -> None:
    words = words_for(tmp_path / "run", "tests.faulty:WrongShape-v0", 600)
    reached = [0]
    for more in ((), ("--fresh-games",), ("--fresh-games",)):
        code, _, messages = run(train, *words, *more)
        assert code == 1
        assert "step 7 of its game 1: its observation has shape" in error_of(messages)
        assert "--fresh-games" in error_of(messages)
        assert ("beginning new games at frame" in messages) == bool(more)
        left = load_latest(tmp_path / "run/fresh_games")
        assert left is not None
        reached.append(left.state["frames"])
    assert reached == [0, 12, 24, 36]


def test_a_game_that_is_no_function_of_its_seed_is_said_to_be(tmp_path: Path, run: Command) -> None:
    game, run_dir = "tests.faulty:GlobalRandom-v0", tmp_path / "run"
    code, _, messages = run(train, *words_for(run_dir, game, 200, "--fresh-games"))
    assert code == 0
    assert "warning: tests.faulty:GlobalRandom-v0 is no function of its seed" in messages
    assert "warning: --fresh-games changes nothing" in messages
    assert json.loads((run_dir / "config.json").read_text())["environment"]["differs"]
    code, _, messages = run(train, *words_for(run_dir, game, 260))
    assert code == 2
    assert "--fresh-games" in error_of(messages)
    code, _, messages = run(
        train, "--resume", run_dir, "--frames", 260, "--fresh-games", "--trust-env"
    )
    assert code == 0, messages


@pytest.mark.parametrize("name", ["RenderFails", "CannotBeMadeToRender"])
def test_pictures_that_fail_end_nothing(tmp_path: Path, run: Command, name: str) -> None:
    run_dir, scored = tmp_path / "run", tmp_path / "score.json"
    code, _, messages = run(train, *words_for(run_dir, f"tests.faulty:{name}-v0", 340))
    assert code == 0
    assert messages.count("warning: ") == 1
    assert len((run_dir / "evaluations.jsonl").read_text().splitlines()) == 3
    video = ("--video", tmp_path / "best.gif", "--json", scored, "--episodes", 2)
    code, output, messages = run(evaluate, run_dir, *video, "--trust-env")
    assert code == 0
    assert "raw mean          20.00" in output
    assert json.loads(scored.read_text())["mean"] == 20
    assert "best.gif was not written" in messages
    assert not (tmp_path / "best.gif").exists()


def start_forked(run_dir: Path, game: str) -> tuple[int, str]:
    """Train in a forked child: its exit code and what it printed."""
    log = run_dir.with_name("log")
    log.unlink(missing_ok=True)
    code, _ = faulty_calls.run(
        "train", words_for(run_dir, game, 340), log, faulty_calls.Fault(run_dir)
    )
    return code, log.read_text()


def newest_state(run_dir: Path) -> dict[str, Any]:
    checkpoint = load_latest(run_dir / "checkpoints")
    assert checkpoint is not None
    return checkpoint.state


def test_a_film_that_ends_the_process_is_left_out_when_the_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, whole, game = tmp_path / "killed", tmp_path / "whole", "tests.faulty:RenderKills-v0"
    code, _ = start_forked(killed, game)
    assert code == -signal.SIGKILL
    assert [line["frames"] for line in evaluations(killed)] == [150]
    assert (killed / "filming").exists()
    code, said = start_forked(killed, game)
    assert code == 0
    assert said.count("warning: ") == 1
    assert "the process ended while it filmed" in said
    assert not (killed / "filming").exists()

    monkeypatch.setattr(faulty.RenderKills, "kills", False)
    assert start_forked(whole, game)[0] == 0
    assert evaluations(killed) == evaluations(whole)
    assert same(newest_state(killed), newest_state(whole))


def end_in_evaluations(
    monkeypatch: pytest.MonkeyPatch, *frames: int, how: signal.Signals = signal.SIGKILL
) -> None:
    """End the process halfway through the evaluations at these frame counts."""
    deadly = [seeds_at(0, each).environments for each in frames]
    play = Evaluator.play

    def play_or_end(self: Evaluator, *args: Any, **named: Any) -> Any:
        steps = iter(range(10))

        def count(_: np.ndarray) -> None:
            if next(steps, None) is None:
                signal.raise_signal(how)

        if self.seeds.environments in deadly:
            named["watch"] = count
        return play(self, *args, **named)

    monkeypatch.setattr(Evaluator, "play", play_or_end)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_an_evaluation_that_crashed_or_ends_the_process_again_and_again_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    crashed, whole, game = tmp_path / "crashed", tmp_path / "whole", "tests.faulty:Ram-v0"
    assert start_forked(whole, game)[0] == 0
    with monkeypatch.context() as patch:
        end_in_evaluations(patch, 300, how=how)
        # Each start resumes before the evaluation at 150, and plays that again.
        for ended in range(1 if how is signal.SIGSEGV else MOST_STARTS):
            code, said = start_forked(crashed, game)
            assert code == -how
            assert (f"300 frames: {ended} starts in a row ended" in said) == (ended > 0)
        best = load_latest(crashed / "best")
        code, said = start_forked(crashed, game)
    assert code == 0
    (warning,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert warning.startswith("warning: 300 frames: evaluation failed: the process crashed in it")
    assert "evaluate.py" in warning
    assert " --trust-env" in warning
    assert [line["frames"] for line in evaluations(crashed)] == [150, 340]
    assert (crashed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    after = load_latest(crashed / "best")
    assert best is not None
    assert after is not None
    assert after.name == best.name
    assert same(newest_state(crashed), newest_state(whole))


def test_a_last_evaluation_that_crashed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, game = tmp_path / "run", "tests.faulty:Ram-v0"
    end_in_evaluations(monkeypatch, 340, how=signal.SIGABRT)
    assert start_forked(run_dir, game)[0] == -signal.SIGABRT
    for _ in range(2):
        code, said = start_forked(run_dir, game)
        assert code == 1
        assert "evaluate.py" in error_of(said)
        assert "everything is trained and saved" in error_of(said)
    assert [line["frames"] for line in evaluations(run_dir)] == [150, 300]


def test_a_run_that_is_killed_in_its_evaluations_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, whole, game = tmp_path / "killed", tmp_path / "whole", "tests.faulty:Ram-v0"
    assert start_forked(whole, game)[0] == 0
    for frames in (150, 340):
        for _ in range(MOST_STARTS - 1):
            with monkeypatch.context() as patch:
                end_in_evaluations(patch, frames)
                assert start_forked(killed, game)[0] == -signal.SIGKILL
            assert (killed / "evaluating").exists()
    assert start_forked(killed, game)[0] == 0
    assert not (killed / "evaluating").exists()
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert (killed / log).read_bytes() == (whole / log).read_bytes()
    assert same(newest_state(killed), newest_state(whole))


def test_an_evaluation_whose_environments_cannot_be_made_costs_itself_alone(
    tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    words = words_for(run_dir, "tests.faulty:FewCopies-v0", 340)
    # An example, two to compare, and two to train in.
    monkeypatch.setattr(faulty.FewCopies, "left", 5)
    code, _, messages = run(train, *words)
    warnings = [line for line in messages.splitlines() if line.startswith("warning: ")]
    assert [line.split(":")[1] for line in warnings] == [" 150 frames", " 300 frames"]
    assert all("cannot be made: OSError: all ports are taken" in line for line in warnings)
    # The last evaluation can still be made up for.
    assert code == 1
    assert "everything is trained and saved" in error_of(messages)
    monkeypatch.setattr(faulty.FewCopies, "left", 10**9)
    code, _, messages = run(train, *words)
    assert code == 0
    assert [evaluation["frames"] for evaluation in evaluations(run_dir)] == [340]


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]


def test_games_without_an_end_are_evaluated(tmp_path: Path, run: Command) -> None:
    game, run_dir = "tests.faulty:Endless-v0", tmp_path / "run"
    code, _, messages = run(train, *words_for(run_dir, game, 200, "--eval-max-steps", "50"))
    assert code == 0
    assert "evaluating in 2 games" in messages
    last = json.loads((run_dir / "evaluations.jsonl").read_text().splitlines()[-1])
    assert (last["mean"], last["capped_games"]) == (50, 2)
    for words, mean in (((), 50), (("--max-steps", 20, "--seed", 1), 20)):
        code, output, _ = run(evaluate, run_dir, "--episodes", 2, "--trust-env", *words)
        assert "2 of them ended by the time limit" in output
        assert f"raw mean          {mean}.00" in output


def test_numbers_that_are_not_finite_reach_no_checkpoint(tmp_path: Path, run: Command) -> None:
    run_dir = tmp_path / "run"
    words = words_for(run_dir, "CartPole-v1", 600, "--checkpoint-minutes", "0.000001")
    code, _, messages = run(train, *words, "--learning-rate", "1e14")
    assert code == 1
    line = error_of(messages)
    assert "is not finite" in line
    kept = load_latest(run_dir / "checkpoints")
    assert kept is not None
    assert kept.name in line
    assert run(evaluate, run_dir, "--episodes", 2)[0] == 0
    assert run(report, run_dir, "--out", tmp_path / "report")[0] == 0
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        for entry in (run_dir / log).read_text().splitlines():
            values = [value for value in json.loads(entry).values() if isinstance(value, float)]
            assert np.isfinite(values).all()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, run: Command) -> None:
    run_dir = tmp_path / "run"
    assert run(train, *words_for(run_dir, "CartPole-v1", 100))[0] == 0
    spoil(run_dir)
    code, output, messages = run(evaluate, run_dir, "--episodes", 2)
    assert code == 1
    assert output == ""
    assert "are not finite" in error_of(messages)


def spoil(run_dir: Path) -> None:
    """Put NaN into the newest weights, as runs of earlier versions could."""
    from ebu.run.checkpoint import save_checkpoint

    checkpoint = load_latest(run_dir / "checkpoints")
    assert checkpoint is not None
    learner = checkpoint.state["agent"]["learner"]
    for weights in (learner["online"], learner.get("average", {})):
        for weight in weights.values():
            weight.fill_(float("nan"))
    save_checkpoint(run_dir / "checkpoints", "frames-000000009999", checkpoint.state)


@pytest.mark.parametrize(
    ("game", "more", "code", "words"),
    [
        ("tests.faulty:NeedsArgument-v0", (), 2, "--env-args"),
        ("tests.faulty:NeedsArgument-v0", ("--env-args", "level"), 2, "NAME=VALUE"),
        ("tests.faulty:WrongShape-v0", (), 1, "step 7 of its game 1: its observation has shape"),
        ("tests.faulty:OldInterface-v0", (), 1, "step returned 4 values"),
        ("Blackjack-v1", (), 2, "--env-wrappers gymnasium.wrappers:FlattenObservation"),
        ("pong", ("--env-args", "mode=1"), 2, "gymnasium:ALE/Pong-v5"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    tmp_path: Path, run: Command, game: str, more: tuple[str, ...], code: int, words: str
) -> None:
    ended, _, messages = run(train, *words_for(tmp_path / "run", game, 200, *more))
    assert ended == code
    assert words in error_of(messages)


def test_arguments_and_wrappers_are_kept_for_resuming_and_scoring(
    tmp_path: Path, run: Command
) -> None:
    run_dir, game = tmp_path / "run", "tests.faulty:NeedsArgument-v0"
    wrapper = ("--env-args", "level=3", "--env-wrappers", "gymnasium.wrappers:FlattenObservation")
    code, _, messages = run(train, *words_for(run_dir, game, 100, *wrapper))
    assert code == 0
    assert "observations are 4 numbers" in messages
    assert run(train, "--resume", run_dir, "--frames", 160, "--trust-env")[0] == 0
    assert run(evaluate, run_dir, "--episodes", 2, "--trust-env")[0] == 0
    assert json.loads((run_dir / "config.json").read_text())["environment"]["observation"]


def test_a_grid_is_trained_by_a_network_for_grids(tmp_path: Path, run: Command) -> None:
    run_dir = tmp_path / "run"
    assert run(train, *words_for(run_dir, "tests.envs.tiny:TinyGrid-v0", 160))[0] == 0
    config = json.loads((run_dir / "config.json").read_text())
    assert config["settings"]["network"] == "grid"
    assert config["environment"]["frame_shape"] == [4, 10, 10]
    typed = ("--network", "32-32-32/64")
    words = words_for(tmp_path / "typed", "tests.envs.tiny:TinyGrid-v0", 160, *typed)
    assert run(train, *words)[0] == 0
    config = json.loads((tmp_path / "typed/config.json").read_text())
    assert config["settings"]["network"] == "32-32-32/64"
    assert run(train, "--resume", run_dir, "--frames", 220, "--trust-env")[0] == 0
    assert run(evaluate, run_dir, "--episodes", 2, "--trust-env")[0] == 0
