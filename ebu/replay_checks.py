"""Check that what was loaded into a replay memory is what play could have left there."""

from collections.abc import Mapping

import numpy as np

from ebu.batch import ACTION, PROBABILITY, REWARD, TERMINATED
from ebu.state_checks import check_range, require


def check_loaded(
    columns: np.ndarray,
    *,
    oldest: int,
    contexts: np.ndarray,
    transitions: np.ndarray,
    num_transitions: int,
    num_actions: int,
    stack: int,
    open_start: np.ndarray,
    segment_limit: int,
    segments: Mapping[str, np.ndarray],
) -> None:
    """Raise `RefusedFileError` for values, counts or segments that are not those of a memory.

    S steps of N streams are stored, oldest first. Types and shapes have been checked.

    | argument | shape, dtype | meaning |
    | --- | --- | --- |
    | columns | (S, N, 4) float32 | see `batch`; read where there is a transition |
    | oldest | | the first step |
    | contexts | (S, N) uint8 | how many earlier frames a state holds |
    | transitions | (S, N) bool | whether a transition starts there |
    | num_transitions | | how many of them can be drawn |
    | open_start | (N,) int64 | first step of the segment in progress |
    | segment_limit | | transitions of the longest segment |
    | segments | (n,) each | `SegmentTable.state_dict` |
    """
    check_range(contexts, 0, stack - 1, "replay/columns/starts")
    require(not transitions[-1:].any(), "replay/columns/starts: the newest step leads nowhere yet")
    _check_values(columns[transitions], num_actions)
    drawable = transitions & (np.arange(len(contexts))[:, None] >= contexts)
    count = np.count_nonzero(drawable)
    require(count == num_transitions, f"replay/num_transitions is {num_transitions}, not {count}")
    # The number of transitions before each step: without gaps if it grows by the length.
    before = np.zeros((len(transitions) + 1, transitions.shape[1]), np.int64)
    np.cumsum(transitions, axis=0, out=before[1:])
    _check_open(open_start, oldest, segment_limit, before)
    _check_segments(segments, oldest, drawable, before)


def _check_values(values: np.ndarray, num_actions: int) -> None:
    """values: (T, 4) float32, of all transitions."""
    where = "replay/columns/slots"
    actions = values[:, ACTION]
    check_range(actions, 0, num_actions - 1, f"{where}: actions")
    require(bool((actions == np.floor(actions)).all()), f"{where}: an action is not whole")
    require(bool(np.isfinite(values[:, REWARD]).all()), f"{where}: a reward is not finite")
    check_range(values[:, TERMINATED], 0, 1, f"{where}: ends")
    check_range(values[:, PROBABILITY], 0, 1, f"{where}: probabilities")


def _check_open(
    open_start: np.ndarray, oldest: int, segment_limit: int, before: np.ndarray
) -> None:
    newest = oldest + len(before) - 2
    low, high = max(0, newest + 1 - segment_limit), max(0, newest)
    check_range(open_start, low, high, "replay/open_start")
    if newest >= 0:
        stored = before[-2] - before[open_start - oldest, np.arange(len(open_start))]
        gaps = stored != newest - open_start
        require(not gaps.any(), "replay/open_start: its segment has gaps")


def _check_segments(
    segments: Mapping[str, np.ndarray], oldest: int, drawable: np.ndarray, before: np.ndarray
) -> None:
    streams, starts = segments["stream"], segments["start"]
    lengths = segments["length"].astype(np.int64)
    newest = oldest + len(drawable) - 1
    check_range(starts, oldest, newest - 1, "replay/segments/start")
    check_range(starts + lengths, oldest, newest, "replay/segments/length")
    check_range(lengths, 1, newest, "replay/segments/length")
    first, end = starts - oldest, starts - oldest + lengths
    require(
        bool(drawable[first, streams].all())
        and bool((before[end, streams] - before[first, streams] == lengths).all()),
        "replay/segments: transitions of a segment are not stored",
    )
    places = first * drawable.shape[1] + streams
    require(len(np.unique(places)) == len(places), "replay/segments: two have the same start")
