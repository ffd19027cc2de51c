"""Collect states: in play of teacher or student, or from a run's replay memory."""

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.agent import epsilon_greedy
from agents.distillation.dataset import Dataset, hold_out
from ebu.errors import EbuError, UsageError
from ebu.frames import FrameStack, torch_dtype
from ebu.host_memory import unfilled
from ebu.interfaces import Act, VectorEnvironment
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import load_latest
from ebu.state_checks import REFUSED

EPSILON = 0.05
"""Share of random actions in collecting (Rusu et al. 2015)."""
PART, FEWEST_PARTS = 64, 16
"""Consecutive states that are kept or left out together: few frames are stored as mere context.
Shorter where so few states are wanted that they would be of less parts than that."""
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
    """Reset N environments, play whole games, and keep `count` of their states.

    Games begin until `count` states have been seen, and all that have begun are played to their
    end: otherwise what only long games show would be missing, and those are mostly the good ones.
    Of all states of all games parts of up to `PART` consecutive ones are kept at random. They
    depend only on the policies, the environment's seed and `rng`.

    | argument | meaning |
    | --- | --- |
    | label | the teacher's outputs; called once for each step, with the stacks of all that play |
    | act | chooses the actions, for instance a student's; None: the teacher |
    | epsilon | share of random actions |
    | rng | draws the exploration, then the games that are held out; the parts by a child |
    | random_start_actions | the first actions of every game that are random whatever epsilon |
    | life_loss_ends_value | whether a lost life is `terminated`, as in replay memories |
    | device | where the policies compute; the CPU if not given |
    | should_stop | asked before every step; once it says yes, nothing is returned |
    | progress | called after every step with the number of states so far, at most `count` |

    Raises `EbuError` if all states are of one game.
    """
    device = device or torch.device("cpu")
    record = _Record(env, count, rng.spawn(1)[0])
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
        if not record.playing.any():
            return record.dataset(rng)
        if should_stop is not None and should_stop():
            return None
        playing = np.flatnonzero(record.playing)
        if len(playing) < env.num_envs:
            stacks = stacks[torch.from_numpy(playing).to(device)]
        outputs = label(stacks).float()
        forced = since_start[playing] < random_start_actions
        actions = np.zeros(env.num_envs, dtype=np.int64)
        actions[playing], _ = (
            epsilon_greedy(outputs, epsilon=epsilon, rng=rng, forced_random=forced)
            if act is None
            else act(stacks, epsilon=epsilon, rng=rng, forced_random=forced)
        )
        # In a game's last frame no action is chosen: it is no state.
        new = {
            int(j): output for j, output in zip(playing, outputs.cpu(), strict=True) if not over[j]
        }
        env.send(actions)
        frames, step = step.frames, env.recv()
        over = step.terminated | step.truncated
        ended = step.terminated | step.life_lost if life_loss_ends_value else step.terminated
        for j, output in new.items():
            record.add(
                j, frames[j], output, actions[j], step.rewards[j], bool(ended[j]), last=over[j]
            )
        since_start += 1
        if progress is not None:
            progress(min(record.seen, count))


@dataclass
class _Part:
    """Consecutive states of a game: which, and what has been seen of them.

    context: up to stack − 1 frames before the first, of the same game; order: where the part comes
    among all when they are thinned, uniform in [0, 1).
    """

    environment: int
    game: int
    number: int
    order: float
    context: list[np.ndarray]
    frames: list[np.ndarray] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def place(self) -> tuple[int, int, int]:
        return self.environment, self.game, self.number

    @property
    def whole_game(self) -> tuple[int, int]:
        return self.environment, self.game

    def cut(self, length: int) -> None:
        """Leave out what comes after the first states."""
        for values in (self.frames, self.outputs, self.actions, self.rewards, self.terminated):
            del values[length:]


class _Record:
    """Parts of the games of all environments, of which those first in order are kept."""

    def __init__(self, env: VectorEnvironment, count: int, rng: np.random.Generator) -> None:
        self.seen = 0
        self.playing = np.ones(env.num_envs, dtype=bool)
        """Environments whose game has begun in time."""
        self._env, self._count, self._rng = env, count, rng
        self._length = max(1, min(PART, count // FEWEST_PARTS))
        self._games = np.full(env.num_envs, -1)
        self._open: dict[int, _Part] = {}
        self._kept: list[tuple[float, tuple[int, int, int], _Part]] = []
        self._stored = 0

    def start_games(self, started: np.ndarray) -> None:
        self._games += started
        if self.seen >= self._count:
            self.playing &= ~started

    def add(
        self,
        environment: int,
        frame: np.ndarray,
        output: Tensor,
        action: int,
        reward: float,
        terminated: bool,
        *,
        last: bool,
    ) -> None:
        """Add an environment's newest state and what came of its action; `last`: of its game."""
        part = self._open.get(environment)
        if part is None:
            game = int(self._games[environment])
            part = _Part(environment, game, 0, self._rng.random(), [])
        part.frames.append(np.array(frame))
        part.outputs.append(output)
        part.actions.append(int(action))
        part.rewards.append(float(reward))
        part.terminated.append(terminated)
        self.seen += 1
        self._open[environment] = part
        if last:
            self._keep(self._open.pop(environment))
        elif len(part) == self._length:
            before = [*part.context, *part.frames]
            context = before[max(0, len(before) - self._env.stack + 1) :]
            following = _Part(environment, part.game, part.number + 1, self._rng.random(), context)
            self._open[environment] = following
            self._keep(part)

    def _keep(self, part: _Part) -> None:
        """Keep a part, and let the last in order go as long as enough is left."""
        # Places differ, so parts themselves are never compared.
        heapq.heappush(self._kept, (-part.order, part.place, part))
        self._stored += len(part)
        while self._stored - len(self._kept[0][2]) >= self._count:
            self._stored -= len(heapq.heappop(self._kept)[2])

    def dataset(self, rng: np.random.Generator) -> Dataset:
        last = self._kept[0][2]
        last.cut(len(last) - (self._stored - self._count))
        parts = sorted((part for _, _, part in self._kept), key=lambda part: part.place)
        # A part that follows the one before it needs no context of its own.
        follows = [False] + [
            after.place == (*before.whole_game, before.number + 1) and before is not last
            for before, after in itertools.pairwise(parts)
        ]
        kept = [[] if follow else part.context for part, follow in zip(parts, follows, strict=True)]
        sizes = [len(context) + len(part) for context, part in zip(kept, parts, strict=True)]
        starts = np.cumsum(sizes) - sizes
        shape, dtype = self._env.frame_shape, torch_dtype(self._env.frame_dtype)
        frames = unfilled((sum(sizes), *shape), dtype, torch.device("cpu"))
        newest: list[Tensor] = []
        for start, context, part in zip(starts.tolist(), kept, parts, strict=True):
            shown = [*context, *part.frames]
            frames[start : start + len(shown)] = torch.from_numpy(np.stack(shown))
            newest.append(torch.arange(start + len(context), start + len(shown)))
            # Memory for the frames is needed once, not twice.
            part.frames.clear()
        games: dict[tuple[int, int], int] = {}
        for part in parts:
            games[part.whole_game] = games.get(part.whole_game, 0) + len(part.actions)
        held_out = dict(zip(games, hold_out(np.array(list(games.values())), rng), strict=True))
        begins = [not follow for follow in follows]
        return Dataset(
            frames=frames,
            episodes=torch.from_numpy(starts[begins]),
            held_out_episodes=torch.stack(
                [
                    held_out[part.whole_game]
                    for part, begin in zip(parts, begins, strict=True)
                    if begin
                ]
            ),
            newest=torch.cat(newest),
            outputs=torch.stack([output for part in parts for output in part.outputs]),
            actions=torch.tensor([action for part in parts for action in part.actions]),
            rewards=torch.tensor([reward for part in parts for reward in part.rewards]),
            terminated=torch.tensor([end for part in parts for end in part.terminated]),
            stack=self._env.stack,
        )


class _Piece(NamedTuple):
    """Consecutive stored transitions of one game in a replay memory."""

    stream: int
    start: int
    length: int


def from_replay(
    run_dir: Path,
    label: Label,
    *,
    num_actions: int,
    rng: np.random.Generator,
    count: int | None = None,
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
        replay = _load_replay(checkpoint.state["replay"], num_actions)
    except UsageError as error:
        reason = str(error).partition(":")[0]
        raise EbuError(f"{run_dir}: {reason}: free some memory, or collect in play") from error
    except REFUSED as error:
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


def _load_replay(state: dict[str, dict[str, object]], num_actions: int) -> EpisodicReplay:
    saved: dict[str, object] = dict(state["construction"])
    saved["frame_dtype"] = getattr(torch, str(saved["frame_dtype"]).removeprefix("torch."))
    saved["frame_shape"] = tuple(saved["frame_shape"])  # type: ignore[arg-type]
    replay = EpisodicReplay(**saved, device=torch.device("cpu"))  # type: ignore[arg-type]
    replay.load_state_dict(state, num_actions)
    return replay


def _pieces(replay: EpisodicReplay) -> Iterable[_Piece]:
    # A game's last frame has no transition, so games are never joined.
    steps = np.arange(replay.transitions.oldest, replay.transitions.num_steps)
    for stream in range(replay.num_streams):
        stored = replay.transitions.stored(steps, np.full(len(steps), stream)).astype(np.int8)
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
