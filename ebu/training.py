"""The training loop: act, learn, store; log, evaluate and checkpoint when due."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ebu.errors import EbuError
from ebu.game_statistics import GameStatistics
from ebu.interfaces import Distiller, LearningAgent, TrainingEnvironment, VectorStep
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import Checkpoint, save_checkpoint
from ebu.run.directory import EVALUATIONS, METRICS
from ebu.run.logs import Monitor, last_frames
from ebu.run.profiling import Profile
from ebu.run.progress import Progress, say
from ebu.schedules import (
    EARLY_LINES,
    ExplorationConfig,
    LoopConfig,
    Schedule,
    epsilon_at,
    evaluation_schedule,
)
from ebu.stopwatch import Mark, Stopwatch
from ebu.value_probes import ValueProbes

FRESH_GAMES = "fresh_games"
"""Directory of the checkpoint that is written when an environment fails."""


class Trainer:
    """Trains one agent in N environments.

    | argument | meaning |
    | --- | --- |
    | gamma, clip_rewards | the agent's own settings, for the logged value estimates |
    | life_loss_ends_segment | whether a lost life becomes terminal, as a game's end is |
    | rng | draws the exploration |
    | evaluate | called with (frames, should_stop); returns the record with its "mean", or None if |
    | | it was told to stop |
    | film | called with (frames) when an evaluation is logged |
    | run_dir | checkpoints go to checkpoints/, the best evaluated weights to best/ |
    | lock | the run directory's open lock file, held until `close` |
    | identity | settings that its checkpoints carry: see `identity_of` |
    | distiller | trains other networks alongside; the run is the same without it |

    `state_dict` holds everything that changes during a run except the frames of the replay memory,
    which a checkpoint stores in separate files.
    """

    def __init__(
        self,
        config: LoopConfig,
        *,
        gamma: float,
        clip_rewards: bool,
        life_loss_ends_segment: bool,
        env: TrainingEnvironment,
        replay: EpisodicReplay,
        agent: LearningAgent,
        exploration: ExplorationConfig,
        rng: np.random.Generator,
        monitor: Monitor,
        evaluate: Callable[[int, Callable[[], bool]], dict[str, Any] | None],
        run_dir: Path,
        lock: IO[str],
        identity: Mapping[str, Any] | None = None,
        film: Callable[[int], None] | None = None,
        profile: Profile | None = None,
        distiller: Distiller | None = None,
    ) -> None:
        self.config = config
        self.life_loss_ends_segment = life_loss_ends_segment
        self.env = env
        self.replay = replay
        self.agent = agent
        self.exploration = exploration
        self.rng = rng
        self.monitor = monitor
        self.evaluate = evaluate
        self.film = film
        self.run_dir = run_dir
        self.identity = identity
        self.profile = profile
        self.distiller = distiller
        self.stop_requested = False
        self._lock = lock

        self.agent_steps = 0
        self.updates = 0
        # Agent steps that count towards updates: none before learning starts.
        self._learning_steps = 0
        # Next agent step at which open segments may be cut: see `_segment_ends`.
        self._next_cut = config.learning_starts
        self._best: float | None = None
        self._started = False
        self._evaluating = self._finishing = False
        self._last_saved: Path | None = None
        self._games = GameStatistics(env.num_envs)
        self._probes = ValueProbes(env.num_envs, gamma=gamma, clip_rewards=clip_rewards)
        self._log_schedule = Schedule(config.log_every_frames, EARLY_LINES)
        self._eval_schedule = evaluation_schedule(config.eval_every_frames)
        self._stopwatch = Stopwatch()
        self._speed_mark = self.now()

    @property
    def frames(self) -> int:
        """Emulator frames played so far."""
        return self.agent_steps * self.env.frames_per_step

    @property
    def epsilon(self) -> float:
        return epsilon_at(self.exploration, self._learning_steps)

    def run(self, until_frames: int, progress: Progress | None = None) -> bool:
        """Train until `until_frames` frames have been played or `stop_requested` is set.

        Saves a checkpoint every `checkpoint_minutes` and at the end. Returns whether the run
        reached `until_frames` and no evaluation is due.
        """
        if not self._started:
            self._receive(self.env.reset(), None, None)
            self._started = True
        self._speed_mark = self.now()
        last_saved = time.monotonic()
        while True:
            if self._log_schedule.due(self.frames):
                self._log()
            if self._eval_schedule.due(self.frames):
                # A run that has results and no checkpoint is not started again.
                if self._last_saved is None:
                    self.save()
                self._evaluate(progress)
            if self.stop_requested or self.frames >= until_frames:
                break
            if time.monotonic() - last_saved >= self.config.checkpoint_minutes * 60:
                self.save()
                last_saved = time.monotonic()
            updates = self.updates
            self._step()
            if self.profile is not None:
                self.profile.step(learning=self.updates > updates)
            if progress is not None:
                recent = float(np.mean(self._games.recent)) if self._games.recent else None
                progress.update(self.frames, episode_return=recent, epsilon=self.epsilon)
        if self.profile is not None:
            self.profile.finish()
        self.save()
        return self.finished(until_frames)

    def finished(self, until_frames: int) -> bool:
        """Whether everything up to `until_frames` is played and evaluated."""
        return self.frames >= until_frames and not self._eval_schedule.due(self.frames)

    def _step(self) -> None:
        """Step every environment; with `overlap` the learner works while the emulators do."""
        with self._stopwatch.time("acting"):
            actions, probabilities = self.agent.act(
                self.replay.newest_states(),
                epsilon=self.epsilon,
                rng=self.rng,
                forced_random=self._games.steps < self.exploration.random_start_actions,
            )
            self._begin_probes(actions)
        if not self.config.overlap:
            self._learn()
        with self._stopwatch.time("sending"):
            self.env.send(actions)
        if self.config.overlap:
            self._learn()
        with self._stopwatch.time("emulator_wait"):
            step = self.env.recv()
        with self._stopwatch.time("storing"):
            self._receive(step, actions, probabilities)

    def _begin_probes(self, actions: np.ndarray) -> None:
        free = self._probes.free()
        if free.any():
            rows, taken = np.flatnonzero(free), actions[free]
            values = self.agent.last_values[torch.from_numpy(rows), torch.from_numpy(taken)]
            self._probes.begin(free, values.cpu().numpy())

    def _learn(self) -> None:
        updates = self._updates_due()
        with self._stopwatch.time("learning"):
            try:
                self.agent.learn(self.replay, updates)
            except EbuError:
                self._check_finite()
                raise
        if self.distiller is not None:
            with self._stopwatch.time("distilling"):
                self.distiller.learn(self.replay, updates)

    def _receive(
        self, step: VectorStep, actions: np.ndarray | None, probabilities: np.ndarray | None
    ) -> None:
        num_envs = self.env.num_envs
        terminated, truncated = self._segment_ends(step)
        self.replay.append(
            step.frames,
            np.zeros(num_envs, np.int64) if actions is None else actions,
            step.rewards,
            terminated,
            truncated,
            step.started,
            np.ones(num_envs, np.float32) if probabilities is None else probabilities,
        )
        self._games.add(step)
        self._probes.add(step, terminated, truncated)
        self.agent.observe(step)
        played = num_envs - int(step.started.sum())
        self.agent_steps += played
        past_start = self.agent_steps - self.config.learning_starts
        stored = (
            self.replay.num_segments if self.agent.needs_segments else self.replay.num_transitions
        )
        if past_start > 0 and stored > 0:
            self._learning_steps += min(played, past_start)

    def _segment_ends(self, step: VectorStep) -> tuple[np.ndarray, np.ndarray]:
        """Where segments end, (N,) bool each: terminated, and truncated.

        Agents that need segments learn from finished ones only. When learning starts, and each time
        the number of agent steps has doubled, all open segments are truncated if they hold more
        transitions than the finished ones.
        """
        terminated = step.terminated
        if self.life_loss_ends_segment:
            terminated = terminated | step.life_lost
        truncated = step.truncated & ~terminated
        if self.agent.needs_segments and self.agent_steps >= self._next_cut:
            self._next_cut = 2 * max(1, self.agent_steps)
            if 2 * self.replay.num_segment_transitions < self.replay.num_transitions:
                truncated = ~(terminated | step.started)
        return terminated, truncated

    def _updates_due(self) -> int:
        # The small term lets a rate such as 0.1 reach whole updates despite its rounding.
        owed = int(self._learning_steps * self.config.updates_per_step + 1e-6) - self.updates
        self.updates += owed
        return owed

    def _check_finite(self) -> None:
        """Raise `EbuError` if an update was not finite: no log and no checkpoint may hold it."""
        failed = self.agent.first_failed_update()
        if failed is None:
            return
        kept = (
            "nothing was saved yet" if self._last_saved is None else f"{self._last_saved} is kept"
        )
        raise EbuError(
            f"update {failed:,} of {self.run_dir} is not finite, noticed at frame {self.frames:,}: "
            f"{kept}; start a new run with a lower --learning-rate"
        )

    def _log(self) -> None:
        self._check_finite()
        metrics = self._games.metrics(self.env.frames_per_step)
        metrics |= {
            "train/epsilon": self.epsilon,
            "train/agent_steps": float(self.agent_steps),
            "train/updates": float(self.updates),
        }
        metrics |= self._probes.metrics()
        metrics |= self.agent.metrics()
        if self.distiller is not None:
            metrics |= self.distiller.metrics()
        metrics |= {f"replay/{name}": value for name, value in self.replay.statistics().items()}
        self.monitor.scalars(self.frames, metrics)

        before, self._speed_mark = self._speed_mark, self.now()
        self.monitor.speed(self.frames, before.speeds_until(self._speed_mark))
        self._log_schedule.done(self.frames)

    def _evaluate(self, progress: Progress | None) -> None:
        self._check_finite()
        record = self._play_evaluation(progress)
        if record is None:
            return
        if self._best is None or record["mean"] > self._best:
            self._best = record["mean"]
            state = {"agent": self.agent.state_dict(), "frames": self.frames}
            save_checkpoint(
                self.run_dir / "best", self._checkpoint_name(), state, run=self.identity, keep=1
            )
            if self.distiller is not None:
                self.distiller.set_teacher()
        self._eval_schedule.done(self.frames)

    def _play_evaluation(self, progress: Progress | None) -> dict[str, Any] | None:
        """Evaluate and log the result; None if told to stop before its end."""
        if progress is not None:
            say(f"{self.frames:,} frames: evaluating in {self.config.eval_episodes} games")
        with self._stopwatch.time("evaluation"):
            self._evaluating = True
            record = self.evaluate(self.frames, lambda: self.stop_requested)
            self._evaluating = False
        if record is not None:
            self.monitor.evaluation(self.frames, record)
            if progress is not None:
                capped = f", {record['capped_games']} cut" if record.get("capped_games") else ""
                say(
                    f"{self.frames:,} frames: mean {record['mean']:.2f} of {record['games']} games"
                    f"{capped}"
                )
            if self.film is not None:
                with self._stopwatch.time("evaluation"):
                    self.film(self.frames)
        return record

    def finish(self, progress: Progress | None = None) -> bool:
        """Log a last line and a final evaluation.

        They follow the last checkpoint, so resuming removes them, and change neither `best/` nor
        the distilled networks. The trainer cannot train afterwards. Returns whether everything was
        written, False if told to stop before the evaluation's end.
        """
        self._finishing = True
        if last_frames(self.run_dir / METRICS) != self.frames:
            self._log()
        evaluated = last_frames(self.run_dir / EVALUATIONS) == self.frames
        if self._eval_schedule.every > 0 and not evaluated:
            evaluated = self._play_evaluation(progress) is not None
        self.monitor.sync()
        return evaluated or self._eval_schedule.every == 0

    def save(self) -> Path:
        """Write a checkpoint; changes nothing in the run."""
        return self._save("checkpoints", self.state_dict())

    def _save(self, directory: str, state: dict[str, Any], **options: Any) -> Path:
        self._check_finite()
        with self._stopwatch.time("checkpoints"):
            saved = save_checkpoint(
                self.run_dir / directory,
                self._checkpoint_name(),
                state,
                writers=[self.replay.write_frames],
                logs=self.monitor.sync(),
                run=self.identity,
                **options,
            )
            if self.distiller is not None:
                self.distiller.save(self.frames)
        self._last_saved = saved
        return saved

    def rescue(self) -> str:
        """Save what was learned when an environment has failed; returns what to do next.

        In play the last whole step is saved for --fresh-games, beside the exact checkpoints. In an
        evaluation the run itself is intact: it is saved as ever, with the evaluation passed over.
        """
        if not self._started:
            return "nothing was played yet"
        if self._finishing:
            return "everything is trained and saved; only the last evaluation is missing"
        if self._evaluating:
            self._eval_schedule.done(self.frames)
            return (
                f"saved {self.save()}: run the same command again to resume after this evaluation"
            )
        exact = (
            "" if self._last_saved is None else ", or as it is to resume from the last exact one"
        )
        saved = self._save(FRESH_GAMES, self.state_dict(self.env.seedings()), keep=1)
        return (
            f"saved {saved}: run the same command with --fresh-games to resume from there with new "
            f"games{exact}"
        )

    def load(self, checkpoint: Checkpoint, *, fresh_games: bool = False) -> None:
        """Continue from a checkpoint of a run with the same settings.

        fresh_games: begin new games and truncate those that were played.
        """
        self.load_state_dict(checkpoint.state, fresh_games=fresh_games)
        self.replay.read_frames(checkpoint.directory)
        self._last_saved = checkpoint.directory
        if fresh_games:
            self._receive(self.env.start_fresh(checkpoint.state["env"]), None, None)

    def close(self) -> None:
        """Close the environments and the logs, and release the lock of the run directory."""
        self.env.close()
        self.monitor.close()
        self._lock.close()

    def _checkpoint_name(self) -> str:
        return f"frames-{self.frames:012d}"

    def now(self) -> "Mark":
        """Progress and time per stage so far."""
        stages = self._stopwatch.seconds | self.agent.seconds
        return Mark(time.perf_counter(), self.frames, self.updates, stages)

    def state_dict(self, env: dict[str, Any] | None = None) -> dict[str, Any]:
        """All that changes in a run but the replay's frames; `env`: in place of its state."""
        return {
            "frames": self.frames,
            "agent_steps": self.agent_steps,
            "updates": self.updates,
            "learning_steps": self._learning_steps,
            "next_cut": self._next_cut,
            "next_log": self._log_schedule.next,
            "next_evaluation": self._eval_schedule.next,
            "best": self._best,
            "rng": self.rng.bit_generator.state,
            "games": self._games.state_dict(),
            "probes": self._probes.state_dict(),
            "agent": self.agent.state_dict(),
            "env": self.env.state_dict() if env is None else env,
            "replay": self.replay.state_dict(),
            **({} if self.distiller is None else {"distiller": self.distiller.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any], *, fresh_games: bool = False) -> None:
        self._started = True
        self.agent_steps = state["agent_steps"]
        self.updates = state["updates"]
        self._learning_steps = state["learning_steps"]
        self._next_cut = state["next_cut"]
        self._log_schedule.next = state["next_log"]
        self._eval_schedule.next = state["next_evaluation"]
        self._best = state["best"]
        self.rng.bit_generator.state = state["rng"]
        self._games.load_state_dict(state["games"])
        self._probes.load_state_dict(state["probes"])
        self.agent.load_state_dict(state["agent"])
        if not fresh_games:
            self.env.load_state_dict(state["env"])
        self.replay.load_state_dict(state["replay"])
        if self.distiller is not None:
            self.distiller.load_state_dict(state["distiller"])
