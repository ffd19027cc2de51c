"""Evaluations in training: when they are due, who plays them, and which were the best so far."""

from collections.abc import Callable
from typing import Any

from ebu.errors import EbuError
from ebu.run.logs import Monitor
from ebu.run.progress import say
from ebu.run.ranks import Ranks
from ebu.schedules import LoopConfig, evaluation_schedule

Evaluate = Callable[[int, Callable[[], bool]], dict[str, Any] | None]
"""Called with (frames, should_stop); the record with its "mean", or None if told to stop."""


class EvaluationFault(EbuError):
    """The environments of an evaluation fail: raised by an `Evaluate`, it costs that one alone."""


class PeriodicEvaluation:
    """Plays and logs the evaluations of a training. The first rank plays, the others wait for it.

    | attribute | meaning |
    | --- | --- |
    | schedule | when the next is due |
    | best | mean of the best that chose weights; None before the first |
    | is_playing | whether one is being played or filmed |
    | fault | what its environments did, if the last one failed |
    """

    def __init__(
        self,
        config: LoopConfig,
        evaluate: Evaluate,
        film: Callable[[int], None] | None,
        monitor: Monitor | None,
        ranks: Ranks,
    ) -> None:
        self.schedule = evaluation_schedule(config.eval_every_frames)
        self.best: float | None = None
        self.is_playing = False
        self.fault: str | None = None
        self.evaluate = evaluate
        self._games = config.eval_episodes
        self._film = film
        self._monitor = monitor
        self._ranks = ranks

    def play(self, frames: int, stop_requested: Callable[[], bool], *, quiet: bool) -> float | None:
        """Play and log an evaluation; its mean.

        None if it failed, then `fault` says why, or if any rank was told to stop.
        """
        if not quiet:
            say(f"{frames:,} frames: evaluating in {self._games} games")
        self.is_playing, self.fault = True, None
        record = self._play_on_first(frames, stop_requested)
        self.is_playing = False
        if record is not None and self._monitor is not None:
            self._monitor.evaluation(frames, record)
            if not quiet:
                capped = f", {record['capped_games']} cut" if record.get("capped_games") else ""
                say(
                    f"{frames:,} frames: mean {record['mean']:.2f} of {record['games']} games"
                    f"{capped}"
                )
        mean: float | None = None if record is None else record["mean"]
        mean, self.fault = self._ranks.gather([mean, self.fault])[0]
        return mean

    def film(self, frames: int) -> None:
        """Film the evaluation that was just played; the first rank alone does."""
        if self._film is not None:
            self.is_playing = True
            self._film(frames)
            self.is_playing = False

    def _play_on_first(
        self, frames: int, stop_requested: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """The record on the first rank, None on the others, which answer each of its steps."""
        if self._ranks.is_single:
            return self._play(frames, stop_requested)

        def any_stops() -> bool:
            return self._ranks.sums([1, int(stop_requested())])[1] > 0

        if self._ranks.is_first:
            record = self._play(frames, any_stops)
            self._ranks.sums([0, 0])
            return record
        while self._ranks.sums([0, int(stop_requested())])[0]:
            pass
        return None

    def _play(self, frames: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        try:
            return self.evaluate(frames, should_stop)
        except EvaluationFault as fault:
            self.fault = str(fault)
            return None

    def is_best(self, mean: float) -> bool:
        """Whether this is the best mean so far, which it then becomes."""
        if self.best is not None and mean <= self.best:
            return False
        self.best = mean
        return True
