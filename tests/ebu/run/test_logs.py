"""Logs that continue exactly where a checkpoint left them."""

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ebu.errors import EbuError
from ebu.run.logs import Monitor, cut_logs
from tests.ebu.small_files import small_files


def shown(run_dir: Path) -> Any:
    """What a TensorBoard started now has read."""
    accumulator = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def points(accumulator: Any, tag: str) -> list[tuple[int, float]]:
    return [(scalar.step, scalar.value) for scalar in accumulator.Scalars(tag)]


def event_files(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("events.out.tfevents.*"))


# --- what is written ------------------------------------------------------------------------


def test_scalars(tmp_path: Path) -> None:
    exact = {"b": 5e-324, "c": 1.7976931348623157e308, "d": -0.0, "e": 2**53 + 1}
    monitor = Monitor(tmp_path)
    monitor.scalars(4, {"train/return": 1 / 3, "loss/mean": float("nan"), "a": float("-inf")})
    monitor.scalars(8, {"train/return": np.float64(0.5), "replay/segments": 3})
    monitor.scalars(2**40, {"replay/segments": 4, **exact})
    monitor.draw(2**40, {"speed/frames_per_second": 1 / 3})
    monitor.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"frames": 4, "train/return": 1 / 3, "loss/mean": None, "a": None},
        {"frames": 8, "train/return": 0.5, "replay/segments": 3},
        {"frames": 2**40, "replay/segments": 4, **exact},
    ]
    accumulator = shown(tmp_path)
    assert points(accumulator, "train/return") == [(4, pytest.approx(1 / 3)), (8, 0.5)]
    assert points(accumulator, "replay/segments") == [(8, 3), (2**40, 4)]
    [(step, speed)] = points(accumulator, "speed/frames_per_second")
    assert step == 2**40
    assert speed == pytest.approx(1 / 3)


def test_evaluations(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    record = {"protocol": "paper", "mean": 1.5, "normalised": None, "returns": [1.0, np.int64(2)]}
    monitor.evaluation(4, {**record, "table": {"human": 9.3}, "worst": float("inf")})
    monitor.evaluation(8, {"mean": 2.5, "worst": 1.0})
    monitor.close()
    assert (tmp_path / "evaluations.jsonl").read_text() == (
        '{"frames":4,"protocol":"paper","mean":1.5,"normalised":null,"returns":[1.0,2],'
        '"table":{"human":9.3},"worst":null}\n'
        '{"frames":8,"mean":2.5,"worst":1.0}\n'
    )
    accumulator = shown(tmp_path)
    of_evaluations = [tag for tag in accumulator.Tags()["scalars"] if tag.startswith("eval/")]
    assert sorted(of_evaluations) == ["eval/mean", "eval/worst"]
    assert points(accumulator, "eval/mean") == [(4, 1.5), (8, 2.5)]
    assert points(accumulator, "eval/worst") == [(4, float("inf")), (8, 1.0)]


def test_what_never_changes_is_no_curve(tmp_path: Path) -> None:
    """Except for the curves that matter first: theirs are there from the first line."""
    monitor = Monitor(tmp_path)
    for frames in (1, 2, 3, 4):
        late = {"late": 0.0 if frames < 3 else 1.0, "flat": 7.0, "none": float("nan")}
        monitor.scalars(frames, {**late, "loss/huber": 0.5, "replay/bytes": 1e9})
        monitor.evaluation(frames, {"mean": -21.0, "games": 10})
    monitor.close()
    accumulator = shown(tmp_path)
    assert set(accumulator.Tags()["scalars"]) == {"late", *CURVES["loss"], *CURVES["evaluation"]}
    assert points(accumulator, "late") == [(1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0)]
    for tag in CURVES["loss"]:
        assert points(accumulator, tag) == [(frames, 0.5) for frames in (1, 2, 3, 4)]


CURVES = {
    "loss": ["loss/huber", "Overview/3_loss"],
    "evaluation": ["eval/mean", "Overview/2_eval_mean"],
}


@pytest.mark.parametrize("changes", [2, 3, 4, 5])
def test_a_resumed_run_has_the_curves_of_one_that_was_not_stopped(
    tmp_path: Path, changes: int
) -> None:
    """Whether a value changes before, at or after the checkpoint, or never."""

    def log(monitor: Monitor, frames: range) -> None:
        for frame in frames:
            value = float("nan") if frame < changes else float(frame)
            monitor.scalars(frame, {"a": value, "flat": 7.0})
            monitor.evaluation(frame, {"mean": 1.0, "worst": 0 if frame < changes else 1})

    whole, stopped = Monitor(tmp_path / "whole"), Monitor(tmp_path / "stopped")
    log(whole, range(1, 5))
    whole.close()
    log(stopped, range(1, 3))
    lengths = stopped.sync()
    log(stopped, range(3, 4))
    stopped.close()
    cut_logs(tmp_path / "stopped", lengths)
    resumed = Monitor(tmp_path / "stopped", resumed_at=2)
    log(resumed, range(3, 5))
    resumed.close()
    one, other = shown(tmp_path / "whole"), shown(tmp_path / "stopped")
    assert sorted(one.Tags()["scalars"]) == sorted(other.Tags()["scalars"])
    for tag in one.Tags()["scalars"]:
        assert str(points(one, tag)) == str(points(other, tag)), tag


def test_animation(tmp_path: Path) -> None:
    images = np.zeros((5, 84, 60), dtype=np.uint8)
    for index in range(5):
        images[index, 10 * index : 10 * index + 10] = 255
    monitor = Monitor(tmp_path)
    monitor.animation(12, "eval/game", images, fps=20)
    monitor.close()
    [event] = shown(tmp_path).Images("eval/game")
    assert (event.step, event.height, event.width) == (12, 84, 60)
    picture: Any = Image.open(io.BytesIO(event.encoded_image_string))
    assert (picture.format, picture.n_frames, picture.info["duration"]) == ("GIF", 5, 50)
    for index in range(5):
        picture.seek(index)
        assert np.array_equal(np.asarray(picture.convert("L")), images[index])


# --- going on from a checkpoint -------------------------------------------------------------


def contents(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run_dir.iterdir()}


def test_logs_are_cut_to_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    monitor = Monitor(tmp_path)
    monitor.scalars(4, {"a": 1.0})
    monitor.evaluation(4, {"mean": 1.0})
    lengths = monitor.sync()
    before = contents(tmp_path)
    assert lengths == {name: len(before[name]) for name in before.keys() - {"config.json"}}
    assert len(lengths) == 3
    monitor.scalars(8, {"a": 2.0})
    monitor.close()
    Monitor(tmp_path).close()  # a start that reached no checkpoint
    assert cut_logs(tmp_path, lengths) == []
    assert contents(tmp_path) == before


def test_only_logs_are_cut_and_all_of_them_go_without_a_checkpoint(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    monitor = Monitor(run_dir)
    monitor.scalars(4, {"a": 1.0})
    monitor.evaluation(4, {"mean": 1.0})
    monitor.close()
    others = [tmp_path / "precious", run_dir / "config.json", run_dir / "events.txt"]
    for path in others:
        path.write_bytes(b"0123456789")
    cut_logs(run_dir, {"../precious": 3, "config.json": 3, "events.txt": 3})
    assert {path.read_bytes() for path in others} == {b"0123456789"}
    assert cut_logs(run_dir, {}) == []
    assert contents(run_dir).keys() == {"config.json", "events.txt"}
    assert cut_logs(tmp_path / "absent", {}) == []


def test_a_log_that_lost_something_is_reported(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    monitor.scalars(4, {"a": 1.0})
    monitor.scalars(8, {"a": 1.0})
    monitor.evaluation(8, {"mean": 1.0})
    lengths = monitor.sync()
    monitor.close()
    os.truncate(tmp_path / "metrics.jsonl", lengths["metrics.jsonl"] - 3)
    (tmp_path / "evaluations.jsonl").unlink()
    assert cut_logs(tmp_path, lengths) == [
        "metrics.jsonl is 3 bytes shorter than at the checkpoint",
        "evaluations.jsonl is missing; it was there at the checkpoint",
    ]
    # The half line is removed: it would spoil the next one.
    assert (tmp_path / "metrics.jsonl").read_text() == '{"frames":4,"a":1.0}\n'


@pytest.mark.parametrize("clock", [[10**18] * 4, [4 * 10**18, 3 * 10**18, 2 * 10**18, 10**18]])
def test_files_of_resumed_runs_are_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[int]
) -> None:
    """Also when all start at the same moment, or the clock is set back."""
    for start, now in enumerate(clock):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        before = contents(tmp_path)
        monitor = Monitor(tmp_path, resumed_at=10 * start)
        monitor.scalars(10 * start + 5, {"a": start})
        monitor.close()
        assert len(event_files(tmp_path)) == start + 1
        assert all(
            contents(tmp_path)[name] == data for name, data in before.items() if "events" in name
        )
    assert points(shown(tmp_path), "a") == [(5, 0), (15, 1), (25, 2), (35, 3)]


def test_a_tensorboard_that_is_looking_forgets_what_was_cut(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    for frames in (10, 20):
        monitor.scalars(frames, {"a": frames})
    lengths = monitor.sync()
    for frames in (30, 40, 50):
        monitor.scalars(frames, {"a": -1})
    monitor.close()
    looking = shown(tmp_path)
    assert len(points(looking, "a")) == 5
    cut_logs(tmp_path, lengths)
    monitor = Monitor(tmp_path, resumed_at=20)
    monitor.scalars(30, {"a": 30})
    monitor.close()
    expected = [(10, 10), (20, 20), (30, 30)]
    assert points(looking.Reload(), "a") == expected
    assert points(shown(tmp_path), "a") == expected


# --- a disk that fails ----------------------------------------------------------------------


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(tmp_path)
    os.dup2(os.open("/dev/full", os.O_WRONLY), monitor._metrics._descriptor)
    with pytest.raises(EbuError, match=r"metrics\.jsonl: No space left on device; free space"):
        monitor.scalars(4, {"a": 1.0})
    monitor.close()


def test_an_event_file_that_cannot_grow(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    monitor.draw(4, {"a": 1.0})
    lengths = monitor.sync()
    with small_files():
        for _ in range(2):
            with pytest.raises(EbuError, match=r"cannot write .*events.*: File too large"):
                monitor.text("long", "x" * 10_000)
        monitor.close()
    # The half record is cut off when the run is resumed.
    assert cut_logs(tmp_path, lengths) == []
    monitor = Monitor(tmp_path, resumed_at=4)
    monitor.draw(8, {"a": 2.0})
    monitor.close()
    assert points(shown(tmp_path), "a") == [(4, 1.0), (8, 2.0)]
