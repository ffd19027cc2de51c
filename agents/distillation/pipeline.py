"""The pipeline: score the teacher, collect states, supervise students by them.

Whatever is finished is on the disk: a pipeline that was stopped or killed resumes there.
"""

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from agents.architectures import TEACHER
from agents.distillation.collect import EPSILON, collect, from_replay
from agents.distillation.dataset import (
    Dataset,
    hard_targets,
    join,
    load_or_make,
    load_states,
    saved_states,
)
from agents.distillation.records import (
    STUDENTS,
    TEACHER_FILE,
    Constant,
    GameScores,
    SavedScore,
    TeacherRecord,
    read_record,
    write_record,
)
from agents.distillation.settings import (
    INT8,
    PLAY,
    REPLAY,
    SYNTHETIC,
    DistillConfig,
    Stopped,
    StudentSpec,
    load_experimental,
    student_outputs,
)
from agents.distillation.students import (
    Student,
    digest_of,
    load_student,
    network_sizes,
    save_student,
    student_of,
)
from agents.distillation.teachers import (
    ENSEMBLE,
    Temperature,
    best_constant,
    check_states,
    constant_play,
    temperature_of,
)
from agents.distillation.trainer import PROGRESS, StudentTrainer, Supervision, generator_from
from agents.trained import TrainedAgent
from ebu.evaluation import Evaluator, random_play
from ebu.interfaces import Act
from ebu.run.directory import CONFIG
from ebu.run.files import is_there
from ebu.run.progress import progress_bar, say

# Streams of random numbers, far from each other's and from those of runs and evaluations.
COLLECTOR_STREAM, STATE_STREAM = int.from_bytes(b"scou"), int.from_bytes(b"coll")
COLLECTORS, STATES = "collectors", "states"

ResultT = TypeVar("ResultT")


def require_finished(result: ResultT | None) -> ResultT:
    """The result itself; raises `Stopped` for None, the result of what was told to stop."""
    if result is None:
        raise Stopped
    return result


def rng_of(seed: int, *stream: int) -> np.random.Generator:
    """The random numbers of one stream of a seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


class Baselines(NamedTuple):
    """The games of the teacher, of random play, of the best constant action."""

    teacher: GameScores
    random: GameScores
    constant: Constant


@dataclass(frozen=True)
class Pipeline:
    """Distillation of one teacher: its settings, how it is scored, and when to stop.

    | field | meaning |
    | --- | --- |
    | config | settings, with device, threads and precision chosen |
    | teacher, teacher_dir | the agent, on the device that computes, and its run directory |
    | evaluator | plays the same games for everything that is scored |
    | life_loss_ends_value | see `collect` |
    | should_stop | asked in play and training; once it says yes, every method raises `Stopped` |
    """

    config: DistillConfig
    teacher: TrainedAgent
    teacher_dir: Path
    evaluator: Evaluator
    life_loss_ends_value: bool
    should_stop: Callable[[], bool]

    @property
    def games(self) -> int:
        """Games of every score."""
        return self.evaluator.episodes

    @cached_property
    def weights(self) -> str:
        """The digest of the teacher's weights."""
        return digest_of(self.teacher.network)

    # --- scores -----------------------------------------------------------------------------

    def score(self, name: str, act: Act, epsilon: float | None = None) -> GameScores:
        """Play the games of a score. epsilon: another share of random actions."""
        evaluator = self.evaluator if epsilon is None else replace(self.evaluator, epsilon=epsilon)
        with progress_bar(f"{name}: games", evaluator.episodes, "games") as progress:
            played = require_finished(
                evaluator.play(act, should_stop=self.should_stop, progress=progress)
            )
        summary = evaluator.summarise(played)
        return {
            "mean": summary["mean"],
            "games": summary["games"],
            "interval_95": summary["interval_95"],
            "returns": played.returns.tolist(),
            "human_normalised": summary["human_normalised"],
            "epsilon": evaluator.epsilon,
            "protocol": self.teacher.config["settings"]["protocol"],
            "seed": self.config.seed,
            "frames_played": summary["frames_played"],
        }

    def saved_score(
        self,
        path: Path,
        name: str,
        act: Act,
        *,
        epsilon: float | None = None,
        weights: str | None = None,
    ) -> GameScores:
        """The score in this file, or played now if that is of other games or weights.

        weights: digest of those that play; None where they are no weights, or part of the path.
        """
        saved = read_record(path, SavedScore)
        if saved and (saved["games"], saved.get("weights")) == (self.games, weights):
            return cast(
                GameScores, {key: value for key, value in saved.items() if key != "weights"}
            )
        score = self.score(name, act, epsilon)
        write_record(path, score if weights is None else {**score, "weights": weights})
        return score

    def score_path(self, name: str) -> Path:
        """The file of a score."""
        return self.config.out / "scores" / f"{name}.json"

    def baselines(self) -> Baselines:
        """Score the teacher, random play and every constant action, or load their scores."""

        def scored(name: str, act: Act, **how: Any) -> GameScores:
            return self.saved_score(self.score_path(name), name, act, **how)

        num_actions = self.teacher.num_actions
        return Baselines(
            scored(TEACHER, self.teacher.choose, weights=self.weights),
            scored("random", random_play(num_actions), epsilon=1.0),
            best_constant(
                [
                    scored(f"constant-{action}", constant_play(action, num_actions))
                    for action in range(num_actions)
                ]
            ),
        )

    def describe_teacher(self, dataset: Dataset, baselines: Baselines) -> TeacherRecord:
        """The record of the teacher and its dataset, written to teacher.json."""
        settings = self.teacher.config["settings"]
        single = {"run_dir": str(self.teacher_dir), "network": settings["network"]}
        named = settings.get(ENSEMBLE, single)
        temperature, source = self._temperature(dataset), dataset.sources[0]
        sizes = network_sizes(self.teacher.network, self.teacher.config["environment"])
        record: TeacherRecord = {
            "run_dir": named["run_dir"],
            "game": settings["game"],
            "protocol": baselines.teacher["protocol"],
            "network": named["network"],
            "frames": self.teacher.frames or None,
            "num_actions": self.teacher.num_actions,
            "parameters": sizes["parameters"] or None,
            "multiply_adds": sizes["multiply_adds"] or None,
            "evaluation": baselines.teacher,
            "random": baselines.random,
            "constant": baselines.constant,
            "gap": temperature.median_gap,
            "temperature": temperature.value,
            "temperature_setting": self.config.temperature,
            "entropy": temperature.entropy,
            "states": {
                "train": len(dataset.train),
                "held_out": len(dataset.held_out),
                "rounds": self.config.rounds if self.config.states_from == PLAY else 1,
                "source": source.get("directory", source["from"]),
            },
            "weights": self.weights,
        }
        write_record(self.config.out / TEACHER_FILE, record)
        return record

    # --- states -----------------------------------------------------------------------------

    def collect_states(self, spec: StudentSpec) -> Dataset:
        """The states of the settings' source, collected, made or loaded.

        In play the teacher plays the first round, and a student like `spec` every other one: it is
        trained on the rounds before with 1 / rounds of the updates, and all states have the
        teacher's labels (Ross, Gordon, Bagnell 2011, "A Reduction of Imitation Learning …",
        DAgger). These students start from new weights in every round and are not among the results.
        """
        source, count, rounds = self.config.states_from, self.config.states, self.config.rounds
        if source in SYNTHETIC:
            synthetic: Dataset = load_experimental(source).make_states(self, source)
            return synthetic
        if source == REPLAY:
            return self._from_replay()
        if source != PLAY:
            return self._from_directory(Path(source))
        parts: list[Dataset] = []
        for number in range(rounds):
            share = count // rounds + (number < count % rounds)
            parts.append(self.collect_round(number, share, spec, parts))
        return join(parts)

    def load_or_make(
        self, name: str, source: str, make: Callable[[], Dataset], **how: object
    ) -> Dataset:
        """The states saved under this name, or those of `make`, made as `how` says."""
        known = {
            "from": source,
            "game": self.teacher.config["settings"]["game"],
            "teacher": str(self.teacher_dir),
            "teacher_frames": self.teacher.frames,
            "seed": self.config.seed,
            **how,
        }
        return load_or_make(self.config.out / STATES / name, known, make)

    def collect_round(
        self,
        number: int,
        count: int,
        spec: StudentSpec | None = None,
        before: Sequence[Dataset] = (),
    ) -> Dataset:
        """`count` states in play: of a student like `spec` trained on the rounds before, or of the
        teacher if there are none."""

        def make() -> Dataset:
            act = self._collector(spec, number, before) if spec is not None and before else None
            rng, num_envs = self.state_rng(number), self.config.num_envs
            return self.play(f"round {number}", self.teacher, num_envs, count, rng, act)

        actor = spec.student if spec is not None and before else "teacher"
        how = {"actor": actor, "num_envs": self.config.num_envs, "epsilon": EPSILON}
        return self.load_or_make(f"round-{number}", PLAY, make, round=number, count=count, **how)

    def play(
        self,
        what: str,
        agent: TrainedAgent,
        num_envs: int,
        count: int,
        rng: np.random.Generator,
        act: Act | None = None,
    ) -> Dataset:
        """Play for `count` states that an agent labels; it also acts, unless `act` is given."""
        env = self.evaluator.new_env(num_envs, int(rng.integers(2**31)))
        with (
            contextlib.closing(env),
            progress_bar(f"{what}: states", count, "states") as progress,
        ):
            return require_finished(
                collect(
                    env,
                    agent.outputs_of,
                    count=count,
                    rng=rng,
                    act=act,
                    random_start_actions=self.evaluator.random_start_actions,
                    life_loss_ends_value=self.life_loss_ends_value,
                    device=agent.device,
                    should_stop=self.should_stop,
                    progress=progress,
                )
            )

    def state_rng(self, stream: int) -> np.random.Generator:
        """Random numbers of the states."""
        return rng_of(self.config.seed, STATE_STREAM, stream)

    def _collector(self, spec: StudentSpec, number: int, before: Sequence[Dataset]) -> Act:
        """The student that plays a round."""
        directory = self.config.out / COLLECTORS / f"round-{number}"
        if not is_there(directory / CONFIG):
            # A single student has no others to learn from.
            weights = {name: weight for name, weight in spec.weights.items() if name != "mutual"}
            spec = spec._replace(weights=weights)
            supervision = self.supervise(join(before), weights)
            updates = max(1, self.config.updates // self.config.rounds)
            rng = rng_of(spec.seed, COLLECTOR_STREAM, number)
            student = self.new_student(spec, supervision.temperature, rng)
            config = replace(self.config, updates=updates)
            trainer = StudentTrainer(directory, [student], [supervision], config, rng=rng)
            with contextlib.closing(trainer):
                self.run(trainer)
            self.save(directory, spec, student, supervision, updates)
        shutil.rmtree(directory / PROGRESS, ignore_errors=True)
        return load_student(directory, self.teacher.device).choose

    def _from_replay(self) -> Dataset:
        def read() -> Dataset:
            say("reading the replay memory, and labelling its states")
            return from_replay(
                self.teacher_dir,
                self.teacher.outputs_of,
                num_actions=self.teacher.num_actions,
                rng=self.state_rng(0),
                count=self.config.states,
            )

        return self.load_or_make("round-0", REPLAY, read, count=self.config.states)

    def _from_directory(self, directory: Path) -> Dataset:
        """The states saved in a directory, or its rounds, with new labels."""

        def read() -> Dataset:
            loaded = [load_states(path) for path in saved_states(directory)]
            for part in loaded:
                check_states(self.teacher, self.teacher_dir, part, directory)
            dataset = join(loaded)
            say(f"labelling the {len(dataset):,} states of {directory}")
            return dataset.relabelled(self.teacher.outputs_of)

        return self.load_or_make("round-0", "directory", read, directory=str(directory))

    # --- students ---------------------------------------------------------------------------

    def supervise(self, dataset: Dataset, weights: Mapping[str, float]) -> Supervision:
        """The supervision of students by the teacher on these states, with these losses."""
        dataset = dataset.to(self.teacher.device)
        targets = None
        if student_outputs(weights, self.config.outputs) == "values":
            settings = self.teacher.config["settings"]
            targets = hard_targets(
                dataset,
                gamma=settings.get("gamma", 0.99),
                # One-step targets for a teacher trained with no others.
                beta=settings.get("beta", 0.0),
                clip_rewards=settings.get("clip_rewards", True),
            )
        temperature = self._temperature(dataset).value
        return Supervision(self.teacher, dataset, weights, self.config, temperature, targets)

    def _temperature(self, dataset: Dataset) -> Temperature:
        outputs = dataset.outputs[dataset.train]
        return temperature_of(self.config.temperature, outputs, kind=self.teacher.outputs)

    def directory(self, spec: StudentSpec) -> Path:
        """A student's run directory."""
        return self.config.out / STUDENTS / spec.name

    def new_student(
        self, spec: StudentSpec, temperature: float, rng: np.random.Generator
    ) -> Student:
        """A student before its first update; see `student_of`."""
        student = student_of(
            self.teacher,
            spec.student,
            outputs=student_outputs(spec.weights, self.config.outputs),
            temperature=temperature,
            generator=generator_from(rng),
        )
        if INT8 in spec.procedure.split("-"):
            from agents.distillation.deploy.rounded import RoundedStudent

            student = RoundedStudent(student.name, student.network, student.outputs)
        return student.to(self.teacher.device)

    def run(self, trainer: StudentTrainer) -> None:
        """Run a trainer to its end with a progress bar. Raises `Stopped` if told to stop."""
        name = trainer.directory.name
        for line in trainer.warnings:
            say(f"warning: {name}: {line}")
        what, total = f"{name}: updates", trainer.config.updates
        with progress_bar(what, total, "updates", initial=trainer.updates) as progress:
            if not trainer.run(should_stop=self.should_stop, progress=progress):
                raise Stopped

    def save(
        self,
        directory: Path,
        spec: StudentSpec,
        student: Student,
        supervision: Supervision,
        updates: int,
    ) -> None:
        settings: dict[str, Any] = {
            "student": spec.student,
            "losses": dict(spec.weights),
            # Of values alone: what logits were divided by says nothing of values.
            "temperature": (
                supervision.temperature if supervision.teacher.outputs == "values" else None
            ),
            "states": len(supervision.dataset.train),
            "updates": updates,
        }
        save_student(
            directory,
            student,
            teacher=self.teacher,
            teacher_dir=self.teacher_dir,
            seed=spec.seed,
            settings=settings,
        )
