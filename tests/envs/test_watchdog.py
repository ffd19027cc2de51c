"""Native code that lets no thread of Python run is ended from outside, with one line."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from envs.outside_watchdog import where

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only on Linux")

HELD = "collections.deque(itertools.repeat(0), maxlen=0)"
"""Never ends, and never releases the interpreter's lock."""


def start(code: str, seconds: int = 2) -> "subprocess.Popen[str]":
    """Run code in a process of its own, in which `watchdog` is a Watchdog."""
    before = f"""
    import collections, itertools, os, signal, sys, time
    import envs.watchdog
    envs.watchdog.LOCKED_SECONDS = {seconds}
    watchdog = envs.watchdog.Watchdog(lambda: "environment 3")
    helper = envs.watchdog._outside._process.pid
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(before) + textwrap.dedent(code)],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def state(process: int) -> str:
    """The letter that the kernel has for what a process does; none where it is gone."""
    stat = Path(f"/proc/{process}/stat")
    return stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else ""


def test_a_call_that_holds_the_interpreters_lock_ends_the_process_with_one_line() -> None:
    with start(
        f"""
        print(helper, flush=True)
        began = time.monotonic()
        while time.monotonic() - began < 4:  # many short waits, longer than the patience
            with watchdog:
                pass
        sum(itertools.repeat(1, 2 * 10**8))  # holds the lock, but is not waited for
        print("alive", flush=True)
        with watchdog:
            {HELD}
        """
    ) as process:
        output, said = process.communicate(timeout=60)
    helper, alive = output.split()
    assert alive == "alive"
    assert process.returncode == -signal.SIGKILL
    (line,) = said.splitlines()
    assert line.startswith("error: environment 3 has not answered for 2 seconds")
    time.sleep(0.5)
    # An orphan is reaped by the system, when it likes.
    assert state(int(helper)) in ("", "Z", "X")


def test_what_watches_ends_with_the_process_and_ignores_signals() -> None:
    with start(
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(helper, number)
        print(helper, os.getsid(helper) == helper, flush=True)
        time.sleep(1.5)
        print(os.path.exists(f"/proc/{helper}"))
        """
    ) as process:
        output, said = process.communicate(timeout=60)
    helper, own_session, running = output.split()
    assert (own_session, running, said, process.returncode) == ("True", "True", "", 0)
    assert state(int(helper)) == ""


def test_a_process_that_is_suspended_does_not_wait() -> None:
    with start(
        """
        with watchdog:
            print("waiting", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        print("left")
        """
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(5)
        process.send_signal(signal.SIGCONT)
        output, said = process.communicate(timeout=60)
    assert (output, said, process.returncode) == ("left\n", "", 0)


def test_a_forked_child_has_a_watching_process_of_its_own() -> None:
    with start(
        f"""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork, from Python 3.12 on
        if not (child := os.fork()):
            with envs.watchdog.Watchdog(lambda: "the child"):
                {HELD}
        with watchdog:
            pass
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    ) as process:
        output, said = process.communicate(timeout=60)
    assert (output, process.returncode) == ("-9\n", 0)
    (line,) = said.splitlines()
    assert line.startswith("error: the child has not answered")


@pytest.mark.parametrize(
    ("training", "purpose"), [(True, "in training"), (False, "in an evaluation")]
)
def test_the_line_names_environment_game_and_step(training: bool, purpose: str) -> None:
    with start(
        f"""
        import numpy as np
        from envs import make_vector
        from envs.protocols import PROTOCOLS
        made = make_vector(
            "tests.faulty:HoldsTheLock-v0", 2, seed=1, protocol=PROTOCOLS["paper"],
            training={training},
        )
        made.reset()
        while True:
            made.send(np.zeros(2, np.int64))
            made.recv()
        """
    ) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (line,) = said.splitlines()
    name = f"tests.faulty:HoldsTheLock-v0 {purpose}"
    assert line.startswith(f"error: environment 1 of {name}, step 3 of its game 2 has not answered")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ((-1, -1, -1), "pong"),
        ((-1, -1, 0), "pong, the reset"),
        ((-1, -1, 7), "pong, step 7"),
        ((0, 0, 0), "environment 0 of pong, which is being made,"),
        ((0, 2, 0), "environment 0 of pong, the reset of its game 2"),
        ((3, 2, 9), "environment 3 of pong, step 9 of its game 2"),
    ],
)
def test_what_is_not_known_is_not_named(place: tuple[int, int, int], said: str) -> None:
    assert where("pong", *place) == said


def test_a_wait_may_be_given_more_time() -> None:
    with start(
        f"""
        watchdog.more = 3
        with watchdog:
            {HELD}
        """
    ) as process:
        _, said = process.communicate(timeout=60)
    assert "has not answered for 5 seconds" in said
