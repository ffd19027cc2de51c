"""Write the logs of a run: JSON lines and TensorBoard.

`metrics.jsonl` and `evaluations.jsonl` hold no clock values: they are functions of the run. What
depends on the machine goes to TensorBoard alone.

A checkpoint records the length of every log (`Monitor.sync`). Before a run is resumed from it,
`cut_logs` removes what was written later, so nothing is doubled and nothing is missing.
"""

import itertools
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text

from ebu.errors import EbuError
from ebu.run.directory import EVALUATIONS, EVENTS, METRICS
from ebu.run.files import open_to_write, sync, writing
from ebu.run.reading import (
    MOST_LOG_BYTES,
    RefusedFileError,
    check_fits,
    parse_json,
    read_file,
)
from ebu.run.tensorboard import (
    EVAL_HIGH,
    EVAL_LOW,
    Curves,
    Point,
    hyperparameters_row,
    layout,
    tags_of,
)
from ebu.run.video import animated_gif


class Monitor:
    """The logs of one run directory, appended to."""

    def __init__(self, run_dir: Path, *, resumed_at: int | None = None) -> None:
        """Open the logs. `resumed_at`: step of the checkpoint that the run resumes from.

        A step is a frame of a run, an update of a student.

        A TensorBoard that is already looking at the run then forgets what `cut_logs` removed.

        Raises EbuError, here and in every method, where a log cannot be written.
        """
        self._metrics = _Log(run_dir / METRICS)
        self._evaluations = _Log(run_dir / EVALUATIONS)
        self._run_dir = run_dir
        self._curves = Curves()
        # TensorBoard's own writer works in a thread that can only fail later, and shares file
        # names within a second. Records are its format, written here at once.
        self._events = _Log(run_dir / _next_events_name(run_dir), new=True)
        self._records = RecordWriter(self._events)
        source = SourceMetadata(writer="ebu.run.logs")
        self._event(Event(file_version="brain.Event:2", source_metadata=source))
        if resumed_at is not None:
            session = SessionLog(status=SessionLog.START)
            self._event(Event(session_log=session, step=resumed_at + 1))
            self._take_in_logs()

    def scalars(self, frames: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl; curves in TensorBoard. NaN and ±inf become null."""
        self._metrics.line(frames, metrics)
        self._draw(self._curves.add(frames, metrics))

    def evaluation(self, frames: int, record: Mapping[str, Any]) -> None:
        """One line of evaluations.jsonl; its numbers are curves in TensorBoard under eval/."""
        self._evaluations.line(frames, record)
        self._draw(self._curves.add(frames, _evaluation_scalars(record)))

    def draw(self, step: int, metrics: Mapping[str, float]) -> None:
        """TensorBoard scalars alone: for a student, and for values that depend on the machine."""
        now = time.time()
        self._draw(Point(step, now, tag, value) for tag, value in metrics.items())

    def text(self, tag: str, markdown: str) -> None:
        """A text for TensorBoard's TEXT tab, at frame 0."""
        # A path that is no UTF-8 is escaped.
        self._summary(0, text(tag, markdown.encode(errors="backslashreplace").decode()))

    def layout(self) -> None:
        """The charts of TensorBoard's CUSTOM SCALARS tab."""
        self._summary(0, layout())

    def hyperparameters(
        self, first: Mapping[str, str | float], more: Mapping[str, str | float | None]
    ) -> None:
        """A row of TensorBoard's HPARAMS tab, with the scores so far: see `hyperparameters_row`."""
        self._summary(0, hyperparameters_row(first, more))

    def animation(self, frames: int, tag: str, images: np.ndarray, fps: float = 30.0) -> None:
        """An animated picture. images: (T, H, W, 3) or (T, H, W) uint8."""
        picture = Summary.Image(
            height=images.shape[1],
            width=images.shape[2],
            colorspace=images.shape[3] if images.ndim == 4 else 1,
            encoded_image_string=animated_gif(images, fps),
        )
        self._summary(frames, Summary(value=[Summary.Value(tag=tag, image=picture)]))

    def sync(self) -> dict[str, int]:
        """Bring everything to the disk; the length in bytes of every log, by name."""
        for log in (self._metrics, self._evaluations, self._events):
            log.sync()
        with writing(self._run_dir):
            sync(self._run_dir)
            return {path.name: path.stat().st_size for path in _log_files(self._run_dir)}

    def close(self) -> None:
        for log in (self._metrics, self._evaluations, self._events):
            log.close()

    def _summary(self, step: int, summary: Any) -> None:
        self._event(Event(summary=summary, step=step))

    def _draw(self, points: Iterable[Point]) -> None:
        for (step, wall_time), together in itertools.groupby(points, lambda point: point[:2]):
            values = [
                Summary.Value(tag=tag, simple_value=float(point.value))
                for point in together
                for tag in tags_of(point)
            ]
            self._event(Event(summary=Summary(value=values), step=step), wall_time)

    def _take_in_logs(self) -> None:
        """Learn from the logs which scalars have changed so far, and what to draw if others do."""
        for log, scalars_of in (
            (self._metrics, _metrics_scalars),
            (self._evaluations, _evaluation_scalars),
        ):
            for record in log.read():
                self._curves.add(record.pop("frames"), scalars_of(record))

    def _event(self, event: Any, wall_time: float | None = None) -> None:
        event.wall_time = time.time() if wall_time is None else wall_time
        self._records.write(event.SerializeToString())


def cut_logs(run_dir: Path, lengths: Mapping[str, int]) -> list[str]:
    """Cut every log to the length a checkpoint recorded; remove logs that it does not name.

    Without any checkpoint `lengths` is empty and all logs go. To be called before the Monitor is
    opened. Returns a line for each log that is missing or shorter than recorded; raises EbuError
    where a log cannot be changed.
    """
    warnings = []
    try:
        found = {path.name: path for path in _log_files(run_dir)}
        for name, path in found.items():
            if name not in lengths:
                path.unlink()
                continue
            size = path.stat().st_size
            if size < lengths[name]:
                lost = lengths[name] - size
                warnings.append(f"{name} is {lost} bytes shorter than at the checkpoint")
                if not EVENTS.fullmatch(name):
                    # A line that was cut in half would take the next one with it.
                    os.truncate(path, read_file(path, MOST_LOG_BYTES).rfind(b"\n") + 1)
            else:
                os.truncate(path, lengths[name])
    except (OSError, RefusedFileError) as error:
        raise EbuError(
            f"cannot cut the logs in {run_dir}: {getattr(error, 'strerror', None) or error}; "
            "make them writable and run the same command again"
        ) from error
    missing = sorted(name for name, length in lengths.items() if length and name not in found)
    return warnings + [f"{name} is missing; it was there at the checkpoint" for name in missing]


def last_frames(log: Path) -> int | None:
    """The frames of the last line of a log of JSON lines; None without a whole line."""
    try:
        last = read_file(log, MOST_LOG_BYTES).splitlines(keepends=True)[-1]
        return int(parse_json(last)["frames"]) if last.endswith(b"\n") else None
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return None


class _Log:
    """A file that is only ever appended to; what is written is with the system at once."""

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self._path = path
        flags = os.O_APPEND | os.O_CREAT | (os.O_EXCL if new else 0)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = open_to_write(path, flags)

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        with writing(self._path):
            while left:
                left = left[os.write(self._descriptor, left) :]

    def line(self, frames: int, values: Mapping[str, Any]) -> None:
        if "frames" in values:
            raise ValueError("the key 'frames' is taken by the position in the run")
        record = {"frames": frames, **_plain(values)}
        text = json.dumps(record, separators=(",", ":"), allow_nan=False)
        self.write(text.encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """The lines that were written by `line`, with their frames."""
        try:
            lines = read_file(self._path, MOST_LOG_BYTES).splitlines()
            records = [parse_json(line) for line in lines]
            check_fits(records, list[dict[str, Any]])
            check_fits([record.get("frames") for record in records], list[int], "frames")
            return records
        except (OSError, ValueError) as error:
            raise EbuError(
                f"cannot read {self._path}: {error}; move it away and run the same command again"
            ) from error

    def sync(self) -> None:
        with writing(self._path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _log_files(run_dir: Path) -> list[Path]:
    if not run_dir.is_dir():
        return []
    return sorted(
        path
        for path in run_dir.iterdir()
        if path.name in (METRICS, EVALUATIONS) or EVENTS.fullmatch(path.name)
    )


def _next_events_name(run_dir: Path) -> str:
    """TensorBoard reads event files in the order of their names: this one sorts last."""
    stamps = [
        int(match[1].ljust(19, "0"))
        for path in _log_files(run_dir)
        if (match := EVENTS.fullmatch(path.name))
    ]
    return f"events.out.tfevents.{max([time.time_ns(), *(stamp + 1 for stamp in stamps)])}"


def _metrics_scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a line as they were written; infinite ones come back as NaN."""
    return {tag: math.nan if value is None else value for tag, value in line.items()}


def _evaluation_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    scalars = {f"eval/{key}": value for key, value in record.items() if _is_number(value)}
    if "interval_95" in record:
        # A single game has no interval, but TensorBoard draws no mean without one.
        low, high = record["interval_95"] or (math.nan, math.nan)
        scalars |= {EVAL_LOW: low, EVAL_HIGH: high}
    return scalars


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """As JSON has it: numpy scalars as numbers, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
