"""The training loop: act, learn, store; log, evaluate and checkpoint when due."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ebu.errors import EbuError
from ebu.interfaces import Distiller, LearningAgent, TrainingEnvironment, VectorStep
from ebu.periodic_evaluation import Evaluate, PeriodicEvaluation
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import Checkpoint
from ebu.run.directory import EVALUATIONS, METRICS
from ebu.run.logs import Monitor, last_frames
from ebu.run.profiling import Profile
from ebu.run.progress import Progress, say, starting
from ebu.run.ranks import SINGLE, Ranks
from ebu.schedules import ExplorationConfig, LoopConfig, epsilon_at
from ebu.state_checks import check_number, check_state, require
from ebu.stopwatch import SpeedMark, Stopwatch
from ebu.training_checkpoints import FRESH_GAMES, TrainingCheckpoints
from ebu.training_log import TrainingLog

ONLY_EVALUATION_MISSING = "everything is trained and saved; only the last evaluation is missing"


class Trainer:
    """Trains one agent in N environments, those of each rank if there are several.

    | argument | meaning |
    | --- | --- |
    | gamma, clip_rewards | the agent's own settings, for the logged value estimates |
    | life_loss_ends_segment | whether a lost life becomes terminal, as a game's end is |
    | rng | draws the exploration |
    | monitor | the logs; None on ranks that leave them to the first |
    | evaluate, film | of the first rank; `film` is called with (frames) after an evaluation |
    | close_evaluation | called by `close`: releases what they have open |
    | run_dir | checkpoints go to checkpoints/, the best evaluated weights to best/ |
    | lock | the run directory's open lock file, held until `close`; None as `monitor` |
    | identity | settings that its checkpoints carry: see `identity_of` |
    | distiller | trains other networks alongside; the run is the same without it |
    | ranks | the processes of the run: all of them log, evaluate, save and stop together |

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
        monitor: Monitor | None,
        evaluate: Evaluate,
        run_dir: Path,
        lock: IO[str] | None,
        identity: Mapping[str, Any] | None = None,
        film: Callable[[int], None] | None = None,
        close_evaluation: Callable[[], None] | None = None,
        profile: Profile | None = None,
        distiller: Distiller | None = None,
        ranks: Ranks = SINGLE,
    ) -> None:
        self.config = config
        self.life_loss_ends_segment = life_loss_ends_segment
        self.env = env
        self.replay = replay
        self.agent = agent
        self.exploration = exploration
        self.rng = rng
        self.run_dir = run_dir
        self.profile = profile
        self.distiller = distiller
        self.ranks = ranks
        self.evaluation = PeriodicEvaluation(config, evaluate, film, monitor, ranks)
        self.log = TrainingLog(
            monitor,
            config.log_every_frames,
            num_envs=env.num_envs,
            gamma=gamma,
            clip_rewards=clip_rewards,
            ranks=ranks,
        )
        self.checkpoints = TrainingCheckpoints(
            run_dir,
            agent=agent,
            replay=replay,
            distiller=distiller,
            monitor=monitor,
            identity=identity,
            ranks=ranks,
        )
        self.stop_requested = False
        self._monitor = monitor
        self._close_evaluation = close_evaluation
        self._lock = lock

        self.agent_steps = 0
        self.updates = 0
        # Agent steps that count towards updates: none before learning starts.
        self._learning_steps = 0
        # Next agent step at which open segments may be cut: see `_segment_ends`.
        self._next_cut = config.learning_starts
        self._started = self._finishing = False
        # What the ranks have agreed on: to stop, and to save because rank 0's clock says so.
        self._stopping = self._saving = False
        self._stopwatch = Stopwatch()

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
            with starting(self.env.num_envs, "games"):
                step = self.env.reset()
            self._receive(step, None, None)
            self._started = True
        self.log.speed_mark = self.now()
        self.checkpoints.start_clock()
        self._stopping = self._saving = False
        while True:
            if self.log.schedule.due(self.frames):
                self._log()
            if self.evaluation.schedule.due(self.frames):
                # A run that has results and no checkpoint is not started again.
                if self.checkpoints.last is None:
                    self.save()
                if not self._is_stopping():
                    self._evaluate(progress)
            if self._is_stopping() or self.frames >= until_frames:
                break
            if self._saving:
                self.save()
            updates = self.updates
            self._step()
            if self.profile is not None:
                self.profile.step(learning=self.updates > updates)
            if progress is not None:
                progress.update(
                    self.frames, episode_return=self.log.recent_return(), epsilon=self.epsilon
                )
        self.save()
        if self.profile is not None:
            self.profile.finish()
        return self.finished(until_frames)

    def _is_stopping(self) -> bool:
        """Several ranks stop together, after a step, or where an evaluation was stopped."""
        return self._stopping or (self.ranks.is_single and self.stop_requested)

    def finished(self, until_frames: int) -> bool:
        """Whether everything up to `until_frames` is played and evaluated."""
        return self.frames >= until_frames and not self.evaluation.schedule.due(self.frames)

    def _step(self) -> None:
        """Step every environment; with `overlap` the learner works while the emulators do."""
        with self._stopwatch.time("acting"):
            actions, probabilities = self.agent.act(
                self.replay.newest_states(),
                epsilon=self.epsilon,
                rng=self.rng,
                forced_random=self.log.games.steps < self.exploration.random_start_actions,
            )
            self.log.begin_probes(actions, self.agent.last_values)
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

    def _learn(self) -> None:
        updates = self._updates_due()
        with self._stopwatch.time("learning"):
            try:
                self.agent.learn(self.replay, updates)
            except EbuError:
                if self.ranks.is_single:
                    self.checkpoints.check_finite(self.frames)
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
        self.log.add(step, terminated, truncated)
        self.agent.observe(step)
        stored = (
            len(self.replay.segments) if self.agent.needs_segments else len(self.replay.transitions)
        )
        save_due = self.checkpoints.minutes >= self.config.checkpoint_minutes
        played, ready, stopping, saving = self.ranks.sums(
            [
                num_envs - int(step.started.sum()),
                stored > 0,
                self.stop_requested,
                save_due and self.ranks.is_first,
            ]
        )
        self._stopping, self._saving = stopping > 0, saving > 0
        self.agent_steps += played
        past_start = self.agent_steps - self.config.learning_starts
        if past_start > 0 and ready == self.ranks.world_size:
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
        # Agent steps after this one; fewer where a game has just started.
        most_steps = self.agent_steps + self.env.num_envs * self.ranks.world_size
        if self.agent.needs_segments and most_steps >= self._next_cut:
            self._next_cut = 2 * most_steps
            if 2 * self.replay.segments.transitions() < len(self.replay.transitions):
                truncated = ~(terminated | step.started)
        return terminated, truncated

    def _updates_due(self) -> int:
        # The small term lets a rate such as 0.1 reach whole updates despite its rounding.
        owed = int(self._learning_steps * self.config.updates_per_step + 1e-6) - self.updates
        self.updates += owed
        return owed

    def _log(self) -> None:
        self.checkpoints.check_finite(self.frames)
        counts = {
            "train/epsilon": self.epsilon,
            "train/agent_steps": float(self.agent_steps),
            "train/updates": float(self.updates),
        }
        own = self.agent.metrics()
        if self.distiller is not None:
            own |= self.distiller.metrics()
        own |= {f"replay/{name}": value for name, value in self.replay.statistics().items()}
        self.log.write(self.now(), self.env.frames_per_step, counts, own)

    def _evaluate(self, progress: Progress | None) -> None:
        self.checkpoints.check_finite(self.frames)
        mean = self._play_evaluation(progress)
        if self.evaluation.fault is not None:
            say(f"warning: {self.frames:,} frames: evaluation failed: {self.evaluation.fault}")
            self.evaluation.schedule.done(self.frames)
            return
        if mean is None:
            self._stopping = True
            return
        if self.evaluation.is_best(mean):
            self.checkpoints.save_best(self.frames)
            if self.distiller is not None:
                self.distiller.set_teacher()
        self.evaluation.schedule.done(self.frames)
        self._film_evaluation()

    def _play_evaluation(self, progress: Progress | None) -> float | None:
        with self._stopwatch.time("evaluation"):
            return self.evaluation.play(
                self.frames, lambda: self.stop_requested, quiet=progress is None
            )

    def _film_evaluation(self) -> None:
        """Last: what ends the process in code that draws can then be saved as after this."""
        with self._stopwatch.time("evaluation"):
            self.evaluation.film(self.frames)

    def finish(self, progress: Progress | None = None) -> bool:
        """Log a last line and a final evaluation.

        They follow the last checkpoint, so resuming removes them, and change neither `best/` nor
        the distilled networks. The trainer cannot train afterwards. Returns whether everything was
        written, False if told to stop before the evaluation's end.
        """
        self._finishing = True
        logs = (self.run_dir / METRICS, self.run_dir / EVALUATIONS)
        last_line, last_evaluation = self.ranks.from_first(lambda: list(map(last_frames, logs)))
        if last_line != self.frames:
            self._log()
        done = self.evaluation.schedule.every == 0 or last_evaluation == self.frames
        if not done:
            done = self._play_evaluation(progress) is not None
            if self.evaluation.fault is not None:
                raise EbuError(f"{self.evaluation.fault}; {ONLY_EVALUATION_MISSING}")
            if done:
                self._film_evaluation()
        self.checkpoints.sync_logs()
        return done

    def save(self) -> Path:
        """Write a checkpoint; changes nothing in the run."""
        with self._stopwatch.time("checkpoints"):
            return self.checkpoints.save(self.frames, self.state_dict())

    def rescue(self) -> str:
        """Save what was learned when an environment has failed; returns what to do next.

        In play the last whole step is saved for --fresh-games, in addition to the exact
        checkpoints. In an evaluation or its film the run itself is intact: it is saved as usual,
        with the evaluation passed over.
        """
        if not self._started:
            return "nothing was played yet"
        if self._finishing:
            return ONLY_EVALUATION_MISSING
        if not self.ranks.is_single:
            return "run the same command again, with --fresh-games to play other games from there"
        if self.evaluation.is_playing:
            self.evaluation.schedule.done(self.frames)
            return (
                f"saved {self.save()}: run the same command again to resume after this evaluation"
            )
        exact = ", or as it is to resume from the last exact one" if self.checkpoints.last else ""
        state = self.state_dict(self.env.seedings())
        saved = self.checkpoints.save(self.frames, state, FRESH_GAMES, keep=1)
        return (
            f"saved {saved}: run the same command with --fresh-games to resume from there with new "
            f"games{exact}"
        )

    def load(self, checkpoint: Checkpoint, *, fresh_games: bool = False) -> None:
        """Continue from a checkpoint of a run with the same settings.

        fresh_games: begin new games and truncate those that were played.
        """
        with self.ranks.together():
            self.load_state_dict(checkpoint.state, fresh_games=fresh_games)
            self.replay.read_frames(checkpoint.directory)
            self.checkpoints.take_up(checkpoint)
            step = self.env.start_fresh(checkpoint.state["env"]) if fresh_games else None
        if step is not None:
            self._receive(step, None, None)

    def close(self) -> None:
        """Close the environments and the logs, and release the lock of the run directory."""
        self.env.close()
        if self._close_evaluation is not None:
            self._close_evaluation()
        if self._monitor is not None:
            self._monitor.close()
        if self._lock is not None:
            self._lock.close()

    def now(self) -> SpeedMark:
        """Progress and time per stage so far."""
        stages = self._stopwatch.seconds | self.agent.seconds
        return SpeedMark(time.perf_counter(), self.frames, self.updates, stages)

    def state_dict(self, env: dict[str, Any] | None = None) -> dict[str, Any]:
        """All that changes in a run but the replay's frames; `env`: in place of its state."""
        return {
            "frames": self.frames,
            "agent_steps": self.agent_steps,
            "updates": self.updates,
            "learning_steps": self._learning_steps,
            "next_cut": self._next_cut,
            "next_log": self.log.schedule.next,
            "next_evaluation": self.evaluation.schedule.next,
            "best": self.evaluation.best,
            "rng": self.rng.bit_generator.state,
            "games": self.log.games.state_dict(),
            "probes": self.log.probes.state_dict(),
            "agent": self.agent.state_dict(),
            "env": self.env.state_dict() if env is None else env,
            "replay": self.replay.state_dict(),
            **({} if self.distiller is None else {"distiller": self.distiller.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any], *, fresh_games: bool = False) -> None:
        self._check(state)
        self._started = True
        self.agent_steps = state["agent_steps"]
        self.updates = state["updates"]
        self._learning_steps = state["learning_steps"]
        self._next_cut = state["next_cut"]
        self.log.schedule.next = state["next_log"]
        self.evaluation.schedule.next = state["next_evaluation"]
        self.evaluation.best = state["best"]
        self.rng.bit_generator.state = state["rng"]
        self.log.games.load_state_dict(state["games"])
        self.log.probes.load_state_dict(state["probes"])
        self.agent.load_state_dict(state["agent"])
        if not fresh_games:
            self.env.load_state_dict(state["env"])
        self.replay.load_state_dict(state["replay"], self.env.num_actions)
        self.agent.check_memory(self.replay)
        if self.distiller is not None:
            self.distiller.load_state_dict(state["distiller"])

    def _check(self, state: dict[str, Any]) -> None:
        """Raise `RefusedFileError` unless the counts of a state are those of a run."""
        counts = ("frames", "agent_steps", "updates", "learning_steps", "next_cut")
        check_state(state, dict.fromkeys((*counts, "next_log", "next_evaluation"), 0))
        if state["best"] is not None:
            check_number(state["best"], float, "best")
        frames, steps, learning = (
            state[name] for name in ("frames", "agent_steps", "learning_steps")
        )
        require(
            frames == steps * self.env.frames_per_step and learning <= steps,
            f"{frames:,} frames are not {steps:,} agent_steps, or these less than {learning:,} "
            "learning_steps",
        )
        # Those that the last step of every environment has made due.
        most = self.config.updates_per_step * self.env.num_envs * self.ranks.world_size + 1
        owed = int(learning * self.config.updates_per_step + 1e-6) - state["updates"]
        require(0 <= owed <= most, f"{state['updates']:,} updates lack {owed:,}")
