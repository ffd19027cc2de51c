"""Studies on Ray and through submitit: what is refused, retried, stopped, and the same table."""

import contextlib
import csv
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ebu.commands import study
from ebu.commands.reporting.runs import tail
from ebu.commands.reporting.scores import final_record
from ebu.commands.studying import slurm_engine
from ebu.commands.studying.engine import Engine, check_engine, open_engine, sbatch_options
from ebu.commands.studying.jobs import run_tasks
from ebu.commands.studying.plan import StudyConfig
from ebu.commands.studying.player import Player
from ebu.commands.studying.provenance import machine, read_processes
from ebu.commands.studying.slurm_engine import Job, SlurmEngine
from ebu.errors import EbuError, UsageError
from ebu.run.directory import acquire_lock
from tests.tasks import obedient, task, wait_for

ROOT = Path(__file__).parents[2]
needs = {
    name: pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"{package} is not installed: pip install -c constraints.txt -e '.[{extra}]'",
    )
    for name, package, extra in (("ray", "ray", "cluster"), ("slurm", "submitit", "slurm"))
}
# What Ray and submitit warn of is theirs; of forks with threads, Python 3.12.
pytestmark = pytest.mark.filterwarnings("ignore")


def children(of: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == of:
            found += [int(path.parent.name), *children(int(path.parent.name))]
    return found


def command_of(pid: int) -> list[str]:
    """The command of a process; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def parent_of_a_process_with(*words: str) -> int | None:
    """The process, none of submitit's, that has started the one with these words in its command."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        command = " ".join(command_of(int(path.parent.name)))
        if all(word in command for word in words) and "submitit" not in command:
            return int(path.read_text().rpartition(")")[2].split()[1])
    return None


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ("--address auto", "--address is for --engine ray and slurm"),
        ("--runs-per-gpu 2", "--runs-per-gpu is for --engine ray and slurm"),
        ("--sbatch time=60", "--sbatch is for --engine slurm"),
        ("--engine ray --sbatch time=60", "--sbatch is for --engine slurm"),
        ("--engine slurm --address auto", "--address local"),
        ("--engine slurm --sbatch time=1:00:00", "write minutes"),
        ("--engine slurm --sbatch partition", "write NAME=VALUE"),
        ("--engine slurm --sbatch signal=USR1@10", "is the study's to say"),
        ("--engine kubernetes", "--engine"),
        ("--engine ray", "needs ray, in the extra 'cluster': "),
        ("--engine slurm", "needs submitit, in the extra 'slurm': "),
    ],
)
def test_an_engine_that_cannot_be_had_is_refused_in_one_line_before_anything_is_played(
    args: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "out"
    words = ["study.py", "--games", "CartPole-v1", "--out", str(out), *shlex.split(args)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(UsageError) as refusal:
        study.main()
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not out.exists()


def test_options_of_sbatch_are_read_as_sbatch_writes_them() -> None:
    words = ("--partition=gpu", "time=60", "comment=a=b")
    assert sbatch_options(words) == {"partition": "gpu", "time": "60", "comment": "a=b"}


@needs["slurm"]
def test_slurm_is_refused_where_nothing_can_be_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = StudyConfig(games=(), engine="slurm", out=tmp_path / "out")
    check_engine(config)
    with pytest.raises(UsageError, match="--address local"), open_engine(config):
        pass
    assert not config.out.exists()


SLURM = {
    "sbatch": 'cp "$1" HERE/$$.sh; echo Submitted batch job $$',
    "srun": "",
    "sacct": "echo 'JobID|State|NodeList'; cd HERE; for job in *.sh; do "
    'echo "${job%.sh}|$(cat state)|"; done',
    "scancel": "echo $* > HERE/cancelled; echo CANCELLED > HERE/state",
}


@needs["slurm"]
def test_jobs_ask_slurm_for_what_their_runs_need_and_are_cancelled_while_they_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, lines in SLURM.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n" + lines.replace("HERE", str(tmp_path)))
        program.chmod(0o755)
    (tmp_path / "state").write_text("PENDING")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    config = StudyConfig(
        games=(),
        engine="slurm",
        out=tmp_path / "out",
        runs_per_gpu=2,
        sbatch=("partition=long", "time=60", "mem=16G"),
    )
    tasks = [task(tmp_path, name, "") for name in "abcd"]
    tasks = [replace(each, cores=3, device="cuda") for each in tasks[:3]] + tasks[3:]
    with open_engine(config) as engine:
        for each in tasks:
            engine.submit(each)
        assert list(engine.ended()) == []
        scripts = sorted(
            [
                line.removeprefix("#SBATCH --")
                for line in path.read_text().splitlines()
                if line.startswith("#SBATCH")
            ]
            for path in tmp_path.glob("*.sh")
        )
        common = {"partition=long", "time=60", "mem=16G", "requeue", "signal=USR2@300"}
        assert all(common <= set(script) for script in scripts)
        asked = [
            [line for line in script if line.startswith(("cpus", "gpus"))] for script in scripts
        ]
        # Two runs on a GPU, one on another, and one without.
        assert sorted(asked) == [
            ["cpus-per-task=1"],
            ["cpus-per-task=3", "gpus-per-node=1"],
            ["cpus-per-task=6", "gpus-per-node=1"],
        ]
        engine.stop()
        cancelled = (tmp_path / "cancelled").read_text().split()
        assert cancelled[0] == "--state=PENDING"
        assert set(cancelled[1:]) == {path.stem for path in tmp_path.glob("*.sh")}
        assert set(all_ended(engine, 4).values()) == {"stopped"}


class Executor:
    """Submits to a cluster whose jobs die, and which queues so many at a time."""

    cluster = "local"

    def __init__(self, room: int = 99, play: Callable[[int], None] = lambda number: None) -> None:
        """`play`: what the job of this number does before it dies."""
        self.room = room
        self.play = play
        self.jobs: list[Any] = []

    def update_parameters(self, **_: Any) -> None:
        pass

    def submit(self, work: Job) -> Any:
        if len(work.tasks) > self.room:
            raise RuntimeError("sbatch: error: too many jobs")
        self.room -= len(work.tasks)
        number = len(self.jobs) + 1

        def done() -> bool:
            self.play(number)
            return True

        paths = SimpleNamespace(stdout=Path("stdout"))
        job = SimpleNamespace(job_id="7", done=done, state="FAILED", paths=paths, work=work)
        self.jobs.append(job)
        return job


def all_ended(engine: Engine, count: int) -> dict[str, str]:
    ended = dict[str, str]()

    def are_all() -> bool:
        ended.update({task.name: failure for task, failure in engine.ended()})
        return len(ended) == count

    wait_for(are_all)
    return ended


def test_a_job_that_dies_is_submitted_again_until_three_have_died_without_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_engine, "_STORAGE_SECONDS", 0.0)
    run = task(tmp_path, "run", "")
    executor = Executor()
    engine = SlurmEngine(executor, executor, tmp_path, 1)
    engine.submit(run)
    assert "3 jobs have died" in all_ended(engine, 1)["run"]
    assert len(executor.jobs) == 3

    run.run_dir.mkdir()
    log = run.run_dir / "metrics.jsonl"

    def play(number: int) -> None:
        log.write_text(json.dumps({"frames": 100 * min(number, 2)}) + "\n")

    # The first two play, the three after them do not.
    executor = Executor(play=play)
    engine = SlurmEngine(executor, executor, tmp_path, 1)
    engine.submit(run)
    assert "3 jobs have died" in all_ended(engine, 1)["run"]
    assert len(executor.jobs) == 5


def test_what_the_cluster_does_not_queue_waits_until_a_job_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    executor = Executor(room=1)
    engine = SlurmEngine(executor, executor, tmp_path, 1)
    for name in "ab":
        engine.submit(task(tmp_path, name, ""))
    assert list(engine.ended()) == []
    assert "1 runs wait until jobs have ended: sbatch: error: too many jobs" in (
        capsys.readouterr().err
    )
    assert list(engine.ended()) == []
    ((_, outcome),) = executor.jobs[0].work.tasks
    outcome.write_text("")
    executor.room = 1
    assert all_ended(engine, 1) == {"a": ""}
    assert len(executor.jobs) == 1
    assert list(engine.ended()) == []
    assert len(executor.jobs) == 2
    executor = Executor(room=0)
    engine = SlurmEngine(executor, executor, tmp_path, 1)
    engine.submit(task(tmp_path, "c", ""))
    with pytest.raises(EbuError, match="sbatch refuses the job: sbatch: error: too many jobs"):
        list(engine.ended())


def test_a_run_waits_for_the_process_of_a_machine_that_was_given_up(tmp_path: Path) -> None:
    run = task(tmp_path, "run", "")
    lock = acquire_lock(run.run_dir, "--run-dir", "busy")
    player = Player(run, {})
    assert player.poll() is None
    assert not run.log.exists()
    lock.close()
    wait_for(lambda: player.poll() is not None)
    assert [each["program"] for each in read_processes(run.run_dir)] == ["train.py", "evaluate.py"]


@needs["ray"]
def test_a_cluster_does_not_choose_the_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--games", "CartPole-v1", "--out", str(tmp_path), "--engine", "ray"]
    monkeypatch.setattr(sys, "argv", ["study.py", *words, "--", "--precision", "auto"])
    with pytest.raises(UsageError, match="on a cluster name it"):
        study.main()


def test_no_command_imports_an_engine_or_a_hub() -> None:
    lines = """
import sys
import ebu.commands.distill, ebu.commands.evaluate, ebu.commands.report, ebu.commands.study
import ebu.commands.releasing.folder, ebu.commands.releasing.push
import ebu.commands.studying.ray_engine, ebu.commands.studying.slurm_engine, ebu.commands.train
print({"ray", "submitit", "huggingface_hub"} & sys.modules.keys())
"""
    ended = subprocess.run(
        [sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "set()"


@pytest.fixture(params=[pytest.param(name, marks=needs[name]) for name in needs])
def engine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Each engine on this machine."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # As where a cluster is started from a script, in the background.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    address = {"slurm": "local"}.get(request.param, "")
    config = StudyConfig(games=(), engine=request.param, address=address, out=tmp_path / "out")
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(open_engine(config))
        except EbuError as error:
            if "timed out during startup" in str(error):
                pytest.skip("Ray gives up after 30 seconds: this machine is too busy")
            raise
        yield opened
    for number, handler in signals.items():
        signal.signal(number, handler)


def in_the_background(what: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=what)
    thread.start()
    return thread


def test_a_quick_study_on_each_engine_is_played_preempted_and_stopped(
    engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [
        task(tmp_path, "refused", "import sys; print(5); sys.exit('error: no such flag')"),
        task(tmp_path, "fine", "", "import os; print(os.getpid())"),
        obedient(tmp_path, "dies"),
    ]

    def kill_or_preempt() -> None:
        wait_for((tmp_path / "dies.started").exists)
        player = parent_of_a_process_with(str(tmp_path / "dies"))
        assert player is not None
        os.kill(player, signal.SIGUSR2 if hasattr(engine, "_folder") else signal.SIGKILL)

    thread = in_the_background(kill_or_preempt)
    done: list[str] = []

    def scored(task: Any) -> str:
        done.append(task.name)
        return "12 points"

    assert run_tasks(tasks, 9, engine=engine, scored=scored) == (["refused"], None)
    thread.join()
    assert sorted(done) == ["dies", "fine"]
    said = capsys.readouterr().err
    assert "refused: train.py failed (exit code 1): error: no such flag (log: " in said
    assert tasks[2].log.read_text().count("\n$ ") == 2
    processes = read_processes(tasks[1].run_dir)
    assert [(each["program"], each["exit_code"]) for each in processes] == [
        *(("train.py", 0), ("evaluate.py", 0))
    ]
    assert {each["hardware"] for each in processes} == {machine()}

    # With one core, Ray lets the second wait.
    waiting = [obedient(tmp_path, "a"), task(tmp_path, "b", "import time; time.sleep(600)")]

    def interrupt() -> None:
        wait_for((tmp_path / "a.started").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = in_the_background(interrupt)
    assert run_tasks(waiting, 9, engine=engine, scored=scored) == ([], signal.SIGTERM)
    thread.join()
    assert (tmp_path / "a.saved").exists()
    assert parent_of_a_process_with("time.sleep(600)", str(tmp_path)) is None


# Eight runs of about 900 steps of four games; two updates in a hundred.
STUDY = (
    *("--games", "CartPole-v1", "--agents", "ebu", "dqn", "--seeds", "4", "--frames", "3600"),
    *("--episodes", "2"),
)
PASSED_ON = (
    *("--", "--num-envs", "4", "--replay-capacity", "2000", "--learning-starts", "400"),
    *("--updates-per-step", "0.02", "--log-every-frames", "200", "--eval-every-frames", "0"),
    *("--device", "cpu", "--threads", "1", "--checkpoint-minutes", "0.001"),
)


def start_study(out: Path, *engine: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "study.py", *STUDY, "--out", str(out), *engine, *PASSED_ON]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(words, cwd=ROOT, env=env)


def outcome(out: Path) -> list[Any]:
    """The table without wall times and commits, and all logs and scores that it comes from."""
    with (out / "results.csv").open() as file:
        rows = [{**row, "train_seconds": None, "commit": None} for row in csv.DictReader(file)]
    assert len(rows) == 8
    found: list[Any] = [rows]
    for run in sorted((out / "runs").glob("*/")):
        record = final_record(run, "paper", 2)
        assert record is not None
        found += [run.name, (run / "metrics.jsonl").read_bytes(), record["returns"]]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The outcome of a local study."""
    out = tmp_path_factory.mktemp("local")
    assert start_study(out, "--jobs", "4").wait() == 0
    return outcome(out)


def resumed_runs(out: Path) -> list[str]:
    """Runs that were started a second time, from a checkpoint."""
    logs = (out / "runs").glob("*.log")
    return [log.stem for log in logs if "resuming at frame" in log.read_text()]


def is_halfway(run: Path) -> bool:
    """Whether a run has made updates and a checkpoint."""
    lines = tail(run / "metrics.jsonl")
    return bool(lines) and lines[-1]["frames"] >= 1_000 and any((run / "checkpoints").glob("*"))


@pytest.mark.slow
@needs["ray"]
def test_a_study_whose_ray_node_dies_ends_as_one_that_was_not_disturbed(
    undisturbed: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    dying = cluster.add_node(num_cpus=2)
    try:
        running = start_study(tmp_path, "--engine", "ray", "--address", cluster.address)
        roots = [info.process.pid for each in dying.all_processes.values() for info in each]

        def on_the_dying_node() -> list[int]:
            return [*roots, *(pid for root in roots for pid in children(root))]

        def plays_halfway() -> bool:
            commands = map(command_of, on_the_dying_node())
            return any(
                is_halfway(Path(words[words.index("--run-dir") + 1]))
                for words in commands
                if "--run-dir" in words
            )

        wait_for(plays_halfway)
        # All at once, as in a power cut: none may answer to the end of another.
        processes = on_the_dying_node()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        cluster.remove_node(dying, allow_graceful=False)
        assert running.wait() == 0
    finally:
        cluster.shutdown()
    assert resumed_runs(tmp_path)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
@needs["slurm"]
def test_a_study_whose_job_is_preempted_ends_as_one_that_was_not_disturbed(
    undisturbed: list[Any], tmp_path: Path
) -> None:
    running = start_study(tmp_path, "--engine", "slurm", "--address", "local", "--jobs", "4")
    run = tmp_path / "runs" / "CartPole-v1-ebu-seed0"
    wait_for(lambda: is_halfway(run))
    player = parent_of_a_process_with("train.py", str(run))
    assert player is not None
    os.kill(player, signal.SIGUSR2)
    assert running.wait() == 0
    assert resumed_runs(tmp_path) == [run.name]
    assert outcome(tmp_path) == undisturbed
