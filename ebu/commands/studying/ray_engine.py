"""The runs of a study as tasks of a Ray cluster."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ebu.commands.studying.player import POLL_SECONDS, Player, Task, enter
from ebu.commands.studying.provenance import code_version
from ebu.errors import EbuError, UsageError
from ebu.run.hardware import all_cores
from ebu.run.progress import say

# How often Ray plays a task again whose machine or worker has died.
RETRIES = 10
# The least that Ray takes: nothing but the commands and how they ended goes through it.
_STORE_BYTES = 80 * 2**20


@contextmanager
def open_ray(address: str, runs_per_gpu: int) -> Iterator["RayEngine"]:
    """Connect to the cluster at an address; without one, start one here until the block ends.

    Raises `UsageError` where no cluster answers, `EbuError` where none can be started.
    """
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address:
            ray.init(address, **quiet)
        else:
            say("starting Ray on this machine")
            ray.init(
                "local",
                num_cpus=all_cores(),
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                **quiet,
            )
    except Exception as error:  # Ray raises no narrower one where a node is slow to start
        line = str(error).strip().partition("\n")[0]
        if address:
            raise UsageError(f"--address {address}: no Ray cluster answers: {line}") from error
        raise EbuError(f"Ray does not start on this machine: {line}") from error
    try:
        yield RayEngine(ray, runs_per_gpu)
    finally:
        ray.shutdown()


class RayEngine:
    """Plays tasks where Ray finds free cores and a part of a GPU for them."""

    def __init__(self, ray: Any, runs_per_gpu: int) -> None:
        self._ray = ray
        self._tasks: dict[Any, Task] = {}
        self._runs_per_gpu = runs_per_gpu
        self._has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        self._too_large: set[int] = set()

    def submit(self, task: Task) -> None:
        self._check_cores(task.cores)
        gpu = task.device == "cuda" or (task.device == "auto" and self._has_gpus)
        remote = self._ray.remote(
            num_cpus=task.cores,
            num_gpus=1 / self._runs_per_gpu if gpu else 0,
            max_retries=RETRIES,
        )(play)
        self._tasks[remote.remote(task, os.getcwd())] = task

    def _check_cores(self, cores: int) -> None:
        nodes = self._ray.nodes()
        most = max((node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]), default=0)
        if cores > most and cores not in self._too_large:
            self._too_large.add(cores)
            say(
                f"warning: runs of {cores} threads wait for a machine of as many cores; the "
                f"largest has {most:.0f}: resume them elsewhere, or start others with -- --threads"
            )

    def ended(self) -> Iterator[tuple[Task, str]]:
        for reference in self._wait(0):
            task = self._tasks.pop(reference)
            try:
                failure = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                line = str(error).strip().partition("\n")[0]
                failure = f"{type(error).__name__}: {line} (log: {task.log})"
            yield task, failure

    def stop(self, wait: bool = False) -> None:
        for reference in self._tasks:
            self._ray.cancel(reference)
        if wait:
            self._wait(None)

    def _wait(self, seconds: float | None) -> list[Any]:
        references = list(self._tasks)
        if not references:
            return []
        done, _ = self._ray.wait(references, num_returns=len(references), timeout=seconds)
        return list(done)


def play(task: Task, directory: str) -> str:
    """Play a task in a worker of Ray, until it ends or is cancelled; returns how it failed."""
    told = list[int]()
    # `ray.cancel` raises SIGINT in the worker, which may have been started with it ignored.
    before = signal.signal(signal.SIGINT, lambda number, _: told.append(number))
    try:
        enter(directory)
        player = Player(task, code_version())
        while (failure := player.poll()) is None:
            if told:
                told.clear()
                player.stop()
            time.sleep(POLL_SECONDS)
    except EbuError as error:
        return str(error)
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    return failure
