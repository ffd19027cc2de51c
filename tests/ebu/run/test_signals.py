"""Signals: the first saves, a second Ctrl-C ends, all others let it finish."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ebu.run.signals import SECOND, stop_on_signals
from envs.faults import EnvironmentHang
from envs.watchdog import Watchdog

SAVES = """
import time
from ebu.run.cli import run_command
from ebu.run.signals import stop_on_signals

def main() -> int:
    stopped = []
    with stop_on_signals(stopped.append):
        print("ready", flush=True)
        while not stopped:
            time.sleep(0.01)
        print("saving", flush=True)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(0.01)
        return 128 + stopped[0]

run_command(main)
"""


def start(seconds: float, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", SAVES.replace("SECONDS", str(seconds))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        **options,
    )


@pytest.mark.parametrize(
    "numbers",
    [
        *([signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGUSR1], [signal.SIGUSR2]),
        *([signal.SIGINT] * 3, [signal.SIGTERM, signal.SIGINT], [signal.SIGTERM] * 3),
        *([signal.SIGXCPU], [signal.SIGXCPU] * 2),
        [signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM],
    ],
    ids=lambda numbers: "-".join(number.name for number in numbers),
)
def test_what_is_being_saved_is_saved_however_often_one_request_comes(
    numbers: list[signal.Signals],
) -> None:
    with start(0.4) as process:
        said = send(process, numbers[0])
        for number in numbers[1:]:
            process.send_signal(number)
        said += process.communicate(timeout=30)[1]
    assert process.returncode == 128 + numbers[0]
    assert "Traceback" not in said
    assert said.count(SECOND) == 1


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_while_it_saves_ends_it_at_once(first: signal.Signals) -> None:
    with start(60) as process:
        said = send(process, first)
        time.sleep(0.6)
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=30)[1]
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in said


def test_sigterm_while_it_saves_loses_nothing() -> None:
    with start(1.2) as process:
        send(process, signal.SIGINT)
        time.sleep(0.6)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT


def send(process: subprocess.Popen[str], first: signal.Signals) -> str:
    """Send the first signal once it runs; returns what it has said when it saves."""
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(first)
    assert process.stdout.readline() == "saving\n"
    return process.stderr.readline() + process.stderr.readline()


def test_nohup_is_respected() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with start(0, preexec_fn=ignore) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGUSR1)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGUSR1


@pytest.mark.parametrize("start", [["train.py"], ["-m", "ebu.commands.report"]])
def test_an_interrupted_start_gives_no_traceback(start: list[str]) -> None:
    # As Ctrl-C in the middle of loading a package.
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    program = f"""
import sys, runpy
sys.argv = {[start[0] if start[0] != "-m" else "-m", "--help"]!r}
class Finder:
    def find_spec(self, name, *rest):
        if name == "tyro":
            {interrupt}
sys.meta_path.insert(0, Finder())
import ebu.commands.{start[-1].rpartition(".")[2] if start[0] == "-m" else "train"}
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_a_call_that_hangs_is_left_while_signals_are_answered() -> None:
    stopped: list[int] = []
    watchdog = Watchdog(lambda: "environment 3", seconds=1)
    with (
        stop_on_signals(stopped.append),
        pytest.raises(EnvironmentHang, match="environment 3"),
        watchdog,
    ):
        time.sleep(60)
    watchdog.stop()
    assert stopped == []


def test_at_a_soft_limit_of_processor_time_it_saves(tmp_path: Path) -> None:
    limited = SAVES.replace(
        "def main",
        """import resource
used = int(time.process_time())
resource.setrlimit(resource.RLIMIT_CPU, (used + 2, used + 30))

def main""",
    )
    busy = limited.replace("time.sleep(0.01)", "pass").replace("SECONDS", "0.1")
    words = [sys.executable, "-c", busy]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert ended.stdout.split() == ["ready", "saving"]
    assert ended.returncode == 128 + signal.SIGXCPU
