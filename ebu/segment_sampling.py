"""Samplers of whole segments, each trained on from its end to its start."""

from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from ebu.replay import EpisodicReplay
from ebu.run.reading import LARGEST_FLOAT, check_fits
from ebu.sampling import (
    SMALLEST_PRIORITY,
    Draw,
    Minibatches,
    Piece,
    Priorities,
    Sampler,
    absolute_errors,
    refuse_other,
)
from ebu.segments import Segment
from ebu.state_checks import check_number, check_range, check_state, require

LONGEST = 2**31 - 1
"""Transitions in a segment: its table counts them in 32 bits."""


class SegmentSampler(Sampler):
    """Whole segments drawn uniformly, each trained on from its end to its start.

    Lee, Choi, Chung 2019, Algorithm 2. With `mix_segments` 1 a minibatch holds consecutive
    transitions of one segment; when fewer remain than it needs, the rest comes from the tails of
    further draws, whose remainders are discarded, as in the original. With M > 1 it holds
    batch_size / M consecutive transitions of each of M segments, and a segment that is used up is
    replaced by the next draw; so it is with `is_part`, where minibatches are parts of larger ones.
    """

    needs_segments = True

    def __init__(
        self,
        rng: np.random.Generator,
        batch_size: int,
        mix_segments: int,
        *,
        is_part: bool = False,
    ) -> None:
        super().__init__(rng, batch_size)
        self._fills_with_tails = mix_segments == 1 and not is_part
        self.forfeited_draws = 0
        """Draws given up because their frames were about to be overwritten."""
        self._draws: list[Draw | None] = [None] * mix_segments

    def sample(self, replay: EpisodicReplay, updates: int) -> Minibatches:
        slots = range(len(self._draws))
        share = self.batch_size // len(slots)
        pieces = tuple(
            piece
            for _ in range(updates)
            for index in slots
            for piece in self._take(replay, index, share)
        )
        streams, firsts, sizes = np.array(
            [
                (draw.segment.stream, draw.segment.start + first, size)
                for draw, first, size in pieces
            ]
        ).T
        # Counting on from one piece to the next, less where each began, plus its first step.
        steps = np.arange(sizes.sum()) + (firsts - sizes.cumsum() + sizes).repeat(sizes)
        shape = (updates, self.batch_size)
        weights = self.weights(pieces)
        return Minibatches(
            steps.reshape(shape),
            streams.repeat(sizes).reshape(shape),
            None if weights is None else weights.reshape(shape),
            pieces,
        )

    def _take(self, replay: EpisodicReplay, index: int, count: int) -> list[Piece]:
        """The next `count` transitions from one of the draws in progress, and its successors."""
        pieces: list[Piece] = []
        draw = self._draws[index]
        while count > 0:
            if draw is not None:
                first_step = draw.segment.start + draw.left - min(count, draw.left)
                if not replay.transitions.is_stored(draw.segment.stream, first_step):
                    self.forfeited_draws += 1
                    draw = None
            if draw is None:
                filling = bool(pieces) and self._fills_with_tails
                draw = self._new_draw(replay, tail=count if filling else None)
            size = min(count, draw.left)
            draw.left -= size
            count -= size
            pieces.append(Piece(draw, draw.left, size))
            if draw.left == 0:
                draw = None
        self._draws[index] = draw
        return pieces

    def _new_draw(self, replay: EpisodicReplay, tail: int | None) -> Draw:
        """Draw a segment, or the last `tail` transitions of one.

        The targets of a segment's tail depend on nothing before it.
        """
        segment, ratio = self.draw_segment(replay)
        start = segment.start
        if tail is not None and tail < segment.length:
            skipped = segment.length - tail
            segment = Segment(segment.stream, start + skipped, tail, segment.terminated)
        return Draw(segment, segment.length, start, priority_ratio=ratio)

    def drop_draws(self) -> None:
        self._draws = [None] * len(self._draws)

    def draw_segment(self, replay: EpisodicReplay) -> tuple[Segment, float]:
        """The next segment, and its `Draw.priority_ratio`."""
        return replay.segments.draw(self.rng), 1.0

    def weights(self, pieces: tuple[Piece, ...]) -> np.ndarray | None:
        """Factors of the losses of all transitions in these pieces; None: all 1."""
        return None

    def metrics(self) -> dict[str, float]:
        return {"replay/forfeited_draws": float(self.forfeited_draws)}

    def state_dict(self) -> dict[str, Any]:
        draws = [draw for draw in self._draws if draw is not None]
        return {
            **super().state_dict(),
            "forfeited_draws": self.forfeited_draws,
            "draws": {
                "index": [index for index, draw in enumerate(self._draws) if draw is not None],
                "segment": [list(draw.segment) for draw in draws],
                "left": [draw.left for draw in draws],
                "start": [draw.start for draw in draws],
                "priority_ratio": [draw.priority_ratio for draw in draws],
                "error": [draw.error for draw in draws],
                "targets": {str(i): draw.targets for i, draw in enumerate(draws)},
            },
        }

    def check_loaded(self, replay: EpisodicReplay, target_axes: tuple[int, ...]) -> None:
        for draw in filter(None, self._draws):
            assert draw.targets is not None  # it was loaded
            refuse_other(draw.left <= replay.ring_length)
            refuse_other(draw.targets.shape[:-1] == target_axes)
            steps = draw.segment.start + np.arange(draw.left)
            stored = replay.transitions.stored(steps, np.full(draw.left, draw.segment.stream))
            # Of a draw in progress the oldest transitions may be overwritten.
            refuse_other(bool((stored[1:] >= stored[:-1]).all()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        check_state(state, {"forfeited_draws": 0}, path="sampler/")
        _check_draws(state["draws"], len(self._draws))
        self.forfeited_draws = state["forfeited_draws"]
        self._draws = [None] * len(self._draws)
        draws = state["draws"]
        for i, index in enumerate(draws["index"]):
            self._draws[index] = Draw(
                Segment(*draws["segment"][i]),
                draws["left"][i],
                draws["start"][i],
                draws["targets"][str(i)],
                draws["priority_ratio"][i],
                draws["error"][i],
            )


class _Draws(TypedDict):
    index: list[int]
    segment: list[list[Any]]
    left: list[int]
    start: list[int]
    priority_ratio: list[float]
    error: list[float]
    targets: dict[str, Any]


def _check_draws(draws: Any, slots: int) -> None:
    """Raise `RefusedFileError` unless these are draws in progress, as a state holds them."""
    check_fits(draws, _Draws, "sampler/draws")
    indices = draws["index"]
    columns = [draws[name] for name in ("segment", "left", "start", "priority_ratio", "error")]
    require(
        {len(column) for column in columns} == {len(indices)}
        and len(set(indices)) == len(indices)
        and all(0 <= index < slots for index in indices),
        f"sampler/draws is not of {slots} draws",
    )
    for i, (segment, left, start) in enumerate(zip(*columns[:3], strict=True)):
        targets = draws["targets"][str(i)]
        require(
            len(segment) == 4 and type(segment[3]) is bool, "sampler/draws/segment is no segment"
        )
        for number in (*segment[:3], left, start):
            check_number(number, int, "sampler/draws")
        require(
            1 <= left <= segment[2] <= LONGEST and start <= segment[1],
            f"sampler/draws has {left} left of a segment of {segment[2]}",
        )
        require(
            isinstance(targets, Tensor)
            and targets.dtype == torch.float32
            and targets.dim() > 0
            and targets.shape[-1] == segment[2],
            "sampler/draws/targets are not those of their segment",
        )


class PrioritizedSegments(SegmentSampler):
    """Segments drawn in proportion to their priority^alpha, trained on as in `SegmentSampler`.

    A segment's priority is the mean absolute error of its transitions when it was last trained on
    whole; one that never was has the largest priority so far. Importance weights are normalised by
    the largest weight of all stored segments: a minibatch may hold only one.
    """

    wants_errors = True

    def __init__(
        self,
        rng: np.random.Generator,
        batch_size: int,
        mix_segments: int,
        priorities: Priorities,
    ) -> None:
        super().__init__(rng, batch_size, mix_segments)
        self.priorities = priorities
        # By place, as large as the memory it first draws from. Places are reused: a priority counts
        # only for the segment with the recorded first step.
        self._last = np.empty(0)
        self._starts = np.empty(0, np.int64)

    def draw_segment(self, replay: EpisodicReplay) -> tuple[Segment, float]:
        streams, starts = replay.segments.streams_and_starts()
        if not len(starts):
            raise ValueError("no segment is stored yet")
        if not len(self._last):
            self._last = np.zeros(replay.transitions.num_places)
            self._starts = np.full(replay.transitions.num_places, -1)
        places = replay.transitions.places(starts, streams)
        known = self._starts[places] == starts
        priorities = np.where(known, self._last[places], self.priorities.largest)
        priorities **= self.priorities.exponent
        total = priorities.cumsum()
        index = int(np.searchsorted(total, self.rng.random() * total[-1], side="right"))
        index = min(index, len(total) - 1)
        return replay.segments[index], float(priorities.min() / priorities[index])

    def weights(self, pieces: tuple[Piece, ...]) -> np.ndarray:
        ratios = np.array([piece.draw.priority_ratio for piece in pieces])
        sizes = [piece.size for piece in pieces]
        return self.priorities.weights(ratios).repeat(sizes)

    def update_priorities(
        self, replay: EpisodicReplay, minibatches: Minibatches, errors: Tensor
    ) -> None:
        sizes = absolute_errors(errors)
        parts = np.split(sizes, np.cumsum([piece.size for piece in minibatches.pieces])[:-1])
        for (draw, first, _), part in zip(minibatches.pieces, parts, strict=True):
            draw.error += float(part.sum())
            is_tail = draw.segment.start != draw.start
            if first == 0 and not is_tail:
                priority = draw.error / draw.segment.length + SMALLEST_PRIORITY
                place = replay.transitions.places(
                    np.array([draw.start]), np.array([draw.segment.stream])
                )
                self._last[place] = priority
                self._starts[place] = draw.start
                self.priorities.largest = max(self.priorities.largest, priority)
        self.priorities.updates += 1

    def check_loaded(self, replay: EpisodicReplay, target_axes: tuple[int, ...]) -> None:
        super().check_loaded(replay, target_axes)
        refuse_other(len(self._last) in (0, replay.transitions.num_places))

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            **self.priorities.state_dict(),
            "priorities": self._last.copy(),
            "priority_starts": self._starts.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        arrays = {"priorities": self._last, "priority_starts": self._starts}
        check_state(state, arrays, longer=arrays, path="sampler/")
        check_range(state["priorities"], 0, LARGEST_FLOAT, "sampler/priorities")
        require(
            len(state["priorities"]) == len(state["priority_starts"]),
            "sampler/priority_starts has another length than sampler/priorities",
        )
        self.priorities.load_state_dict(state)
        self._last, self._starts = state["priorities"], state["priority_starts"]
