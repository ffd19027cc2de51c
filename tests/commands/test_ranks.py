"""One run in several processes: stopped, killed, damaged and resumed, with the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from agents import load_agent
from agents.settings import EbuConfig
from ebu.commands.presets import GYMNASIUM, TrainConfig
from ebu.commands.rank_parts import check_ranks, part_of_rank
from ebu.commands.train_arguments import parse_arguments
from ebu.errors import UsageError
from ebu.run.checkpoint import load_latest
from ebu.run.directory import read_config
from ebu.run.ranks import Ranks
from tests.made_up import same
from tests.ranks import ROOT, ended, run_ranks, started, states

SEED, FRAMES = 3, 3000
FLAGS = (
    f"--game CartPole-v1 --frames {FRAMES} --seed {SEED} --num-envs 4 --replay-capacity 1000 "
    "--batch-size 8 --mix-segments 4 --learning-starts 200 --updates-per-step 0.25 "
    "--log-every-frames 500 --eval-every-frames 1000 --eval-episodes 2 --device cpu --threads 1"
).split()
# Each rank's noise is drawn as often as it draws segments, whose number differs.
NOISY = ["--noisy", "--epsilon-end", "0"]
OFTEN = ["--checkpoint-minutes", "0.005"]
LOGS = ("metrics.jsonl", "evaluations.jsonl")


def command(run_dir: Path, *flags: str) -> list[str]:
    return ["train.py", *FLAGS, *flags, "--run-dir", str(run_dir)]


def newest(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("frames-*"))


def wait_for(file: Path, lines: int) -> None:
    for _ in range(600):
        if file.is_file() and len(file.read_text().splitlines()) >= lines:
            return
        time.sleep(0.1)
    raise AssertionError(f"{file} has not {lines} lines after a minute")


def assert_same_run(run_dir: Path, whole: Path) -> None:
    for log in LOGS:
        assert (run_dir / log).read_bytes() == (whole / log).read_bytes()
    assert newest(run_dir).name == newest(whole).name
    ours, theirs = states(newest(run_dir)), states(newest(whole))
    assert len(ours) == len(theirs) == 2
    assert all(same(one, other) for one, other in zip(ours, theirs, strict=True))
    for part in ("rank-0", "rank-1"):
        frames = [(newest(each) / part / "frames.zst").read_bytes() for each in (run_dir, whole)]
        assert frames[0] == frames[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    for code, error in run_ranks(command(run_dir, *NOISY)):
        assert code == 0, error
    return run_dir


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
        ),
    ],
)
def test_two_processes_write_one_run(device: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first, second = run_ranks(command(run_dir, "--frames", "1100", "--device", device))
    assert (first[0], second) == (0, (0, "")), first[1]
    assert "done: score it" in first[1]
    last = json.loads((run_dir / LOGS[0]).read_text().splitlines()[-1])
    parts = states(newest(run_dir))
    assert last["frames"] == last["train/agent_steps"] == parts[1]["agent_steps"]
    assert last["train/updates"] == parts[1]["agent"]["learner"]["updates"] > 0
    stored = [state["replay"]["num_transitions"] for state in parts]
    assert last["replay/transitions"] == sum(stored)
    # Other games, and weights once.
    assert not same(parts[0]["env"], parts[1]["env"])
    assert "online" not in parts[1]["agent"]["learner"]
    assert load_agent(run_dir).frames == last["frames"]
    assert load_agent(run_dir, weights="best").frames >= 1000


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_process_stops_and_saves_all(
    rank: int, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with started(command(run_dir, *NOISY)) as ranks:
        wait_for(run_dir / LOGS[0], 2)
        ranks[rank].send_signal(signal.SIGTERM)
        first, second = ended(ranks)
    assert (first[0], second[0]) == (143, 143)
    assert "resume with:" in first[1]
    assert "torchrun --nproc-per-node 2" in first[1]
    frames = json.loads((newest(run_dir) / "rank-0" / "state.json").read_text())["frames"][1]
    assert 0 < frames < FRAMES
    assert [code for code, _ in run_ranks(command(run_dir, *NOISY))] == [0, 0]
    assert_same_run(run_dir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_nothing_is_lost(
    rank: int, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with started(command(run_dir, *NOISY, *OFTEN)) as ranks:
        wait_for(run_dir / LOGS[1], 1)
        ranks[rank].kill()
        killed = time.monotonic()
        ends = ended(ranks)
        assert time.monotonic() - killed < 60
    code, error = ends[1 - rank]
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert (code, "run the same command again" in line) == (1, True)
    assert "Traceback" not in error
    assert [code for code, _ in run_ranks(command(run_dir, *NOISY, *OFTEN))] == [0, 0]
    assert_same_run(run_dir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "altered", "gone"])
def test_a_checkpoint_without_one_part_does_not_count(
    damage: str, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    part = newest(run_dir) / "rank-1"
    if damage == "gone":
        shutil.rmtree(part)
    elif damage == "missing":
        (part / "frames.zst").unlink()
    else:
        data = bytearray((part / "frames.zst").read_bytes())
        data[len(data) // 2] ^= 1
        (part / "frames.zst").write_bytes(bytes(data))
    found = load_latest(run_dir / "checkpoints")
    assert found is not None
    assert found.name < newest(whole).name
    assert "rank-1" in found.warnings[0]
    ends = run_ranks(command(run_dir, *NOISY))
    assert [code for code, _ in ends] == [0, 0]
    assert "is damaged" in ends[0][1]
    assert_same_run(run_dir, whole)


@pytest.mark.slow
def test_another_number_of_processes_is_refused_in_one_line(whole: Path) -> None:
    for world_size in (1, 4):
        ends = run_ranks(command(whole, *NOISY), world_size)
        assert [code for code, _ in ends] == [2] * world_size
        (line,) = [error for _, error in ends if error]
        assert len(line.splitlines()) == 1
        assert "was started in 2 processes" in line
        assert "torchrun --nproc-per-node 2" in line


@pytest.mark.slow
def test_one_process_under_torchrun_is_plain_python(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "1"]
    for name, start in (("plain", []), ("under", torchrun)):
        words = [sys.executable, *start, *command(tmp_path / name)]
        subprocess.run(words, cwd=ROOT, check=True, timeout=300, capture_output=True)
    plain, under = (load_latest(tmp_path / name / "checkpoints") for name in ("plain", "under"))
    assert plain is not None
    assert under is not None
    assert same(plain.state, under.state)
    assert read_config(tmp_path / "under").keys() == {"settings", "automatic", "environment"}
    for log in LOGS:
        assert (tmp_path / "plain" / log).read_bytes() == (tmp_path / "under" / log).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for children in /proc")
def test_torchrun_saves_on_a_signal_and_ends_all_when_one_is_killed(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", *command(run_dir, *NOISY)]
    run = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(run_dir / LOGS[0], 2)
    run.send_signal(signal.SIGTERM)
    _, error = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "stopped at frame" in error
    stopped_at = newest(run_dir)
    run = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(run_dir / LOGS[0], len((run_dir / LOGS[0]).read_text().splitlines()) + 1)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, error = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "run the same command again" in error
    assert newest(run_dir) == stopped_at
    run = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    _, error = run.communicate(timeout=300)
    assert run.returncode == 0, error
    assert_same_run(run_dir, whole)


def config_of(**settings: object) -> TrainConfig:
    return TrainConfig(**{"num_envs": 8, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "types"),
    [
        ({"num_envs": 8}, "--num-envs 9"),
        ({"num_envs": 9}, "--replay-capacity 1000002"),
        ({"num_envs": 9, "replay_capacity": 999}, "--batch-size 33"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_does(
    settings: dict[str, int], types: str
) -> None:
    with pytest.raises(UsageError, match=f"{types}$"):
        part_of_rank(config_of(**settings), Ranks(0, 3, 0, 3))


def test_each_rank_has_an_equal_part() -> None:
    own = part_of_rank(GYMNASIUM, Ranks(1, 2, 1, 2))
    assert (own.num_envs, own.replay_capacity) == (4, 50_000)
    assert (own.method.batch_size, own.method.mix_segments) == (32, 8)  # type: ignore[attr-defined]
    assert part_of_rank(GYMNASIUM, Ranks()) == GYMNASIUM
    for mix, parts in ((1, 1), (4, 1), (8, 1), (16, 2)):
        method = EbuConfig(mix_segments=mix)
        own = part_of_rank(config_of(num_envs=8, method=method), Ranks(1, 8, 1, 8))
        assert own.method.mix_segments == parts  # type: ignore[attr-defined]


def test_what_several_processes_cannot_train_is_refused(tmp_path: Path) -> None:
    for flags, why in (
        (["--agent", "adaptive_ebu"], "adaptive_ebu"),
        (["--agent", "prioritized"], "--no-prioritized"),
        (["--prioritized"], "--no-prioritized"),
        (["--distill", "net3"], "--distill"),
    ):
        config = parse_arguments(flags)
        check_ranks(config, tmp_path, None, Ranks())
        with pytest.raises(UsageError, match=why):
            check_ranks(config, tmp_path, None, Ranks(0, 2, 0, 2))
