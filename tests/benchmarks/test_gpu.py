"""The commands for a GPU: rehearsed on the CPU, killed half-way, refused without a device."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_figures
from benchmarks.pieces import ROOT, Notes
from benchmarks.runs import Conditions, Contender, Window, one_set_of_environments, open_run
from ebu.errors import UsageError

REHEARSAL = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--rehearse", "--threads=1"]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["checks", "figures"])
def test_a_rehearsal_measures_all(run: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*REHEARSAL, "--run", run, "--out", tmp_path, "--minutes", "30"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = Notes(tmp_path / f"{run}.jsonl", 0.0).read()
    settings = gpu.Settings(run=run, device="cpu", rehearse=True)  # type: ignore[arg-type]
    assert {line["piece"] for line in lines if "done" in line} == {
        piece.name for piece in gpu.pieces_of(settings)
    }
    assert not any("error" in line for line in lines)
    assert any(line.get("targets by") == "recursion" for line in lines)
    assert "## " in (tmp_path / f"{run}.md").read_text()


@pytest.mark.slow
def test_a_rehearsed_game_is_played_to_its_end_and_resumed(tmp_path: Path) -> None:
    def play(minutes: str) -> dict[str, float]:
        command = [*REHEARSAL, "--run", "game", "--out", str(tmp_path), "--minutes", minutes]
        subprocess.run(command, cwd=ROOT, check=True)
        figures: dict[str, float] = Notes(tmp_path / "game.jsonl", 0.0).read()[-1]
        return figures

    # 30 seconds are for the checkpoint: it is stopped after a few seconds.
    first = play("0.6")
    last = play("20")
    assert first["frames"] <= last["frames"] == 4_000
    assert last["exit code"] == 0


@pytest.mark.slow
def test_figures_stay_when_the_command_is_killed_half_way(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    command = [*REHEARSAL, "--run", "figures", "--out", str(tmp_path), "--minutes", "30"]
    measuring = subprocess.Popen(command, cwd=ROOT, process_group=0)
    while not any("done" in line for line in Notes(path, 0.0).read()):
        assert measuring.poll() is None
        time.sleep(0.1)
    os.killpg(measuring.pid, signal.SIGKILL)
    measuring.wait()
    assert any("milliseconds" in line for line in Notes(path, 0.0).read())


def test_runs_of_a_game_share_their_environments(tmp_path: Path) -> None:
    sizes = {"replay_capacity": 200, "learning_starts": 10**6, "threads": 1, "device": "cpu"}
    with one_set_of_environments():
        seen = []
        for game, num_envs in (("pong", 2), ("pong", 2), ("pong", 1)):
            with open_run(game=game, num_envs=num_envs, frames=80, **sizes) as trainer:
                assert trainer.run(80)
                seen.append(trainer.env.env)  # type: ignore[attr-defined]
        assert seen[0] is seen[1] is not seen[2]


def test_the_commands_fit_a_quarter_of_an_hour_and_refuse_what_they_cannot_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert gpu.MINUTES["checks"] + gpu.MINUTES["figures"] <= 12
    assert max(gpu.MINUTES.values()) <= 9
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, complaint in (
        ([], "no CUDA device"),
        (["--device", "cpu"], "--rehearse"),
        (["--device", "cpu", "--rehearse", "--only", "nothing such"], "no piece"),
    ):
        monkeypatch.setattr("sys.argv", ["gpu.py", *flags])
        with pytest.raises(UsageError, match=complaint):
            gpu.main()


def test_threads_reach_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def note(contender: Contender, conditions: Conditions, seed: int) -> Window:
        threads.append(conditions.threads)
        return Window(1.0, 400, 100)

    monkeypatch.setattr(gpu_figures, "time_ours", note)
    scope = gpu.scope_of(gpu.Settings(device="cpu", rehearse=True, threads=3))
    pieces = [each for each in gpu_figures.figures_pieces(scope) if "per step" in each.name]
    for piece in pieces:
        (figures,) = piece.measure()
        assert figures["frames per second"] == 400
    assert threads == [3] * len(pieces) != []
    assert gpu_figures.where(scope)["threads"] == 3
