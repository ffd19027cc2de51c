"""Collect states: in play of teacher or student, or from a run's replay memory."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.agent import epsilon_greedy
from agents.distillation.dataset import Dataset, hold_out
from ebu.errors import EbuError, UsageError
from ebu.frames import FrameStack, torch_dtype
from ebu.interfaces import Act, VectorEnvironment
from ebu.memory import unfilled
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import load_latest

EPSILON = 0.05
"""Share of random actions in collecting (Rusu et al. 2015)."""
_READ_BATCH = 512

Label = Callable[[Tensor], Tensor]
"""Teacher outputs (B, A) float32 for stacks (B, stack, *frame_shape)."""


def collect(
    env: VectorEnvironment,
    label: Label,
    *,
    count: int,
    rng: np.random.Generator,
    act: Act | None = None,
    epsilon: float = EPSILON,
    random_start_actions: int = 0,
    life_loss_ends_value: bool = False,
    device: torch.device | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Dataset | None:
    """Reset N environments and play until `count` states have been seen and labelled.

    Unfinished games are included, without their end: to leave them out would leave out long games,
    which are mostly the good ones. The states depend only on the policies, the environment's seed
    and `rng`.

    | argument | meaning |
    | --- | --- |
    | label | the teacher's outputs; called once for each step, with the stacks of all N |
    | act | chooses the actions, for instance a student's; None: the teacher |
    | epsilon | share of random actions |
    | rng | draws the exploration, then the episodes that are held out |
    | random_start_actions | the first actions of every game that are random whatever epsilon |
    | life_loss_ends_value | whether a lost life is `terminated`, as in replay memories |
    | device | where the policies compute; the CPU if not given |
    | should_stop | asked before every step; once it says yes, nothing is returned |
    | progress | called after every step with the number of states so far |

    Raises `EbuError` if all states are of one episode.
    """
    device = device or torch.device("cpu")
    record = _Record(env, count)
    stack = FrameStack(
        env.num_envs, env.frame_shape, torch_dtype(env.frame_dtype), env.stack, device
    )
    since_start = np.zeros(env.num_envs, dtype=np.int64)
    over = np.zeros(env.num_envs, dtype=bool)
    step = env.reset()
    while True:
        stacks = stack.push(step.frames, step.started)
        since_start[step.started] = 0
        record.start_games(step.started)
        if should_stop is not None and should_stop():
            return None
        outputs = label(stacks).float()
        forced = since_start < random_start_actions
        actions, _ = (
            epsilon_greedy(outputs, epsilon=epsilon, rng=rng, forced_random=forced)
            if act is None
            else act(stacks, epsilon=epsilon, rng=rng, forced_random=forced)
        )
        # In a game's last frame no action is chosen: it is no state.
        new = record.add(np.flatnonzero(~over), step.frames, outputs, actions)
        env.send(actions)
        step = env.recv()
        ended = step.terminated | step.life_lost if life_loss_ends_value else step.terminated
        record.add_consequences(new, step.rewards, ended)
        since_start += 1
        over = step.terminated | step.truncated
        if progress is not None:
            progress(record.seen)
        if record.seen == count:
            return record.dataset(rng)


class _Record:
    """States in the order in which they are seen, of all environments."""

    def __init__(self, env: VectorEnvironment, count: int) -> None:
        self.seen = 0
        self._stack = env.stack
        self._games = np.full(env.num_envs, -1)
        dtype = torch_dtype(env.frame_dtype)
        self._frames = unfilled((count, *env.frame_shape), dtype, torch.device("cpu"))
        self._outputs = torch.empty((count, env.num_actions), dtype=torch.float32)
        self._environment, self._game, self._action = np.zeros((3, count), dtype=np.int64)
        self._reward = np.zeros(count, dtype=np.float32)
        self._terminated = np.zeros(count, dtype=bool)

    def start_games(self, started: np.ndarray) -> None:
        self._games += started

    def add(
        self, which: np.ndarray, frames: np.ndarray, outputs: Tensor, actions: np.ndarray
    ) -> np.ndarray:
        """Add the states of these environments, as far as there is room; returns those added."""
        which = which[: len(self._reward) - self.seen]
        rows = slice(self.seen, self.seen + len(which))
        self._frames[rows] = torch.from_numpy(frames[which])
        self._outputs[rows] = outputs.cpu()[torch.from_numpy(which)]
        self._environment[rows] = which
        self._game[rows] = self._games[which]
        self._action[rows] = actions[which]
        self.seen += len(which)
        return which

    def add_consequences(
        self, which: np.ndarray, rewards: np.ndarray, terminated: np.ndarray
    ) -> None:
        rows = slice(self.seen - len(which), self.seen)
        self._reward[rows] = rewards[which]
        self._terminated[rows] = terminated[which]

    def dataset(self, rng: np.random.Generator) -> Dataset:
        # Stable: within a game the order is that of time.
        order = np.lexsort((self._game, self._environment))
        games = np.stack([self._environment[order], self._game[order]])
        begins = np.append(True, (games[:, 1:] != games[:, :-1]).any(axis=0))
        starts = np.flatnonzero(begins)
        rows = torch.from_numpy(order)
        return Dataset(
            frames=self._frames[rows],
            episodes=torch.from_numpy(starts),
            held_out_episodes=hold_out(np.diff(np.append(starts, len(order))), rng),
            newest=torch.arange(len(order)),
            outputs=self._outputs[rows],
            actions=torch.from_numpy(self._action[order]),
            rewards=torch.from_numpy(self._reward[order]),
            terminated=torch.from_numpy(self._terminated[order]),
            stack=self._stack,
        )


class _Piece(NamedTuple):
    """Consecutive stored transitions of one game in a replay memory."""

    stream: int
    start: int
    length: int


def from_replay(
    run_dir: Path, label: Label, *, rng: np.random.Generator, count: int | None = None
) -> Dataset:
    """States of the replay memory in a run's newest checkpoint, labelled by the teacher.

    Takes whole games in random order until there are `count` states (None: all), and cuts the last
    one. Games whose beginning was overwritten start later, with their context frames.

    Only reads: the run may be training. `rng` draws the order, then the held-out episodes. Raises
    `EbuError` if the run has no whole checkpoint, its frames cannot be read or do not fit in
    memory, or fewer than two games are stored.
    """
    checkpoint = load_latest(run_dir / "checkpoints", state_only=True)
    if checkpoint is None or "replay" not in checkpoint.state:
        raise EbuError(f"{run_dir} has no replay memory: name a run that was trained on games")
    try:
        replay = _load_replay(checkpoint.state["replay"])
    except UsageError as error:
        reason = str(error).partition(":")[0]
        raise EbuError(f"{run_dir}: {reason}: free some memory, or collect in play") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise EbuError(
            f"{checkpoint.directory} holds no replay memory of this version ({error!r}): collect "
            "in play"
        ) from error
    # Frames have checksums of their own.
    replay.read_frames(checkpoint.directory)
    pieces = list(_draw_pieces(list(_pieces(replay)), rng, count))
    if not pieces:
        raise EbuError(f"the replay memory of {run_dir} is empty: train on, or collect in play")
    return _gather(replay, pieces, label, rng)


def _load_replay(state: dict[str, dict[str, object]]) -> EpisodicReplay:
    saved: dict[str, object] = dict(state["construction"])
    saved["frame_dtype"] = getattr(torch, str(saved["frame_dtype"]).removeprefix("torch."))
    saved["frame_shape"] = tuple(saved["frame_shape"])  # type: ignore[arg-type]
    replay = EpisodicReplay(**saved, device=torch.device("cpu"))  # type: ignore[arg-type]
    replay.load_state_dict(state)
    return replay


def _pieces(replay: EpisodicReplay) -> Iterable[_Piece]:
    # A game's last frame has no transition, so games are never joined.
    steps = np.arange(max(0, replay.num_steps - replay.ring_length), replay.num_steps)
    for stream in range(replay.num_streams):
        stored = replay.stored(steps, np.full(len(steps), stream)).astype(np.int8)
        edges = np.diff(stored, prepend=0, append=0)
        for start, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            yield _Piece(stream, int(steps[start]), int(end - start))


def _draw_pieces(
    pieces: list[_Piece], rng: np.random.Generator, count: int | None
) -> Iterable[_Piece]:
    left = sum(piece.length for piece in pieces) if count is None else count
    for index in rng.permutation(len(pieces)).tolist():
        if left <= 0:
            return
        piece = pieces[index]
        yield piece._replace(length=min(piece.length, left))
        left -= piece.length


def _gather(
    replay: EpisodicReplay, pieces: list[_Piece], label: Label, rng: np.random.Generator
) -> Dataset:
    contexts = [_context(replay, piece) for piece in pieces]
    lengths = np.array([piece.length for piece in pieces])
    frames_of = lengths + [len(context) for context in contexts]
    starts = np.cumsum(frames_of) - frames_of
    count = int(lengths.sum())
    frames = unfilled(
        (int(frames_of.sum()), *replay.frame_shape), replay.frame_dtype, torch.device("cpu")
    )
    newest = torch.empty(count, dtype=torch.int64)
    actions, rewards = torch.empty(count, dtype=torch.int64), torch.empty(count)
    terminated = torch.empty(count, dtype=torch.bool)
    state = 0
    for piece, context, start in zip(pieces, contexts, starts.tolist(), strict=True):
        row = start + len(context)
        frames[start:row] = context
        for first in range(0, piece.length, _READ_BATCH):
            steps = piece.start + np.arange(first, min(first + _READ_BATCH, piece.length))
            batch = replay.read(steps, np.full(len(steps), piece.stream))
            states, rows = slice(state, state + len(steps)), slice(row, row + len(steps))
            frames[rows] = batch.states[:, -1]
            newest[states] = torch.arange(row, row + len(steps))
            actions[states], rewards[states] = batch.actions, batch.rewards
            terminated[states] = batch.terminated
            state, row = state + len(steps), row + len(steps)
    return Dataset(
        frames=frames,
        episodes=torch.from_numpy(starts),
        held_out_episodes=hold_out(lengths, rng),
        newest=newest,
        outputs=torch.empty(count, 0),
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        stack=replay.stack,
    ).relabelled(label)


def _context(replay: EpisodicReplay, piece: _Piece) -> Tensor:
    """The stored frames before a piece that its first state holds: (at most stack − 1, …)."""
    first = replay.read(np.array([piece.start]), np.array([piece.stream])).states[0, :-1]
    # Zeros before a game's first frame, and real black frames there, make the same states absent.
    seen = first.flatten(1).any(dim=1).nonzero()
    return first[int(seen[0]) :] if len(seen) else first[:0]
