"""Evaluations during training: play them, and show the best game in TensorBoard."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from agents import Agent
from ebu.commands.showing import warn
from ebu.commands.trust import evaluate_command
from ebu.evaluation import Evaluation, Evaluator, seeds_at
from ebu.interfaces import TrainingEnvironment
from ebu.periodic_evaluation import EvaluationFault
from ebu.run.crash_marker import CrashMarker
from ebu.run.logs import Monitor
from ebu.run.progress import say
from ebu.run.video import scale_down
from envs import EnvironmentFault
from envs.film import CannotFilmError, film

FILM_STEPS, FILM_EVERY, FILM_FPS = 1_000, 4, 15
EVALUATING, FILMING = "evaluating", "filming"
"""Files of a run directory that are there while an evaluation is played, or a game is filmed."""
MOST_STARTS = 5
"""An evaluation in which this many starts in a row ended is left out, or that crashed once. A run
that is killed less often in an evaluation plays it again, and loses nothing."""


class TrainingEvaluation:
    """Scores the agent in training, and shows the start of the best game in TensorBoard.

    near: frame counts less than this apart are of the same evaluation
    """

    def __init__(
        self,
        evaluator: Evaluator,
        agent: Agent,
        monitor: Monitor | None,
        seed: int,
        run_dir: Path,
        *,
        near: int,
    ) -> None:
        self.evaluator = evaluator
        self.agent = agent
        self.monitor = monitor
        self.seed = seed
        self._env: TrainingEnvironment | None = None
        self._last: tuple[TrainingEnvironment, Evaluation] | None = None
        self._can_film = True
        self._run_dir = run_dir
        self._playing = CrashMarker(run_dir / EVALUATING, most=MOST_STARTS, near=near)
        self._filming = CrashMarker(run_dir / FILMING)

    def play(self, frames: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Play the evaluation due at `frames`; None if told to stop before its end.

        Raises `EvaluationFault` where its environments fail, cannot be made, or ended the process
        too often.
        """
        self._last = None
        self._refuse_crashing(frames)
        with self._playing.set(frames):
            return self._play(frames, should_stop)

    def _refuse_crashing(self, frames: int) -> None:
        ended = self._playing.starts_ended(frames)
        if ended >= MOST_STARTS:
            raise EvaluationFault(
                f"the process crashed in it, or {MOST_STARTS} starts in a row ended there, so it "
                "is left out: when the environment is fixed, play one with "
                f"{evaluate_command(self._run_dir)}"
            )
        if ended:
            say(
                f"{frames:,} frames: {ended} starts in a row ended in this evaluation; after "
                f"{MOST_STARTS} it is left out"
            )

    def _play(self, frames: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        evaluator = replace(self.evaluator, seeds=seeds_at(self.seed, frames))
        with contextlib.ExitStack() as on_failure:
            try:
                env = self._environments(evaluator)
                on_failure.callback(env.close)
                played = evaluator.play(self.agent.play, env=env, should_stop=should_stop)
            except EnvironmentFault as fault:
                raise EvaluationFault(str(fault)) from fault
            on_failure.pop_all()
        # Emulators load their game one after the other: a second or two for each evaluation.
        self._env = env
        if played is None:
            return None
        self._last = env, played
        return evaluator.summarise(played)

    def _environments(self, evaluator: Evaluator) -> TrainingEnvironment:
        """Those of the last evaluation; new ones at first, and after a failure."""
        env, self._env = self._env, None
        if env is None:
            try:
                return evaluator.make_env()
            except ValueError as error:
                raise EvaluationFault(str(error)) from error
        env.reseed(evaluator.seeds.environments)
        return env

    def close(self) -> None:
        """Close the environments of the last evaluation."""
        if self._env is not None:
            self._env.close()

    def film(self, frames: int) -> None:
        """Show the best game of the last evaluation; where that fails, warn and never try again.

        Code that draws can end the whole process. The next one finds its mark and films nothing.
        """
        if self._last is None or self.monitor is None or not self._can_film:
            return
        env, played = self._last
        try:
            if self._filming.is_left():
                self._filming.clear()
                raise RuntimeError("the process ended while it filmed before")
            with self._filming.set(frames):
                game = film(env, *played.recording(played.best_game))
                pictures = [scale_down(one) for one in islice(game, 0, FILM_STEPS, FILM_EVERY)]
                self.monitor.animation(frames, "eval/best_game", np.stack(pictures), fps=FILM_FPS)
        except CannotFilmError:
            self._can_film = False
        except Exception as error:  # whatever the code of an environment does to draw itself
            self._can_film = False
            warn("the best game could not be filmed, training continues without pictures", error)
