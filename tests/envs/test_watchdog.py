"""Native code that lets no thread of Python run is ended from outside, with one line."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

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
