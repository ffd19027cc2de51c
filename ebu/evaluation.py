"""Play a policy in fresh games to score it: environments, seeds, and the rules of play."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from ebu.frames import FrameStack, torch_dtype
from ebu.interfaces import Act, Exploration, TrainingEnvironment, VectorEnvironment
from ebu.run.progress import starting
from ebu.statistics import human_normalised, mean_interval

MOST_ENVIRONMENTS = 16
# Far from the children 0, 1, … of a training seed: an evaluation never plays training games.
EVALUATION_STREAM = int.from_bytes(b"eval")


@dataclass(frozen=True)
class Evaluation:
    """Games played to their end, those of one environment after those of the one before it.

    | field | shape, dtype | meaning |
    | --- | --- | --- |
    | returns | (G,) float64 | raw score of each game |
    | lengths_frames | (G,) int64 | frames the agent played: agent steps × frames per step |
    | capped | (G,) bool | ended by the time limit; counted like any other game |
    | environments | (G,) int64 | the environment that played the game |
    | starts, stops | (G,) int64 | the game's actions are `actions[environment][start:stop]` |
    | actions | N arrays (steps,) int64 | everything sent to each environment after its reset, up to
      the end of its last game: with its seed, all that it takes to play its games again |
    """

    returns: np.ndarray
    lengths_frames: np.ndarray
    capped: np.ndarray
    environments: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    actions: list[np.ndarray]

    @property
    def best_game(self) -> int:
        """Index of the game with the highest return, the first of several."""
        return int(self.returns.argmax())

    def recording(self, game: int) -> tuple[int, np.ndarray, int, int]:
        """The game's environment, all actions sent there, and where in them it starts and stops."""
        j = int(self.environments[game])
        return j, self.actions[j], int(self.starts[game]), int(self.stops[game])


class Seeds(NamedTuple):
    """What the games of an evaluation and its exploration are drawn from."""

    environments: int
    exploration: np.random.SeedSequence


def seeds_at(run_seed: int, frames: int) -> Seeds:
    """Seeds of the evaluation of a run at this frame: it takes nothing from the run's streams."""
    return _seeds(np.random.SeedSequence([run_seed, frames]))


def seeds_of(seed: int) -> Seeds:
    """Seeds of an evaluation after training, from its own seed."""
    return _seeds(np.random.SeedSequence(seed, spawn_key=(EVALUATION_STREAM,)))


def _seeds(sequence: np.random.SeedSequence) -> Seeds:
    environments, exploration = sequence.spawn(2)
    return Seeds(int(np.random.default_rng(environments).integers(2**31)), exploration)


def environments_for(episodes: int) -> int:
    """Games to play at the same time: the fewest that need the fewest rounds (30 games: 15)."""
    rounds = -(-episodes // MOST_ENVIRONMENTS)
    return -(-episodes // rounds)


@dataclass(frozen=True)
class Evaluator:
    """Scores policies in the same fresh games, under one set of rules.

    | field | meaning |
    | --- | --- |
    | new_env | new environments from their number and a seed, with the rules' caps and no-ops |
    | num_envs, episodes | environments, and games that they play in all, each to its end |
    | seeds | of the environments and of the exploration; each policy gets the same |
    | epsilon | share of random actions |
    | random_start_actions | first actions of every game that are random whatever epsilon |
    | random_score, human_score | reference scores; None where there are none |
    | human_table | the table that the human score is from |
    | device | where the stacks of frames are |
    """

    new_env: Callable[[int, int], TrainingEnvironment]
    num_envs: int
    episodes: int
    seeds: Seeds
    epsilon: float
    random_start_actions: int
    random_score: float | None
    human_score: float | None
    human_table: str
    device: torch.device

    def make_env(self) -> TrainingEnvironment:
        """New environments, seeded alike in every call; the caller closes them."""
        return self.new_env(self.num_envs, self.seeds.environments)

    def play(
        self,
        act: Act,
        *,
        env: VectorEnvironment | None = None,
        should_stop: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
        watch: Callable[[np.ndarray], None] | None = None,
    ) -> Evaluation | None:
        """Play all games; None if told to stop before their end.

        `env`: from `make_env`, where the caller needs it too.
        """
        with contextlib.ExitStack() as opened:
            if env is None:
                env = opened.enter_context(contextlib.closing(self.make_env()))
            return evaluate(
                act,
                env,
                episodes=self.episodes,
                epsilon=self.epsilon,
                rng=np.random.default_rng(self.seeds.exploration),
                random_start_actions=self.random_start_actions,
                device=self.device,
                should_stop=should_stop,
                progress=progress,
                watch=watch,
            )

    def summarise(self, played: Evaluation) -> dict[str, Any]:
        """The games' statistics in JSON values, with the reference scores: see `summarise`."""
        return summarise(
            played,
            random_score=self.random_score,
            human_score=self.human_score,
            human_table=self.human_table,
        )


def random_play(num_actions: int) -> Act:
    """A policy of uniformly random actions."""

    def act(stacks: Tensor, **exploration: Unpack[Exploration]) -> tuple[np.ndarray, np.ndarray]:
        actions = exploration["rng"].integers(num_actions, size=len(stacks))
        return actions, np.full(len(stacks), 1 / num_actions, dtype=np.float32)

    return act


def evaluate(
    act: Act,
    env: VectorEnvironment,
    *,
    episodes: int,
    epsilon: float,
    rng: np.random.Generator,
    random_start_actions: int = 0,
    device: torch.device | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[np.ndarray], None] | None = None,
) -> Evaluation | None:
    """Reset N environments and play `episodes` games in them, each to its end.

    Every environment plays a fixed number of games. Counting the first games to finish instead
    would favour short games, which mostly have low scores.

    | argument | meaning |
    | --- | --- |
    | act | chooses the actions, see `Act` |
    | epsilon | share of random actions |
    | rng | draws the exploration; nothing else is drawn |
    | random_start_actions | the first actions of every game that are random whatever epsilon |
    | device | where the stacks are kept; the CPU if not given |
    | should_stop | asked before every step; once it says yes, nothing is returned |
    | progress | called with the number of finished games when it has grown |
    | watch | called after every step with the actions (N,) that were sent |

    Raises ValueError with fewer than one game for each environment.
    """
    num_envs = env.num_envs
    if episodes < num_envs:
        raise ValueError(f"{num_envs} environments cannot share {episodes} games")
    stack = FrameStack(
        num_envs,
        env.frame_shape,
        torch_dtype(env.frame_dtype),
        env.stack,
        device or torch.device("cpu"),
    )
    games_left = np.full(num_envs, episodes // num_envs)
    games_left[: episodes % num_envs] += 1

    returns = np.zeros(num_envs, dtype=np.float64)
    starts = np.zeros(num_envs, dtype=np.int64)
    games: list[list[tuple[float, bool, int, int]]] = [[] for _ in range(num_envs)]
    sent: list[np.ndarray] = []

    with starting(num_envs, "games"):
        step = env.reset()
    stacks = stack.push(step.frames, step.started)
    while games_left.any():
        if should_stop is not None and should_stop():
            return None
        # Environments that have played their games are stepped on, and ignored.
        playing = games_left > 0
        forced = len(sent) - starts < random_start_actions
        actions = np.zeros(num_envs, dtype=np.int64)
        actions[playing], _ = act(
            stacks if playing.all() else stacks[torch.from_numpy(playing).to(stacks.device)],
            epsilon=epsilon,
            rng=rng,
            forced_random=forced[playing],
        )
        env.send(actions)
        sent.append(actions)
        step = env.recv()
        stacks = stack.push(step.frames, step.started)
        if watch is not None:
            watch(actions)

        returns += step.rewards
        returns[step.started] = 0
        starts[step.started] = len(sent)
        for j in np.flatnonzero((step.terminated | step.truncated) & playing):
            games[j].append((returns[j], bool(step.truncated[j]), starts[j], len(sent)))
            games_left[j] -= 1
            if progress is not None:
                progress(episodes - int(games_left.sum()))

    played = [(*game, j) for j, of_one in enumerate(games) for game in of_one]
    scores, capped, first, last, environments = zip(*played, strict=True)
    by_environment = np.stack(sent, axis=1)
    return Evaluation(
        returns=np.array(scores, dtype=np.float64),
        lengths_frames=(np.array(last) - np.array(first)) * env.frames_per_step,
        capped=np.array(capped, dtype=bool),
        environments=np.array(environments, dtype=np.int64),
        starts=np.array(first, dtype=np.int64),
        stops=np.array(last, dtype=np.int64),
        actions=[by_environment[j, : of_one[-1][3]].copy() for j, of_one in enumerate(games)],
    )


def summarise(
    evaluation: Evaluation,
    *,
    random_score: float | None = None,
    human_score: float | None = None,
    human_table: str | None = None,
) -> dict[str, Any]:
    """Describe an evaluation in JSON values.

    | key | meaning |
    | --- | --- |
    | games, capped_games | all games, and those ended by the time limit |
    | mean, median, deviation | of the raw scores; deviation: None for a single game |
    | interval_95 | [low, high] for the mean by Student's t; None for a single game |
    | frames_played, mean_length_frames | frames the agent played, in all and per game |
    | human_normalised, human_table | the mean as a share of the way from random to human play and
      the table whose scores were used; None without reference scores |
    """
    returns = evaluation.returns
    mean = float(returns.mean())
    interval = mean_interval(returns)
    normalised = None
    if random_score is not None and human_score is not None:
        normalised = human_normalised(mean, random_score, human_score)
    return {
        "games": len(returns),
        "capped_games": int(evaluation.capped.sum()),
        "mean": mean,
        "median": float(np.median(returns)),
        "deviation": float(returns.std(ddof=1)) if len(returns) > 1 else None,
        "interval_95": None if interval is None else list(interval),
        "frames_played": int(evaluation.lengths_frames.sum()),
        "mean_length_frames": float(evaluation.lengths_frames.mean()),
        "human_normalised": normalised,
        "human_table": None if normalised is None else human_table,
    }
