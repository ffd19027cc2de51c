"""A run that is killed again and again ends as one that never was, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import Checkpoint, load_latest
from ebu.run.tensorboard import OVERVIEW, SPEED
from tests.made_up import same

ROOT = Path(__file__).parents[2]
NUM_ENVS, CAPACITY = 4, 2_000
# Lives, games of some hundred steps, about 1,100 updates, and the ring of 500 steps wraps twice.
FLAGS = (
    f"--game qbert --frames 20000 --seed 3 --num-envs {NUM_ENVS} --replay-capacity {CAPACITY} "
    "--learning-starts 400 --updates-per-step 0.25 --batch-size 8 --target-sync-updates 100 "
    "--epsilon-decay-steps 3000 --log-every-frames 1000 --eval-every-frames 9000 "
    "--eval-episodes 2 --device cpu --threads 1"
).split()
# Each start, the moment it is killed at, and its vector steps between checkpoints. Learning begins
# at vector step 100; the starts resume at 0, 0, 120, 340, 480 and 600.
STARTS = [
    ("step:300", 1000),  # before the first checkpoint
    ("writing:2", 120),
    ("unpublished:3", 110),
    ("saved:2", 70),
    ("step:150", 40),
    ("never", 300),
]


def run(moment: str, flags: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.killed_training", moment, "--", *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def newest(run_dir: Path, name: str = "checkpoints") -> Checkpoint:
    checkpoint = load_latest(run_dir / name)
    assert checkpoint is not None
    return checkpoint


def load_replay(checkpoint: Checkpoint) -> EpisodicReplay:
    replay = EpisodicReplay(
        capacity=CAPACITY,
        num_streams=NUM_ENVS,
        frame_shape=(84, 84),
        frame_dtype=torch.uint8,
        stack=4,
        device=torch.device("cpu"),
    )
    replay.load_state_dict(checkpoint.state["replay"], num_actions=6)
    replay.read_frames(checkpoint.directory)
    return replay


def stored_segments(replay: EpisodicReplay) -> list[tuple[Any, ...]]:
    """Every stored segment with its whole content, in the order of the table."""
    segments = []
    for index in range(len(replay.segments)):
        segment = replay.segments[index]
        steps = np.arange(segment.start, segment.start + segment.length)
        streams = np.full(segment.length, segment.stream)
        batch = replay.read(steps, streams)
        content = (
            batch.states,
            batch.next_states,
            batch.actions,
            batch.rewards,
            batch.terminated,
            batch.probabilities,
        )
        segments.append((segment, *(part.numpy().tobytes() for part in content)))
    return segments


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Everything TensorBoard shows that is no measurement of speed."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("speed/") and tag != OVERVIEW[SPEED]
    }


@pytest.mark.slow
def test_a_grown_run_ends_as_one_of_full_length(tmp_path: Path) -> None:
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    flags = [*FLAGS, "--network", "net3", "--distill", "net3"]
    flags += ["--eval-every-frames", "2000", "--learning-starts", "200"]
    # The first end lies between two points of the logs and of the evaluations.
    for run_dir, ends in ((grown, (2_700, 5_300)), (whole, (5_300,))):
        for frames in ends:
            ended = run("never", [*flags, "--frames", str(frames), "--run-dir", str(run_dir)])
            assert ended.returncode == 0, ended.stderr
            for log in ("metrics.jsonl", "evaluations.jsonl"):
                last = json.loads((run_dir / log).read_text().splitlines()[-1])
                assert frames <= last["frames"] < frames + 4 * NUM_ENVS
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert (whole / log).read_bytes() == (grown / log).read_bytes(), log
    assert scalars(whole) == scalars(grown)
    one, other = newest(whole), newest(grown)
    assert one.state["distiller"]["evaluated"]
    assert same(one.state, other.state)
    assert stored_segments(load_replay(one)) == stored_segments(load_replay(other))
    for name in ("best", "students/net3/checkpoints"):
        assert same(newest(whole, name).state, newest(grown, name).state)


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "network"), [("ebu", "nature"), ("dqn", "net2")])
def test_a_killed_run_ends_as_one_that_was_never_killed(
    agent: str, network: str, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = [*FLAGS, "--agent", agent, "--network", network]
    reference = run("never", [*flags, "--run-dir", str(whole)])
    assert reference.returncode == 0, reference.stderr

    resumed_inside_a_draw = 0
    for moment, steps in STARTS:
        start = [*flags, "--run-dir", str(killed), "--checkpoint-minutes", str(steps)]
        ended = run(moment, start)
        expected = 0 if moment == "never" else -signal.SIGKILL
        assert ended.returncode == expected, (moment, ended.stderr)
        assert "Traceback" not in ended.stderr
        checkpoint = load_latest(killed / "checkpoints")
        if moment != "never" and checkpoint is not None:
            state = checkpoint.state["agent"]
            resumed_inside_a_draw += agent == "ebu" and bool(state["sampler"]["draws"]["index"])
    assert resumed_inside_a_draw >= (2 if agent == "ebu" else 0)

    one, other = newest(whole), newest(killed)
    assert one.state["updates"] >= 1_000
    assert one.state["replay"]["num_steps"] > 2 * CAPACITY // NUM_ENVS
    assert same(one.state, other.state)
    segments = stored_segments(load_replay(one))
    assert len(segments) >= NUM_ENVS
    assert segments == stored_segments(load_replay(other))

    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert (whole / log).read_bytes() == (killed / log).read_bytes(), log
    frames = [
        json.loads(line)["frames"] for line in (killed / "metrics.jsonl").read_text().splitlines()
    ]
    assert [frame // 1000 for frame in frames] == list(range(1, 21))
    assert len((killed / "evaluations.jsonl").read_text().splitlines()) == 3
    shown = scalars(killed)
    assert shown == scalars(whole)
    assert [step for step, _ in shown["train/epsilon"]] == frames
    assert same(newest(whole, "best").state, newest(killed, "best").state)
