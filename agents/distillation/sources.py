"""Where a distillation's states come from: play, a replay memory, a directory, or out of nothing.

States are saved once they are whole: a procedure that was stopped or killed finds them there.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from agents.distillation.collect import EPSILON, collect, from_replay
from agents.distillation.dataset import StateSet, join, load_states, saved_or_made
from agents.distillation.experimental.kegnet import Bar, generate
from agents.distillation.experimental.synthetic import mixed, noise
from agents.distillation.teachers import check_states
from agents.trained import TrainedAgent
from ebu.evaluation import Act
from ebu.interfaces import VectorEnvironment

PLAY, REPLAY, NOISE, MIXED, KEGNET = "play", "replay", "noise", "mixed", "kegnet"
SOURCES = (PLAY, REPLAY, NOISE, MIXED, KEGNET)
"""All but the directories, by name."""
MADE_UP = (NOISE, MIXED, KEGNET)
"""Sources of states that nobody played: neither their actions nor their rewards mean anything."""
MIXED_FROM = 2_000
"""States that the teacher plays for mixtures of two of them."""
COLLECTING = int.from_bytes(b"coll")
"""Stream of random numbers, far from those of students, runs and evaluations."""

ResultT = TypeVar("ResultT")
Actor = Callable[[int, Sequence[StateSet], int], Act]
"""Who plays a round: from its number, the states of those before it, and the number of rounds."""


class Stopped(Exception):
    """Told to stop. What is finished is kept: the same procedure goes on there."""


def finished(result: ResultT | None) -> ResultT:
    """What was made to its end; raises `Stopped` for None, which was told to stop."""
    if result is None:
        raise Stopped
    return result


def rng_of(seed: int, *stream: int) -> np.random.Generator:
    """The random numbers of one stream of a seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


@dataclass(frozen=True)
class Sources:
    """A teacher, and all that its states are made with.

    | field | meaning |
    | --- | --- |
    | directory | of the states, one in it for each round |
    | teacher, teacher_dir | the agent, on the device that computes, and its run directory |
    | seed | of everything drawn here |
    | make_games | so many new environments, from a seed |
    | num_envs | games played side by side |
    | random_start_actions, life_loss_ends_value | see `collect` |
    | should_stop | asked all the time; once it says yes, everything raises `Stopped` |
    | bar, say | where progress and single lines are shown |
    """

    directory: Path
    teacher: TrainedAgent
    teacher_dir: Path
    seed: int
    make_games: Callable[[int, int], VectorEnvironment]
    num_envs: int
    random_start_actions: int
    life_loss_ends_value: bool
    should_stop: Callable[[], bool]
    bar: Bar
    say: Callable[[str], None]

    def states(self, source: str, count: int, rounds: int, actor: Actor, name: str) -> StateSet:
        """States from one of `SOURCES`, or those of a directory.

        `count` and `rounds` as far as the source knows them. `actor` and its `name`: of the student
        that plays from the second round on.
        """
        if source == PLAY:
            return self.play(count, rounds, actor, name)
        if source == REPLAY:
            return self.replay(count)
        if source in MADE_UP:
            return self.made_up(source, count)
        return self.saved(Path(source))

    def play(self, count: int, rounds: int, actor: Actor, name: str) -> StateSet:
        """`count` states in play: the first round the teacher's, the others a student's.

        Ross, Gordon, Bagnell 2011, "A Reduction of Imitation Learning …" (DAgger): the student that
        plays a round has learnt from those before it; all states have the teacher's labels.
        """
        sets: list[StateSet] = []
        for number in range(rounds):
            share = count // rounds + (number < count % rounds)
            who = functools.partial(actor, number, sets, rounds) if number else None
            sets.append(self._round(number, share, who, name if number else "teacher"))
        return join(sets)

    def _round(
        self, number: int, count: int, actor: Callable[[], Act] | None, name: str
    ) -> StateSet:
        def play() -> StateSet | None:
            act = None if actor is None else actor()
            rng = self._rng(number)
            env = self.make_games(self.num_envs, int(rng.integers(2**31)))
            try:
                with self.bar(f"round {number}: states", count, "states") as progress:
                    return collect(
                        env,
                        self.teacher.outputs_of,
                        count=count,
                        rng=rng,
                        act=act,
                        random_start_actions=self.random_start_actions,
                        life_loss_ends_value=self.life_loss_ends_value,
                        device=self.teacher.device,
                        should_stop=self.should_stop,
                        progress=progress,
                    )
            finally:
                env.close()

        how = {"actor": name, "num_envs": self.num_envs, "epsilon": EPSILON}
        return self._kept(f"round-{number}", PLAY, play, round=number, count=count, **how)

    def replay(self, count: int) -> StateSet:
        """At most `count` states of the teacher's own replay memory, labelled anew."""

        def read() -> StateSet:
            self.say("reading the replay memory, and labelling its states")
            label = self.teacher.outputs_of
            return from_replay(self.teacher_dir, label, rng=self._rng(0), count=count)

        return self._kept("round-0", REPLAY, read, count=count)

    def saved(self, directory: Path) -> StateSet:
        """The states saved in a directory, or in its round-0, round-1, …; labelled anew.

        Raises `UsageError` where they are of another game, or it holds none.
        """

        def read() -> StateSet:
            parts = sorted(path for path in directory.glob("round-*") if path.is_dir())
            sets = [load_states(path) for path in parts or [directory]]
            for part in sets:
                check_states(self.teacher, self.teacher_dir, part, directory)
            states = join(sets)
            self.say(f"labelling the {len(states):,} states of {directory}")
            return states.relabelled(self.teacher.outputs_of)

        return self._kept("round-0", "directory", read, directory=str(directory))

    def made_up(self, kind: str, count: int) -> StateSet:
        """`count` states by one of `MADE_UP`, labelled by the teacher."""
        ways: dict[str, Callable[[int], StateSet | None]] = {
            NOISE: self._noise,
            MIXED: self._mixed,
            KEGNET: self._generated,
        }
        return self._kept(kind, kind, lambda: ways[kind](count), count=count)

    def _noise(self, count: int) -> StateSet:
        environment = self.teacher.config["environment"]
        return noise(
            count,
            frame_shape=tuple(environment["frame_shape"]),
            stack=environment["stack"],
            label=self.teacher.outputs_of,
            rng=self._rng(0),
        )

    def _mixed(self, count: int) -> StateSet:
        """Half of them blended, half cut together."""
        real = self._round(0, max(MIXED_FROM, self.num_envs), None, "teacher")
        label, rng = self.teacher.outputs_of, self._rng(1)
        return join(
            [
                mixed(real, count - count // 2, how="convex", label=label, rng=rng),
                mixed(real, count // 2, how="cut", label=label, rng=rng),
            ]
        )

    def _generated(self, count: int) -> StateSet | None:
        return generate(
            self.teacher,
            count=count,
            seed=self.seed,
            directory=self.directory.with_name(KEGNET),
            should_stop=self.should_stop,
            bar=self.bar,
        )

    def _kept(
        self, name: str, kind: str, make: Callable[[], StateSet | None], **how: object
    ) -> StateSet:
        source: Mapping[str, Any] = {
            "from": kind,
            "game": self.teacher.config["settings"]["game"],
            "teacher": str(self.teacher_dir),
            "teacher_frames": self.teacher.frames,
            "seed": self.seed,
            **how,
        }
        return finished(saved_or_made(self.directory / name, source, make))

    def _rng(self, stream: int) -> np.random.Generator:
        return rng_of(self.seed, COLLECTING, stream)
