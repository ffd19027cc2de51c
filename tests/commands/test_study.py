"""The study runner: what it plans, how it runs and stops processes, and what it leaves."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ebu.commands import evaluation as evaluation_command
from ebu.commands import study
from ebu.commands.evaluate_arguments import EvaluateConfig
from ebu.commands.presets import with_network
from ebu.commands.reporting.runs import read_run, settings_digest
from ebu.commands.reporting.scores import final_record
from ebu.commands.studying.engine import LocalEngine
from ebu.commands.studying.jobs import run_tasks
from ebu.commands.studying.plan import StudyConfig, games_of, plan
from ebu.commands.studying.player import Task
from ebu.commands.studying.provenance import read_processes
from ebu.commands.studying.results import ResultsTable, row
from ebu.commands.train_arguments import parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.errors import EbuError, UsageError
from ebu.run.directory import acquire_lock
from envs.games import ATARI5, GAME_SETS, PAPER49
from tests.run_directories import FRAMES, evaluation, write_run
from tests.tasks import OBEDIENT, obedient, task, wait_for

ROOT = Path(__file__).parents[2]
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CODE = {"ebu_version": "0.1", "commit": "abc"}
# What Python 3.12 says of a fork where there are other threads, which pytest and this file have.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Signals as in a terminal, and afterwards what they were."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run_study(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, args)])
    return study.main()


def planned(*passed_on: str, **options: Any) -> list[Any]:
    return plan(StudyConfig(**{"games": ("pong",), **options}), passed_on)


def test_games_are_sets_and_names_without_doubles() -> None:
    assert games_of(["Atari-5", "Q*bert", "ALE/Pong-v5", "pong"]) == [*ATARI5, "pong"]
    assert games_of(["CartPole-v1", "paper49"]) == ["CartPole-v1", *PAPER49]
    assert len(games_of(["paper49", "all57"])) == 57
    for name, games in GAME_SETS.items():
        assert games_of([name]) == list(games)


def test_the_table_of_the_readme_is_planned_seed_by_seed() -> None:
    runs = planned(games=("atari5",), agents=("ebu", "dqn"), seeds=3, frames=10_000_000, jobs=2)
    assert len(runs) == 5 * 2 * 3
    assert [run.config.seed for run in runs] == [0] * 10 + [1] * 10 + [2] * 10
    names = ["battle_zone-ebu-seed0", "battle_zone-dqn-seed0", "double_dunk-ebu-seed0"]
    assert [run.run_dir.name for run in runs[:3]] == names
    for run in runs:
        assert parse_arguments(run.flags) == run.config


def test_environments_are_made_with_the_arguments_and_wrappers_of_their_runs() -> None:
    runs = planned(
        games=("tests.faulty:NeedsArgument-v0",),
        agents=("ebu",),
        variants=("one: --env-args level=1", "two: --env-args level=2"),
    )
    assert [run.config.env_args for run in runs] == [("level=1",), ("level=2",)]
    # Its observations are a Tuple without the wrapper.
    wrapper = ("--env-wrappers", "gymnasium.wrappers:FlattenObservation")
    runs += planned(*wrapper, games=("Blackjack-v1",), agents=("ebu",))
    for run in runs:
        assert with_network(parse_arguments(run.flags), (4,)) == run.config


def test_a_run_is_planned_with_the_network_that_its_observations_get() -> None:
    grid, numbers = "tests.envs.tiny:TinyGrid-v0", "CartPole-v1"
    for typed, games, expected in (
        ((), (grid, numbers, "pong"), ["grid", "32-32-32/64", "nature"]),
        (("--network", "auto"), ("pong",), ["nature"]),
        (("--network", "32-32-32/64"), (grid,), ["32-32-32/64"]),
    ):
        runs = planned(*typed, games=games, agents=("ebu",))
        assert [run.config.learner.network for run in runs] == expected


def test_threads_are_shared_unless_asked_for_or_recorded(tmp_path: Path) -> None:
    (run,) = planned(agents=("ebu",), out=tmp_path)
    assert run.threads(3) == 3
    write_run(tmp_path / "runs", "pong", "ebu", 0, None, threads=5)
    assert run.threads(3) == 5
    (run,) = planned("--threads", "2", agents=("ebu",), out=tmp_path)
    assert run.threads(3) == 2


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ("--games atari6", "did you mean atari5?"),
        ("--games CartPol-v1", "CartPole-v1"),
        ("--games combat", "two players"),
        ("--games pong --agents eb", "did you mean ebu?"),
        ("--games pong --seed-list 1 2 1", "--seed-list has 1 more than once"),
        ("--games pong --seed-list -1", "--seed-list must be"),
        ("--games pong --seeds 0", "--seeds must be"),
        ("--games pong --collect .", "name a directory"),
        ("--games pong --collect-commit abc", "--collect-commit says nothing without --collect"),
        ("--games pong -- --trust-env", "--trust-env after -- says nothing of a run: leave it out"),
        ("--games pong -- --no-trust_env", "--no-trust-env after -- says nothing of a run"),
        ("--games pong -- --list-games", "--list-games after -- says nothing of a run"),
        ("--games pong -- --help", "--help after -- says nothing of a run"),
        ("--games pong -- -h", "-h after -- says nothing of a run"),
        ("--games pong -- --version", "--version after -- says nothing of a run"),
        ("--games pong --variants 'a: --help'", "--help in variant a says nothing of a run"),
        ("--games pong --variants beta=1", "write a name and flags"),
        ("""--games pong --variants "a: --beta '1\"""", "No closing quotation"),
        ("--games pong --variants base: base:", "base more than once"),
        ("--games pong --agents ebu --variants base: half:", "are the same settings of ebu"),
        ("--games pong -- --gamma 2", "agent ebu cannot be trained so: --gamma"),
        ("--games pong --agents ebu retrace -- --quantiles 9", "retrace cannot be trained so"),
        ("--games pong --agents adaptive_ebu -- --noisy", "adaptive_ebu cannot be trained so"),
        ("--games pong CartPole-v1 -- --shift-pixels 4", "ebu cannot be trained on CartPole-v1 so"),
        ("--games pong -- --run_dir=here", "--run-dir after --"),
        ("--games pong --variants 'a: --seed 1'", "--seed in variant a"),
        ("--games pong --variants 'a: --gamma 2'", "variant a, cannot be trained so: --gamma"),
        ("--games", "need a name each"),
        ("--games tests.faulty:NeedsArgument-v0", "--env-args NAME=VALUE"),
        ("--games CartPole-v1 --variants 'a: --env-args level=3'", "cannot be made"),
        ("--games CartPole-v1 -- --env-wrappers gymnasium:NoSuch", "cannot be made"),
        ("--games pong -- --env-args level=3", "gymnasium:ALE/Pong-v5"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line_before_anything_is(
    args: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError) as refusal:
        run_study(monkeypatch, "--out", tmp_path / "out", *shlex.split(args))
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "record",
    [
        evaluation(1.0, FRAMES - 1),
        evaluation(1.0, games=5),
        evaluation(1.0, protocol="machado"),
    ],
)
def test_another_evaluation_is_not_the_score_of_the_study(
    record: dict[str, Any], tmp_path: Path
) -> None:
    (run,) = planned(agents=("ebu",), frames=FRAMES, out=tmp_path)
    assert not run.is_scored()
    run_dir = write_run(tmp_path / "runs", "pong", "ebu", 0, 1.0)
    assert run.is_scored()
    (run_dir / "evaluation.json").write_text(json.dumps(record))
    assert not run.is_scored()


def test_a_row_by_hand(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path, "pong", "ebu", 3, -5.7)
    processes = [("train.py", 10.0, "a"), ("train.py", 2.5, "b"), ("evaluate.py", 4.0, "c")]
    with (tmp_path / "pong-ebu-seed3.processes.jsonl").open("w") as lines:
        for program, seconds, commit in processes:
            record = {"program": program, "seconds": seconds, "commit": commit}
            record["hardware"] = "two cores" if program == "train.py" else "a laptop"
            lines.write(json.dumps({**record, "ebu_version": "0.1"}) + "\n")
        lines.write('{"program": "tr')
    run = read_run(run_dir)
    expected: dict[str, Any] = {"game": "pong", "agent": "ebu", "seed": 3, "protocol": "paper"}
    expected |= {"preset": "default", "settings": settings_digest(run.settings)}
    expected |= {"precision": "float32", "asked_frames": FRAMES, "frames": FRAMES}
    expected |= {"games": 30, "score": -5.7, "score_low": -6.7, "score_high": -4.7}
    expected |= {
        "human_normalised_nature2015": pytest.approx(0.5),
        "human_normalised_57table": pytest.approx(15 / 35.3),
        "relative_to_dqn_200m": pytest.approx((-5.7 - 18.9) / (18.9 + 20.7)),
        "return_last_100_games": 13.0,
    }
    expected |= {"train_seconds": 12.5, "hardware": "two cores"}
    assert row(run) == expected | {"ebu_version": "0.1", "commit": "a b"}
    unscored = row(read_run(write_run(tmp_path, "pong", "ebu", 4, None, played=4_000)))
    assert unscored["frames"] == 4_000
    assert {unscored[name] for name in ("games", "score", "relative_to_dqn_200m")} == {None}


@pytest.mark.parametrize("content", [b"name,price\ntea,3\n", b"\xff\xfe\x00"])
@pytest.mark.parametrize("flag", ["--out", "--results"])
def test_a_file_that_is_no_results_table_is_never_overwritten(
    flag: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "results.csv").write_bytes(content)
    with pytest.raises(UsageError, match=f"move it away or choose another {flag}"):
        run_study(monkeypatch, "--games", "pong", "--out", tmp_path / "out", flag, folder)
    assert (folder / "results.csv").read_bytes() == content


@pytest.mark.parametrize("flag", ["--out", "--results"])
def test_a_study_does_not_fill_a_run(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = write_run(tmp_path, "pong", "ebu", 0, 1.0)
    with pytest.raises(UsageError, match=f"{flag} .* holds a run: choose another directory"):
        run_study(monkeypatch, "--games", "pong", "--out", tmp_path / "out", flag, run_dir)
    assert not (run_dir / "results.csv").exists()


def test_results_do_not_replace_the_runs_they_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = write_run(tmp_path / "out" / "runs", "pong", "ebu", 0, 1.0)
    before = {path: path.read_bytes() for path in run_dir.iterdir()}
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for results in (run_dir.parent, tmp_path / "link" / "runs"):
        with pytest.raises(UsageError, match=r"--results .* holds the runs of --out"):
            run_study(
                monkeypatch, "--games", "pong", "--out", tmp_path / "out", "--results", results
            )
    assert {path: path.read_bytes() for path in run_dir.iterdir()} == before


def test_a_damaged_run_is_named_and_left_out_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs", "pong", "ebu", 0, 1.0)
    broken = write_run(tmp_path / "runs", "pong", "ebu", 1, 1.0)
    (broken / "config.json").write_text("{")
    table = ResultsTable(tmp_path, tmp_path / "runs")
    table.fill()
    table.fill()
    assert capsys.readouterr().err.count(str(broken / "config.json")) == 1
    assert len(table.path.read_text().splitlines()) == 2


def test_two_studies_do_not_fill_one_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        acquire_lock(tmp_path, "--out", "busy"),
        pytest.raises(UsageError, match="another study is filling"),
    ):
        run_study(monkeypatch, "--games", "pong", "--out", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        run_study(monkeypatch, "--games", "pong", "--out", tmp_path / "file")


def test_as_many_processes_run_at_a_time_as_asked_for(tmp_path: Path) -> None:
    # Each notes how many there are, itself among them.
    count = f"""
import pathlib, sys, time
here = pathlib.Path({str(tmp_path)!r}, sys.argv[1] + ".here")
here.touch()
time.sleep(0.3)
print(len(list(here.parent.glob("*.here"))))
here.unlink()
"""
    tasks = [task(tmp_path, str(number), count) for number in range(3)]
    tasks = [Task(each.run_dir, 1_000, (*each.train, each.name), each.evaluate) for each in tasks]
    done: list[str] = []

    def scored(task: Task) -> str:
        done.append(task.name)
        return "scored"

    assert run_tasks(tasks, 2, engine=LocalEngine(CODE), scored=scored) == ([], None)
    assert sorted(done) == list("012")
    seen = [int(task.log.read_text().splitlines()[-2]) for task in tasks]
    assert max(seen) == 2
    processes = read_processes(tasks[0].run_dir)
    ended = [(each["program"], each["exit_code"], each["commit"]) for each in processes]
    assert ended == [("train.py", 0, "abc"), ("evaluate.py", 0, "abc")]
    assert processes[0]["seconds"] >= 0.3


def test_a_run_that_fails_is_named_and_the_others_continue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [
        task(tmp_path, "refused", "import sys; print(5); sys.exit('error: no such flag')"),
        task(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"),
        task(tmp_path, "unscored", "", "raise SystemExit(2)"),
        task(tmp_path, "lost", ""),
        task(tmp_path, "fine", ""),
    ]

    def scored(task: Task) -> str:
        if task.name == "lost":
            raise EbuError("evaluate.py has left no score")
        return "12 points"

    failed, number = run_tasks(tasks, 1, engine=LocalEngine(CODE), scored=scored)
    assert (failed, number) == (["refused", "killed", "unscored", "lost"], None)
    said = capsys.readouterr().err
    assert "refused: train.py failed (exit code 1): error: no such flag (log: " in said
    assert "killed: train.py failed (killed by signal 9): no output" in said
    assert "unscored: evaluate.py failed (exit code 2)" in said
    assert "lost: error: evaluate.py has left no score" in said
    assert "fine: 12 points" in said


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_lets_every_process_save(number: int, tmp_path: Path) -> None:
    tasks = [obedient(tmp_path, name) for name in "abc"]

    def interrupt() -> None:
        wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 2)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    failed, received = run_tasks(tasks, 2, engine=LocalEngine(CODE), scored=lambda task: "")
    thread.join()
    assert (failed, received) == ([], number)
    assert {path.name for path in tmp_path.glob("*.saved")} == {"a.saved", "b.saved"}
    assert not (tmp_path / "c.started").exists()
    assert read_processes(tasks[0].run_dir)[0]["exit_code"] == 128 + signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a death")
def test_processes_of_a_killed_study_save_and_end(tmp_path: Path) -> None:
    driver = f"""
from pathlib import Path
from ebu.commands.studying.engine import LocalEngine
from ebu.commands.studying.jobs import run_tasks
from ebu.commands.studying.player import Task
script = {OBEDIENT!r}.replace("NAME", {str(tmp_path / "run")!r})
task = Task(Path({str(tmp_path / "run")!r}), 1, ({sys.executable!r}, "-c", script), ())
run_tasks([task], 1, engine=LocalEngine({{}}), scored=lambda task: "")
"""
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT)
    wait_for((tmp_path / "run.started").exists)
    process.kill()
    process.wait()
    wait_for((tmp_path / "run.saved").exists)


def test_a_run_that_another_process_trains_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [task(tmp_path, "busy", ""), task(tmp_path, "free", "")]
    tasks[0].run_dir.mkdir()
    lock = (tasks[0].run_dir / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    done: list[str] = []

    def scored(task: Task) -> str:
        done.append(task.name)
        lock.close()
        return ""

    assert run_tasks(tasks, 1, engine=LocalEngine(CODE), scored=scored) == ([], None)
    assert done == ["free", "busy"]
    assert capsys.readouterr().err.count("busy: waiting for another process") == 1


# About 900 steps of four games; two updates in a hundred.
FLAGS = (
    *("--num-envs", "4", "--replay-capacity", "2000", "--learning-starts", "400"),
    *("--updates-per-step", "0.02", "--log-every-frames", "200", "--eval-every-frames", "0"),
    *("--device", "cpu", "--threads", "1"),
)


@pytest.mark.slow
def test_an_interrupted_study_resumes_and_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out, whole = tmp_path / "study", tmp_path / "whole"
    args = ["--games", "CartPole-v1", "--agents", "ebu", "--frames", 3_600, "--out", out]
    args += ["--", *FLAGS]
    run_dir = out / "runs" / "CartPole-v1-ebu-seed0"
    log = run_dir / "metrics.jsonl"

    def interrupt() -> None:
        wait_for(lambda: log.exists() and log.stat().st_size)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run_study(monkeypatch, *args) == 128 + signal.SIGTERM
    thread.join()
    said = capsys.readouterr().err
    assert said.endswith("stopped: run the same command again to resume\n")
    assert "failed" not in said
    assert (run_dir / "checkpoints").is_dir()
    _, line = (out / "results.csv").read_text().splitlines()
    assert line.startswith("CartPole-v1,ebu,0,paper,default,")

    assert run_study(monkeypatch, *args) == 0
    said = capsys.readouterr().err
    assert "CartPole-v1-ebu-seed0: resumes at" in said
    assert f"report.py {out}" in said
    flags = ["--game", "CartPole-v1", "--frames", "3600", *FLAGS, "--run-dir", str(whole)]
    trainer = build_trainer(parse_arguments(flags))
    assert trainer.run(3_600)
    trainer.close()
    assert log.read_bytes() == (whole / "metrics.jsonl").read_bytes()
    scored = evaluation_command.run(EvaluateConfig(whole, threads=1, device="cpu"))
    record = final_record(run_dir, "paper")
    assert record is not None
    assert record["returns"] == scored["returns"]
    score = read_run(run_dir).final_score
    assert score is not None
    assert score.mean == scored["mean"]
    assert [each["program"] for each in read_processes(run_dir)] == [
        *("train.py", "train.py", "evaluate.py")
    ]
    # Nothing is left to do.
    assert run_study(monkeypatch, *args) == 0
    assert "1 runs, 1 of them scored" in capsys.readouterr().err
    assert len(read_processes(run_dir)) == 3
