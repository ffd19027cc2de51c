"""A world small enough to know by heart: games, action values, a record of what was played."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents import AGENTS, Agent, LearnerConfig, build_agent
from agents.noisy import Noise
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import load_latest, save_checkpoint
from ebu.run.ranks import SINGLE
from ebu.segments import Segment
from envs import VectorStep

NUM_ACTIONS = 3
GAMMA = 0.9
CPU = torch.device("cpu")


class Game(NamedTuple):
    """A game that ends after `length` agent steps; a life is gone after each of `life_losses`."""

    length: int
    truncated: bool = False
    life_losses: tuple[int, ...] = ()


def games_of(*environments: Sequence[Game | int]) -> Callable[[int, int], Game]:
    """Given games for each environment (a number is a length), the last of them for ever."""

    def game(env: int, number: int) -> Game:
        given = environments[env % len(environments)]
        chosen = given[min(number, len(given) - 1)]
        return Game(chosen) if isinstance(chosen, int) else chosen

    return game


def random_games(seed: int, longest: int) -> Callable[[int, int], Game]:
    """Games of any length up to `longest`, some cut by a time limit, some with lost lives."""

    def game(env: int, number: int) -> Game:
        rng = np.random.default_rng((seed, env, number))
        length = int(rng.integers(1, longest + 1))
        losses = tuple(int(step) for step in np.flatnonzero(rng.random(length - 1) < 0.05) + 1)
        return Game(length, bool(rng.random() < 0.3), losses)

    return game


def reward_of(env: Any, game: Any, step: Any, action: Any) -> Any:
    """Raw reward in [-2.5, 2.5] of the action that led to this step of a game."""
    return ((env + 3 * game + 5 * step + 7 * action) % 11 - 5) / 2


class MadeUpGames:
    """N environments whose frames say where they are: [environment, game, step], all from 1."""

    num_actions, frames_per_step = NUM_ACTIONS, 4
    frame_shape, frame_dtype = (3,), np.dtype(np.float32)
    observation = "where and when it is"

    def __init__(self, num_envs: int, games: Callable[[int, int], Game], *, stack: int = 3) -> None:
        self.num_envs, self.games, self.stack = num_envs, games, stack
        self.rows: list[VectorStep] = []
        self.closed = False

    def reset(self) -> VectorStep:
        self.game, self.step = np.full(self.num_envs, -1), np.full(self.num_envs, -1)
        self.over = np.ones(self.num_envs, dtype=bool)
        self.actions = np.zeros(self.num_envs, dtype=np.int64)
        return self.recv()

    def send(self, actions: np.ndarray) -> None:
        assert actions.shape == (self.num_envs,)
        assert actions.dtype == np.int64
        assert ((actions >= 0) & (actions < NUM_ACTIONS)).all()
        self.actions = actions.copy()

    def recv(self) -> VectorStep:
        started = self.over.copy()
        self.game = self.game + started
        self.step = np.where(started, 0, self.step + 1)
        env = np.arange(self.num_envs)
        games = [self.games(j, int(self.game[j])) for j in range(self.num_envs)]
        self.over = self.step == [game.length for game in games]
        cut = np.array([game.truncated for game in games])
        lost = np.array([int(self.step[j]) in games[j].life_losses for j in env])
        rewards = np.where(started, 0, reward_of(env, self.game, self.step, self.actions))
        frames = np.stack([env + 1, self.game + 1, self.step + 1], axis=1).astype(np.float32)
        row = VectorStep(
            frames,
            rewards.astype(np.float32),
            self.over & ~cut,
            self.over & cut,
            lost & ~self.over & ~started,
            started,
        )
        self.rows.append(row)
        return row

    def state_dict(self) -> dict[str, Any]:
        return {"game": self.game, "step": self.step, "over": self.over}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.game, self.step, self.over = state["game"], state["step"], state["over"]

    def seedings(self) -> dict[str, Any]:
        return {"game": self.game}

    def reseed(self, seed: int) -> None: ...

    def start_fresh(self, state: dict[str, Any]) -> VectorStep:
        self.game, self.step = state["game"].copy(), np.zeros(self.num_envs, dtype=np.int64)
        self.over, self.actions = np.ones(self.num_envs, dtype=bool), self.game * 0
        return self.recv()

    def close(self) -> None:
        self.closed = True


def table_values(states: Tensor, salt: int = 0) -> Tensor:
    """Made-up action values (B, A) of states, the same for a state in whatever batch it is."""
    env, game, step = (states[:, -1, column].long()[:, None] for column in range(3))
    action = torch.arange(NUM_ACTIONS)
    mixed = (env * 7919 + game * 104_729 + step * 1_299_709) * (action + 3) + salt * 15_485_863
    return ((mixed % 1009).float() - 504) / 200


class Update(NamedTuple):
    states: Tensor
    actions: Tensor
    targets: Tensor


class TableLearner:
    """Stands in for a learner: fixed values, and a note of every pass and every update."""

    device = CPU
    config = LearnerConfig()
    noise = Noise((), (0,))
    ranks = SINGLE

    def __init__(self) -> None:
        self.salt = 0
        self.passes: list[int] = []
        self.noted: list[Update] = []
        self.updates = 0

    def values(self, states: Tensor) -> Tensor:
        return table_values(states, self.salt)

    def playing_values(self, states: Tensor) -> Tensor:
        return self.values(states)

    def target_values(self, states: Tensor) -> Tensor:
        self.passes.append(len(states))
        return table_values(states, self.salt)

    def update(
        self, states: Tensor, actions: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.noted.append(Update(states.clone(), actions.clone(), targets.clone()))
        return torch.tensor(0.0), targets

    longest_group = 1_000
    target_axes = ()

    def count_updates(self, count: int) -> bool:
        self.updates += count
        return False

    def tensors(self) -> list[Tensor]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"salt": self.salt, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.salt, self.updates = state["salt"], state["updates"]


class Seen(NamedTuple):
    """One transition as it was played."""

    step: int  # absolute, as the replay memory counts
    state: np.ndarray
    action: int
    reward: float
    terminated: bool
    next_state: np.ndarray


Place = tuple[int, int, int]
"""Environment, game and step, from 1: what the newest frame of a state says."""


def places(states: Tensor) -> list[Place]:
    """Where each of these states was."""
    return [(int(env), int(game), int(step)) for env, game, step in states[:, -1].tolist()]


class Played:
    """Plays at random into a replay memory, where lost lives end segments; remembers it all."""

    def __init__(self, env: MadeUpGames, *, capacity: int, seed: int = 0) -> None:
        self.env = env
        self.replay = empty_replay(capacity, env.num_envs, env.stack)
        self.rng = np.random.default_rng(seed)
        self.seen: dict[Place, Seen] = {}
        self.count = 0
        self._stacks = np.zeros((env.num_envs, env.stack, 3), dtype=np.float32)
        self._append(env.reset(), np.zeros(env.num_envs, dtype=np.int64))

    def play(self, steps: int) -> None:
        for _ in range(steps):
            actions = self.rng.integers(NUM_ACTIONS, size=self.env.num_envs)
            self.env.send(actions)
            self._append(self.env.recv(), actions)

    def _append(self, row: VectorStep, actions: np.ndarray) -> None:
        terminated = row.terminated | row.life_lost
        probabilities = np.full(self.env.num_envs, 1 / NUM_ACTIONS, dtype=np.float32)
        self.replay.append(
            row.frames, actions, row.rewards, terminated, row.truncated, row.started, probabilities
        )
        before = self._stacks
        self._stacks = np.concatenate([before[:, 1:], row.frames[:, None]], axis=1)
        self._stacks[row.started, :-1] = 0
        for j in np.flatnonzero(~row.started):
            where = tuple(before[j, -1].astype(int).tolist())
            self.seen[where] = Seen(
                self.count - 1,
                before[j],
                int(actions[j]),
                float(row.rewards[j]),
                bool(terminated[j]),
                self._stacks[j],
            )
        self.count += 1

    def transitions(self, env: int, game: int) -> list[Seen]:
        """A whole game, counted from 1."""
        return [seen for place, seen in self.seen.items() if place[:2] == (env, game)]

    def check(self, update: Update) -> None:
        """What was trained on was seen like this, and none of its frames had been overwritten."""
        oldest = self.count - self.replay.ring_length
        for state, place, action in zip(
            update.states, places(update.states), update.actions.tolist(), strict=True
        ):
            seen = self.seen[place]
            assert torch.equal(state, torch.from_numpy(seen.state))
            assert action == seen.action
            context = int((seen.state[:-1, 0] > 0).sum())
            assert seen.step - context >= oldest


def empty_replay(capacity: int, num_streams: int, stack: int) -> EpisodicReplay:
    return EpisodicReplay(
        capacity=capacity,
        num_streams=num_streams,
        frame_shape=MadeUpGames.frame_shape,
        frame_dtype=torch.float32,
        stack=stack,
        device=CPU,
    )


def one_terminated_game(rewards: Sequence[float], action: int) -> EpisodicReplay:
    """One game in which the same action earns these rewards; its frames hold the step, from 1."""
    replay = empty_replay(capacity=40, num_streams=1, stack=2)
    for step, reward in enumerate([0.0, *rewards]):
        replay.append(
            np.full((1, 3), step + 1, dtype=np.float32),
            np.array([action]),
            np.array([reward], dtype=np.float32),
            terminated=np.array([step == len(rewards)]),
            truncated=np.array([False]),
            started=np.array([step == 0]),
            probabilities=np.ones(1, dtype=np.float32),
        )
    return replay


def one_stream(*games: Game | int) -> tuple[Played, list[Segment]]:
    """Games played to their end, one after the other, and their segments: one each."""
    whole = [Game(game) if isinstance(game, int) else game for game in games]
    longest = max(game.length for game in whole)
    steps = sum(game.length + 1 for game in whole) - 1
    played = Played(MadeUpGames(1, games_of(whole)), capacity=4 * max(longest, steps))
    played.play(steps)
    segments, start = [], 0
    for game in whole:
        segments.append(Segment(0, start, game.length, not game.truncated))
        start += game.length + 1
    return played, segments


Rows = set[tuple[int, int]]
"""Transitions as (game, step in the game), both from 1."""


def rows(game: int, first: int, last: int) -> Rows:
    return {(game, step) for step in range(first, last + 1)}


def draws_in_order(replay: EpisodicReplay, segments: Iterable[Segment]) -> None:
    """Let the replay memory draw these segments, one after the other."""
    order: Iterator[Segment] = iter(segments)
    replay.segments.draw = lambda rng: next(order)  # type: ignore[method-assign]


def agent_of(name: str, learner: Any, seed: int = 0, **config: Any) -> Agent:
    """An agent of this name on a stand-in for a learner; minibatches of 8 unless told otherwise."""
    settings = replace(AGENTS[name], **{"gamma": GAMMA, "batch_size": 8, **config})
    return build_agent(settings, learner, np.random.default_rng(seed))


def ebu_of(learner: Any, seed: int = 0, **config: Any) -> Agent:
    """An EBU agent with minibatches of 32 from one segment, unless told otherwise."""
    return agent_of("ebu", learner, seed, **{"batch_size": 32, "mix_segments": 1, **config})


def trained(
    learner: TableLearner, agent: Agent, replay: EpisodicReplay, updates: int
) -> list[Rows]:
    """What each of the next updates trains on, every transition once."""
    before = len(learner.noted)
    agent.learn(replay, updates)
    minibatches = []
    for update in learner.noted[before:]:
        rows = [(game, step) for _, game, step in places(update.states)]
        assert len(rows) == len(update.targets) == agent.config.batch_size
        minibatches.append(set(rows))
    return minibatches


def targets_by_row(updates: Iterable[Update]) -> dict[tuple[int, int], float]:
    return {
        (game, step): target
        for update in updates
        for (_, game, step), target in zip(
            places(update.states), update.targets.tolist(), strict=True
        )
    }


def through_disk(state: dict[str, Any], directory: Path) -> dict[str, Any]:
    """A state as the next process gets it."""
    save_checkpoint(directory, "frames-000000000001", state)
    checkpoint = load_latest(directory)
    assert checkpoint is not None
    return checkpoint.state


def same(one: Any, other: Any) -> bool:
    """Whether two states hold the same values, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


def assert_are_best(actions: Sequence[int], values: Tensor) -> None:
    """Each action has the highest of its row's values, up to rounding."""
    taken = values[range(len(actions)), actions]
    best, worst = values.amax(dim=1), values.amin(dim=1)
    assert (best - taken <= 1e-3 * (best - worst)).all()


MIXED = (Game(9), Game(6, truncated=True), Game(12, life_losses=(4, 7)), Game(1))
"""Games that end, are cut, lose lives, and end at once."""


class TwoTables(TableLearner):
    """Its online network has other values than its target network."""

    def values(self, states: Tensor) -> Tensor:
        return table_values(states, self.salt + 1)
