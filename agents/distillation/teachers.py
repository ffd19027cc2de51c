"""The teacher: loaded and checked, its temperature, and constant policies.

The temperature τ divides the teacher's outputs before they are a policy. It is in units of the
values: the temperatures of classification, 3 to 20, make nearly every policy of Q-values uniform.
Published are 0.01 (Rusu et al. 2015) and 0.1 (Agarwal et al. 2022), for values of clipped rewards.
`auto`, this project's own rule, is the median over states of the gap between the teacher's best and
second-best action, leaving out those that do the same as the best: in the median state the best
action is then e times as probable as the next, whatever the scale of the rewards.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agents.agent import epsilon_greedy
from agents.distillation.dataset import Dataset
from agents.distillation.records import Constant, GameScores
from agents.distillation.settings import DistillConfig, load_experimental, read_temperature
from agents.trained import Outputs, TrainedAgent
from ebu.errors import EbuError, UsageError
from ebu.interfaces import Act, Exploration, VectorEnvironment

SAME_SHARE = 0.1
"""Actions whose outputs differ by less, as a share of a state's range, do the same."""
ENSEMBLE = "ensemble"
"""An ensemble's entry in its settings: its `run_dir` and `network` in words."""


class Teacher(NamedTuple):
    """A teacher: its run, and which of the run's learners; None: the one that plays."""

    agent: TrainedAgent
    run_dir: Path
    learner: int | None = None

    @property
    def name(self) -> str:
        return str(self.run_dir) + ("" if self.learner is None else f" learner {self.learner}")


def load_teachers(
    config: DistillConfig, device: torch.device, load: Callable[[Path], TrainedAgent]
) -> dict[str, list[Teacher]]:
    """Load all teachers by `load`, by their games in the order of the command line.

    Raises `UsageError` for a run that is named twice, and for agents of a game that do not fit
    together.
    """
    run_dirs = config.run_dirs
    if len({run_dir.resolve() for run_dir in run_dirs}) < len(run_dirs):
        raise UsageError(f"{' '.join(map(str, run_dirs))}: name each run once")
    games: dict[str, list[Teacher]] = {}
    for run_dir in run_dirs:
        if config.all_learners:
            found = load_experimental("ensemble").learners_of(run_dir, config.weights, device)
        else:
            found = [Teacher(load(run_dir), run_dir)]
        games.setdefault(str(found[0].agent.config["settings"]["game"]), []).extend(found)
    for members in games.values():
        if len(members) > 1:
            load_experimental("ensemble").check_members(members)
    return games


def check_plays(teacher: TrainedAgent, run_dir: Path, env: VectorEnvironment) -> None:
    """Raise `UsageError` unless the teacher fits this environment."""
    found = env.num_actions, env.stack, tuple(env.frame_shape), str(env.frame_dtype)
    advice = "evaluate and distil it with the version of the game that it was trained on"
    _check_same(teacher, run_dir, "its game has here", found, advice)


def check_states(teacher: TrainedAgent, run_dir: Path, states: Dataset, where: Path) -> None:
    """Raise `UsageError` unless these states, from `where`, are of the teacher's game."""
    game = teacher.config["settings"]["game"]
    of = {source["game"] for source in states.sources if "game" in source} - {game}
    if of:
        raise UsageError(
            f"the states in {where} are of {', '.join(sorted(of))}, the agent in {run_dir} plays "
            f"{game}: name states of its game"
        )
    dtype = str(states.frames.dtype).removeprefix("torch.")
    found = states.num_actions, states.stack, tuple(states.frames.shape[1:]), dtype
    others = f"the states in {where} have"
    _check_same(teacher, run_dir, others, found, "name states of its game")


def _check_same(
    teacher: TrainedAgent,
    run_dir: Path,
    others: str,
    found: tuple[int, int, tuple[int, ...], str],
    advice: str,
) -> None:
    known = teacher.config["environment"]
    expected = {
        "actions": teacher.num_actions,
        "frames in a state": known["stack"],
        "frames of the shape": tuple(known["frame_shape"]),
        "pixels of the type": known["frame_dtype"],
    }
    for (name, own), other in zip(expected.items(), found, strict=True):
        if own != other:
            raise UsageError(
                f"the agent in {run_dir} was trained on {own} {name}, {others} {other}: {advice}"
            )


@dataclass(frozen=True)
class Temperature:
    """A temperature and its effect on the teacher.

    | field | unit | meaning |
    | --- | --- | --- |
    | value | of the outputs | τ |
    | median_gap | of the outputs | see `median_gap` |
    | entropy | nats | of softmax(outputs / τ), the mean over states; at most log A |
    """

    value: float
    median_gap: float
    entropy: float


def temperature_of(setting: str, outputs: Tensor, *, kind: Outputs = "values") -> Temperature:
    """The temperature of a setting for a teacher's outputs (N, A) float32.

    | setting | τ |
    | --- | --- |
    | auto | `median_gap(outputs)`; 1 for a teacher whose outputs are a policy's logits already |
    | rusu | 0.01 |
    | a number | that number |

    Raises `UsageError` for another setting, `EbuError` for auto where the median gap is 0.
    """
    gap, value = float(median_gap(outputs)), read_temperature(setting)
    if value is None:
        value = 1.0 if kind == "logits" else gap
        if not (value > 0 and math.isfinite(value)):
            raise EbuError(
                f"the median gap between the teacher's two best actions is {value:g}: it gives no "
                "temperature; set one with --temperature, or train the teacher further"
            )
    return Temperature(value, gap, mean_entropy(outputs, value))


def median_gap(outputs: Tensor) -> Tensor:
    """Median () float64 over states of best minus second-best of their outputs (N, A), A ≥ 2.

    The second-best is of the actions that do not do the same as the best, see `same_actions`: the
    gap between an action and its double is the noise of the teacher. 0 where all do the same.
    """
    best, actions = outputs.max(dim=1)
    others = outputs.masked_fill(same_actions(outputs)[actions], -math.inf).amax(dim=1)
    gaps = torch.where(others.isneginf(), torch.nan, best - others)
    return gaps.double().nanquantile(0.5).nan_to_num(0.0)


def same_actions(outputs: Tensor) -> Tensor:
    """Which actions do the same, by their outputs (N, A): (A, A) bool, symmetric.

    In Pong, RIGHT and RIGHTFIRE. Two actions do the same if their outputs differ in the median
    state by at most `SAME_SHARE` of the median range of a state's outputs; own rule.
    """
    least = SAME_SHARE * (outputs.amax(dim=1) - outputs.amin(dim=1)).median()
    medians = [
        (outputs - outputs[:, [action]]).abs().median(dim=0).values
        for action in range(outputs.shape[1])
    ]
    return torch.stack(medians) <= least


def mean_entropy(outputs: Tensor, temperature: float) -> float:
    """Mean entropy of softmax(outputs / τ) over the states, in nats."""
    probabilities = torch.softmax(outputs.double() / temperature, dim=1)
    return float(torch.special.entr(probabilities).sum(dim=1).mean())


def constant_play(action: int, num_actions: int) -> Act:
    """A policy of one action, apart from the share of random ones."""
    outputs = functional.one_hot(torch.tensor([action]), num_actions)

    def act(stacks: Tensor, **exploration: Unpack[Exploration]) -> tuple[np.ndarray, np.ndarray]:
        return epsilon_greedy(outputs.expand(len(stacks), -1), **exploration)

    return act


def best_constant(scores: Sequence[GameScores]) -> Constant:
    """The highest mean among the scores of all constant actions, in the order of the actions."""
    means = [score["mean"] for score in scores]
    action = int(np.argmax(means))
    return {"action": action, "evaluation": scores[action], "means": means}
