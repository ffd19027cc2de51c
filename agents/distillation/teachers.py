"""The teacher: loaded and checked, and scored beside what needs no teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agents.agent import epsilon_greedy
from agents.distillation.dataset import StateSet
from agents.distillation.records import (
    Constant,
    Score,
    TeacherRecord,
    read_record,
    write_record,
)
from agents.distillation.students import multiply_adds, num_parameters
from agents.distillation.temperature import Temperature
from agents.trained import TrainedAgent, load_agent
from ebu.errors import UsageError
from ebu.evaluation import Act, Evaluator
from ebu.interfaces import VectorEnvironment

ENSEMBLE = "ensemble"
"""Among an ensemble's settings, the first member's: its `run_dir` and `network` in words."""


def load_teacher(
    run_dir: Path, weights: Literal["final", "best"], device: torch.device
) -> TrainedAgent:
    """The agent of a run, to be distilled.

    Raises `UsageError` if this is no run, or one that plays by no pictures; `EbuError` if it holds
    no whole weights.
    """
    teacher = load_agent(run_dir, weights, device)
    shape = teacher.config["environment"]["frame_shape"]
    if len(shape) != 2:
        raise UsageError(
            f"the agent in {run_dir} sees {teacher.config['settings']['game']} as {shape[0]} "
            "numbers: teachers are agents that see pictures, such as Atari's"
        )
    return teacher


def check_plays(teacher: TrainedAgent, run_dir: Path, env: VectorEnvironment) -> None:
    """Raise `UsageError` unless the teacher plays this environment as it stands."""
    _check_same(
        f"the agent in {run_dir} was trained on",
        teacher,
        "its game has here",
        (env.num_actions, env.stack, tuple(env.frame_shape), str(env.frame_dtype)),
        "evaluate and distil it with the version of the game that it was trained on",
    )


def check_states(teacher: TrainedAgent, run_dir: Path, states: StateSet, where: Path) -> None:
    """Raise `UsageError` unless these states, from `where`, are of the teacher's game."""
    game = teacher.config["settings"]["game"]
    of = {source["game"] for source in states.sources if "game" in source} - {game}
    if of:
        raise UsageError(
            f"the states in {where} are of {', '.join(sorted(of))}, the agent in {run_dir} plays "
            f"{game}: name states of its game"
        )
    dtype = str(states.frames.dtype).removeprefix("torch.")
    _check_same(
        f"the agent in {run_dir} was trained on",
        teacher,
        f"the states in {where} have",
        (states.num_actions, states.stack, tuple(states.frames.shape[1:]), dtype),
        "name states of its game",
    )


def _check_same(
    whose: str,
    teacher: TrainedAgent,
    others: str,
    found: tuple[int, int, tuple[int, ...], str],
    advice: str,
) -> None:
    environment = teacher.config["environment"]
    known = (
        teacher.num_actions,
        environment["stack"],
        tuple(environment["frame_shape"]),
        environment["frame_dtype"],
    )
    names = ("actions", "frames in a state", "frames of the shape", "pixels of the type")
    for name, own, other in zip(names, known, found, strict=True):
        if own != other:
            raise UsageError(f"{whose} {own} {name}, {others} {other}: {advice}")


@dataclass(frozen=True)
class Examination:
    """The games in which teacher, baselines and students are all scored.

    | field | meaning |
    | --- | --- |
    | evaluator | plays the same games for each of them |
    | protocol, seed | what a score's record says of the games |
    """

    evaluator: Evaluator
    protocol: str
    seed: int

    def score(
        self,
        act: Act,
        *,
        epsilon: float | None = None,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Score | None:
        """Play all games; None if told to stop before their end.

        epsilon: another share of random actions, for what plays none or nothing else.
        """
        evaluator = self.evaluator if epsilon is None else replace(self.evaluator, epsilon=epsilon)
        played = evaluator.play(act, should_stop=should_stop, progress=progress)
        if played is None:
            return None
        summary = evaluator.summarise(played)
        return {
            "mean": summary["mean"],
            "games": summary["games"],
            "interval_95": summary["interval_95"],
            "returns": played.returns.tolist(),
            "human_normalised": summary["human_normalised"],
            "epsilon": evaluator.epsilon,
            "protocol": self.protocol,
            "seed": self.seed,
            "frames_played": summary["frames_played"],
        }


def constant_play(action: int, num_actions: int) -> Act:
    """The same action whatever is seen, but for the share of random ones."""
    outputs = functional.one_hot(torch.tensor([action]), num_actions)

    def act(
        stacks: Tensor,
        *,
        epsilon: float,
        rng: np.random.Generator,
        forced_random: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        return epsilon_greedy(
            outputs.expand(len(stacks), -1),
            epsilon=epsilon,
            rng=rng,
            forced_random=forced_random,
        )

    return act


def kept_score(path: Path, games: int, play: Callable[[], Score]) -> Score:
    """The score in this file if it is of so many games, or the one that `play` gives, kept there.

    Raises `EbuError` for a damaged file and where it cannot be written.
    """
    score = read_record(path, Score)
    if score is None or score["games"] != games:
        score = play()
        write_record(path, score)
    return score


def best_constant(scores: Sequence[Score]) -> Constant:
    """Of the scores of every constant action, in the order of the actions, the highest mean."""
    means = [score["mean"] for score in scores]
    action = int(np.argmax(means))
    return {"action": action, "evaluation": scores[action], "means": means}


def describe_teacher(
    teacher: TrainedAgent,
    run_dir: Path,
    states: StateSet,
    temperature: Temperature,
    *,
    temperature_setting: str,
    rounds: int,
    evaluation: Score,
    random: Score,
    constant: Constant,
) -> TeacherRecord:
    """All that is known of a teacher once its students' states are there."""
    settings, environment = teacher.config["settings"], teacher.config["environment"]
    source = states.sources[0]
    single = {"run_dir": str(run_dir), "network": settings["network"]}
    named = settings.get(ENSEMBLE, single)
    return {
        "run_dir": named["run_dir"],
        "game": settings["game"],
        "protocol": evaluation["protocol"],
        "network": named["network"],
        "frames": teacher.frames,
        "num_actions": teacher.num_actions,
        "parameters": num_parameters(teacher.network),
        "multiply_adds": multiply_adds(
            teacher.network,
            stack=environment["stack"],
            frame_shape=tuple(environment["frame_shape"]),
        ),
        "evaluation": evaluation,
        "random": random,
        "constant": constant,
        "gap": temperature.median_gap,
        "temperature": temperature.value,
        "temperature_setting": temperature_setting,
        "entropy": temperature.entropy,
        "states": {
            "train": len(states.train),
            "held_out": len(states.held_out),
            "rounds": rounds,
            "source": source.get("directory", source["from"]),
        },
    }
