"""The runs of a study as jobs of Slurm, submitted and requeued by submitit."""

import contextlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ebu.commands.studying.player import POLL_SECONDS, Player, Task, enter
from ebu.commands.studying.provenance import code_version
from ebu.errors import EbuError, UsageError
from ebu.run.files import write_whole, writing
from ebu.run.hints import PROJECT
from ebu.run.progress import say

MINUTES = 1440
"""Time limit of a job, after which it is requeued."""
# Between the preemption signal and the end of a job: a large replay memory is saved in it.
_SIGNAL_SECONDS = 300
# Time limits that a run may take, and jobs that may die one after the other without a frame played.
_TIME_LIMITS, _DEATHS = 1_000, 3
# Until a file written on another machine is seen here.
_STORAGE_SECONDS = 15.0
# Between two questions to Slurm's accounting.
_STATE_SECONDS = 3.0
_STOP = "stop"


def open_slurm(
    folder: Path, options: Mapping[str, str], runs_per_gpu: int, *, local: bool
) -> "SlurmEngine":
    """An engine that submits to the Slurm cluster of this machine, or with `local` to itself.

    | argument | meaning |
    | --- | --- |
    | folder | takes what submitit and its jobs write |
    | options | of sbatch |

    Raises `UsageError` where there is no Slurm.
    """
    import submitit

    if not local and shutil.which("sbatch") is None:
        raise UsageError(
            "--engine slurm: there is no sbatch here: start the study where jobs are submitted, or "
            "add --address local to play them on this machine"
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Of its own for every start: jobs of a killed study may still be queued.
        here = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=folder))
    python = shlex.join(("env", f"PYTHONPATH={PROJECT}", sys.executable))
    others = dict(options)
    name, minutes = others.pop("job-name", "ebu-study"), int(others.pop("time", MINUTES))

    def executor(gpus: int) -> Any:
        made = submitit.AutoExecutor(
            here,
            cluster="local" if local else "slurm",
            local_python=python,
            slurm_python=python,
            local_max_num_timeout=_TIME_LIMITS,
            slurm_max_num_timeout=_TIME_LIMITS,
        )
        made.update_parameters(
            name=name,
            timeout_min=minutes,
            gpus_per_node=gpus or None,
            stderr_to_stdout=True,
            slurm_signal_delay_s=min(_SIGNAL_SECONDS, minutes * 60 // 4),
            slurm_additional_parameters={"requeue": True, **others},
        )
        return made

    return SlurmEngine(executor(0), executor(1), here, runs_per_gpu)


@dataclass
class _Submitted:
    """A task in a job of Slurm; `deaths` counts the jobs before it that died at `frames`."""

    task: Task
    job: Any
    outcome: Path
    frames: int
    deaths: int
    done_at: float | None = None


class SlurmEngine:
    """Plays tasks in jobs; those that use a GPU share one in a job of several."""

    def __init__(self, on_cpus: Any, on_a_gpu: Any, folder: Path, runs_per_gpu: int) -> None:
        """`on_cpus`, `on_a_gpu`: executors of submitit for jobs without and with a GPU."""
        self._executors = {False: on_cpus, True: on_a_gpu}
        self._is_slurm = on_cpus.cluster == "slurm"
        self._folder = folder
        self._runs_per_gpu = runs_per_gpu
        self._waiting: list[tuple[Task, int]] = []
        self._submitted: list[_Submitted] = []
        self._count = 0
        self._full = self._said_full = self._stopping = False
        self._next_look = 0.0

    def submit(self, task: Task) -> None:
        self._waiting.append((task, 0))

    def ended(self) -> Iterator[tuple[Task, str]]:
        if self._stopping:
            yield from ((task, "stopped") for task, _ in self._waiting)
            self._waiting.clear()
        elif not self._full:
            self._send()
        if time.monotonic() < self._next_look:
            return
        # Each look asks a file system that many machines share.
        self._next_look = time.monotonic() + len(self._submitted) / 50
        if self._stopping and self._is_slurm and self._submitted:
            # For whether they were cancelled: submitit itself asks once in ten minutes.
            self._next_look = time.monotonic() + _STATE_SECONDS
            self._submitted[0].job.watcher.update()
        for each in self._submitted.copy():
            failure = self._failure(each)
            if failure is not None:
                self._submitted.remove(each)
                self._full = False
                yield each.task, failure

    def stop(self, wait: bool = False) -> None:
        self._stopping = True
        write_whole(self._folder / _STOP, b"")
        ids = [each.job.job_id for each in self._submitted]
        if ids and self._is_slurm:
            # Those that run save first.
            subprocess.run(["scancel", "--state=PENDING", *ids], check=False)
        while wait and self._submitted:
            for _ in self.ended():
                pass
            time.sleep(POLL_SECONDS)

    def _send(self) -> None:
        """Submit what waits, as far as the cluster takes it."""
        while self._waiting:
            gpu = self._waiting[0][0].device == "cuda"
            shares = self._runs_per_gpu if gpu else 1
            group = [each for each in self._waiting[:shares] if (each[0].device == "cuda") == gpu]
            tasks = [task for task, _ in group]
            outcomes = []
            for task in tasks:
                self._count += 1
                outcomes.append(self._folder / f"{task.name}.{self._count}.ended")
            work = Job(tuple(zip(tasks, outcomes, strict=True)), self._folder, str(Path.cwd()))
            executor = self._executors[gpu]
            executor.update_parameters(cpus_per_task=sum(task.cores for task in tasks))
            # Ctrl-C in a terminal reaches the study alone, not jobs on this machine.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                job = executor.submit(work)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                line = str(error).strip().rpartition("\n")[2]
                if not self._submitted:
                    raise EbuError(f"sbatch refuses the job: {line}") from error
                # Most clusters limit how many jobs one may queue.
                self._full = True
                if not self._said_full:
                    say(f"{len(self._waiting)} runs wait until jobs have ended: {line}")
                self._said_full = True
                return
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for (task, deaths), outcome in zip(group, outcomes, strict=True):
                frames = task.played_frames()
                self._submitted.append(_Submitted(task, job, outcome, frames, deaths))
            self._waiting = [each for each in self._waiting if each not in group]

    def _failure(self, each: _Submitted) -> str | None:
        """How a task failed, empty if it ended well; None while it is played, or is again."""
        is_done = each.job.done()
        if each.outcome.exists():
            return each.outcome.read_text()
        if not is_done:
            return None
        if self._stopping:
            return "stopped"
        each.done_at = each.done_at or time.monotonic()
        if time.monotonic() - each.done_at < _STORAGE_SECONDS:
            return None
        job_log = f"see {each.job.paths.stdout} and {each.task.log}"
        if each.job.state.startswith("CANCELLED"):
            return f"job {each.job.job_id} was cancelled: {job_log}"
        played = each.task.played_frames() > each.frames
        deaths = 0 if played else each.deaths + 1
        if deaths >= _DEATHS:
            return (
                f"{deaths} jobs have died without a result, the last {each.job.job_id}: {job_log}"
            )
        say(f"{each.task.name}: job {each.job.job_id} has died: submitting it again")
        self._submitted.remove(each)
        self._waiting.append((each.task, deaths))
        return None


@dataclass
class Job:
    """What a job does: play tasks side by side, and write how each failed to its file.

    Told to stop by the file `stop` of the folder, by SIGTERM or before a requeue, its runs save and
    end.
    """

    tasks: tuple[tuple[Task, Path], ...]
    folder: Path
    directory: str
    _players: dict[Path, Player] = field(default_factory=dict)

    def __call__(self) -> None:
        enter(self.directory)
        told = list[int]()
        signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
        code = code_version()
        stopped = False
        for task, outcome in self.tasks:
            if not outcome.exists():
                self._players[outcome] = Player(task, code)
        while self._players:
            if not stopped and (told or (self.folder / _STOP).exists()):
                stopped = True
                for player in self._players.values():
                    player.stop()
            for outcome, player in list(self._players.items()):
                try:
                    failure = player.poll()
                except EbuError as error:
                    failure = str(error)
                if failure is not None:
                    del self._players[outcome]
                    # One that was stopped is played again, by a job requeued or by another.
                    if not player.is_stopped or not failure:
                        write_whole(outcome, failure.encode())
            time.sleep(POLL_SECONDS)

    def checkpoint(self) -> Any:
        """Stop all runs at the preemption signal; returns what submitit requeues."""
        from submitit.helpers import DelayedSubmission

        for player in self._players.values():
            player.stop()
        for player in self._players.values():
            player.wait()
            with contextlib.suppress(EbuError):
                player.poll()
        return DelayedSubmission(Job(self.tasks, self.folder, self.directory))
