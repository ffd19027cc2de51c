"""The dataset: states with each frame stored once, the teacher's outputs, held-out episodes."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebu.errors import EbuError, UsageError
from ebu.host_memory import available_bytes, unfilled
from ebu.replay_files import read_frames, write_frames
from ebu.run.checkpoint import REPLACED, load_latest, save_checkpoint
from ebu.run.directory import differences
from ebu.run.files import is_there
from ebu.state_checks import REFUSED
from ebu.targets import backward_targets

HELD_OUT_SHARE = 0.05
"""Of the states at least: of 200,000 the 10,000 that exported files are compared on."""
LABEL_BATCH = 256
_NAME = "states"


@dataclass(frozen=True)
class Dataset:
    """N states of E episodes in F frames, with the teacher's outputs.

    An episode is a game, or part of one, as consecutive frames; a lost life does not end it. A
    state is the newest `stack` frames of its episode, oldest first, with zeros before the episode's
    first frame, as in play. Only frames at which an action was chosen are newest frames of states;
    a part from the middle of a game begins with context frames.

    | field | shape, dtype | meaning |
    | --- | --- | --- |
    | frames | (F, *frame_shape) uint8 or float32 | episode after episode, each frame once |
    | episodes | (E,) int64 | row of each episode's first frame, rising from 0 |
    | held_out_episodes | (E,) bool | never trained on; at least one |
    | newest | (N,) int64 | row of each state's newest frame, rising |
    | outputs | (N, A) float32 | the teacher's, for each state |
    | actions | (N,) int64 | the action taken; no label: it explores, and may be old |
    | rewards | (N,) float32 | raw, of that action |
    | terminated | (N,) bool | nothing after that action counts for the value |
    | stack | | frames in a state |
    | sources | | how the states were made, JSON values, one entry for each joined dataset |

    All tensors are on one device. Raises ValueError if the parts do not fit together.
    """

    frames: Tensor
    episodes: Tensor
    held_out_episodes: Tensor
    newest: Tensor
    outputs: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    stack: int
    sources: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for states in (self.outputs, self.actions, self.rewards, self.terminated):
            if len(states) != len(self.newest):
                raise ValueError(f"{len(states)} rows for {len(self.newest)} states")
        if len(self.episodes) != len(self.held_out_episodes):
            raise ValueError("held_out_episodes is not of the episodes")

    def __len__(self) -> int:
        return len(self.newest)

    @property
    def num_actions(self) -> int:
        return self.outputs.shape[1]

    @property
    def device(self) -> torch.device:
        return self.frames.device

    def episode_of(self, indices: Tensor) -> Tensor:
        """The episodes (B,) int64 of states (B,) int64."""
        return torch.searchsorted(self.episodes, self.newest[indices], right=True) - 1

    def stacks(self, indices: Tensor) -> Tensor:
        """States (B, stack, *frame_shape) of the frames' dtype; indices (B,) int64 in [0, N)."""
        newest = self.newest[indices]
        first = self.episodes[self.episode_of(indices)]
        rows = newest[:, None] + torch.arange(1 - self.stack, 1, device=self.device)
        absent = rows < first[:, None]
        gathered = self.frames.index_select(0, rows.clamp_min(0).flatten())
        stacks = gathered.view(*rows.shape, *self.frames.shape[1:])
        # By index, because few are absent: a mask of all would be a seventh of an update's time.
        stacks.flatten(0, 1).index_fill_(0, absent.flatten().nonzero().squeeze(1), 0)
        return stacks

    @property
    def train(self) -> Tensor:
        """Indices (N − M,) int64, rising, of the states of all other episodes."""
        return (~self._is_held_out()).nonzero().squeeze(1)

    @property
    def held_out(self) -> Tensor:
        """Indices (M,) int64, rising, of the states of the held-out episodes."""
        return self._is_held_out().nonzero().squeeze(1)

    def _is_held_out(self) -> Tensor:
        every = torch.arange(len(self), device=self.device)
        return self.held_out_episodes[self.episode_of(every)]

    def to(self, device: torch.device) -> "Dataset":
        """The dataset with its tensors on this device; 200,000 Atari states take 1.4 GB there."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def relabelled(self, label: Callable[[Tensor], Tensor]) -> "Dataset":
        """The states with other outputs: (B, A) of `label` for stacks (B, stack, *frame_shape)."""
        every = torch.arange(len(self), device=self.device)
        outputs = [label(self.stacks(part)) for part in every.split(LABEL_BATCH)]
        return replace(self, outputs=torch.cat(outputs).float().to(self.device))


def hold_out(
    lengths: np.ndarray, rng: np.random.Generator, *, share: float = HELD_OUT_SHARE
) -> Tensor:
    """Draw episodes to hold out, uniformly until they have this share of the states: (E,) bool.

    lengths (E,): states of each episode. At least one is held out, and at least one is not.
    Raises EbuError for a single episode: nothing would be left to train on.
    """
    if len(lengths) < 2:
        raise EbuError(
            "the states are all of one episode, and whole episodes are held out: collect more "
            "states, or in more environments"
        )
    order = rng.permutation(len(lengths))
    short = np.cumsum(lengths[order]) < share * lengths.sum()
    count = min(int(short.sum()) + 1, len(lengths) - 1)
    held_out = torch.zeros(len(lengths), dtype=torch.bool)
    held_out[torch.from_numpy(order[:count])] = True
    return held_out


def join(sets: Sequence[Dataset]) -> Dataset:
    """Join datasets; held-out episodes stay held out.

    Raises `EbuError` if their frames, stacks or actions differ.
    """
    kinds = {(s.frames.shape[1:], s.frames.dtype, s.stack, s.num_actions) for s in sets}
    if len(kinds) != 1:
        raise EbuError("the states to join are of different environments: give those of one game")
    starts = np.cumsum([0] + [len(s.frames) for s in sets[:-1]]).tolist()
    rows = {
        name: [getattr(s, name) + start for s, start in zip(sets, starts, strict=True)]
        for name in ("episodes", "newest")
    }
    names = ("frames", "held_out_episodes", "outputs", "actions", "rewards", "terminated")
    parts = rows | {name: [getattr(s, name) for s in sets] for name in names}
    return Dataset(
        **{name: torch.cat(of_sets) for name, of_sets in parts.items()},
        stack=sets[0].stack,
        sources=tuple(source for s in sets for source in s.sources),
    )


class ApartSampler:
    """Draws states to train on from different episodes.

    For losses that compare the states of a minibatch: neighbours in time are all alike. Episodes
    are drawn without replacement until none is left, then again; of each one state, uniformly.
    """

    def __init__(self, states: Dataset) -> None:
        self._train = states.train
        episodes = states.episode_of(self._train).cpu()
        firsts = torch.cat([torch.tensor([True]), episodes[1:] != episodes[:-1]])
        self._starts = firsts.nonzero().squeeze(1).numpy()
        self._lengths = np.diff(np.append(self._starts, len(episodes)))

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """Indices (count,) int64 of states."""
        turns = -(-count // len(self._starts))
        permutations = [rng.permutation(len(self._starts)) for _ in range(turns)]
        chosen = np.concatenate(permutations)[:count]
        drawn = self._starts[chosen] + rng.integers(self._lengths[chosen])
        return self._train[torch.from_numpy(drawn).to(self._train.device)]


def hard_targets(states: Dataset, *, gamma: float, beta: float, clip_rewards: bool) -> Tensor:
    """EBU's backward targets of the actions taken: (N,) float32, NaN where unknown.

    Lee et al. 2019, Algorithm 2, over each run of consecutive states up to a terminal one;
    `outputs` must be action values. A run that breaks off bootstraps from its last state, whose
    own target is then unknown: the next state is not stored.
    """
    targets = torch.full((len(states),), torch.nan)
    outputs, actions = states.outputs.cpu(), states.actions.cpu()
    terminated, newest = states.terminated.cpu(), states.newest.cpu()
    rewards = states.rewards.cpu()
    if clip_rewards:
        rewards = rewards.clamp(-1, 1)
    episode = states.episode_of(torch.arange(len(states), device=states.device)).cpu()
    follows = (newest[1:] == newest[:-1] + 1) & (episode[1:] == episode[:-1]) & ~terminated[:-1]
    ends = [*(~follows).nonzero().squeeze(1).add(1).tolist(), len(states)]
    start = 0
    for end in ends:
        last = end if terminated[end - 1] else end - 1
        if last > start:
            # The value after a terminal step is not used: any row does.
            next_values = outputs[start + 1 : last + 1]
            if len(next_values) < last - start:
                next_values = torch.cat([next_values, outputs[-1:]])
            targets[start:last] = backward_targets(
                rewards[start:last],
                next_values,
                actions[start:last],
                terminated[last - 1],
                gamma=gamma,
                beta=beta,
            )
        start = end
    return targets.to(states.device)


# --- on the disk ----------------------------------------------------------------------------


def save_states(directory: Path, states: Dataset) -> None:
    """Write a dataset into a directory, whole or not at all, in place of an earlier one.

    Frames are compressed. Raises `UsageError` for a directory that holds anything else, `EbuError`
    where the disk is full or fails.
    """
    _refuse_foreign(directory)
    state = {
        name: value for name, value in vars(states).items() if name not in ("frames", "sources")
    }
    state |= {
        "frame_shape": list(states.frames.shape[1:]),
        "frame_dtype": str(states.frames.dtype).removeprefix("torch."),
        "num_frames": len(states.frames),
        "sources": list(states.sources),
    }
    ring = states.frames.cpu()[:, None]
    save_checkpoint(
        directory,
        _NAME,
        state,
        writers=[lambda files: write_frames(files, ring, 0, len(ring))],
        keep=1,
    )


def saved_states(directory: Path) -> list[Path]:
    """Where a directory holds states: in its round-0, round-1, …, or in itself.

    Raises `UsageError` where it holds none.
    """
    rounds = sorted(path for path in directory.glob("round-*") if path.is_dir())
    for path in (found := rounds or [directory]):
        _require_states(path)
    return found


def load_states(directory: Path) -> Dataset:
    """Read a dataset that `save_states` wrote, on the CPU; nothing on the disk changes.

    Raises `UsageError` if there is none, `EbuError`, one line, if it is damaged.
    """
    _require_states(directory)
    try:
        saved = load_latest(directory, state_only=True, kind=_NAME)
        assert saved is not None
        state = saved.state
        shape, cpu = (state.pop("num_frames"), *state.pop("frame_shape")), torch.device("cpu")
        dtype: torch.dtype = getattr(torch, state.pop("frame_dtype"))
        available = available_bytes(cpu)
        if available is not None and dtype.itemsize * math.prod(shape) > available:
            raise ValueError(f"frames of shape {shape} do not fit in memory")
        frames = unfilled(shape, dtype, cpu)
        # Frames have checksums of their own.
        read_frames(saved.directory, frames[:, None], 0, len(frames))
        return Dataset(frames=frames, sources=tuple(state.pop("sources")), **state)
    except (EbuError, *REFUSED) as error:
        reason = str(error).partition(";")[0]
        raise EbuError(
            f"the states in {directory} cannot be read ({reason}): put back a copy, or delete "
            "that directory to collect them again"
        ) from error


def load_or_make(
    directory: Path, source: Mapping[str, Any], make: Callable[[], Dataset]
) -> Dataset:
    """Load the states saved in this directory, or make and save them.

    A command that was killed thus collects again only what it had not saved. `source` is how the
    states are made: the first of `Dataset.sources` of saved ones must be the same.

    Raises `UsageError` if the directory holds states made otherwise.
    """
    if _holds_states(directory):
        states = load_states(directory)
        # Paths may be relative, and differ between working directories.
        made = states.sources[0] if states.sources else {}
        differing = differences(made, source, may_change={"teacher", "directory"})
        if differing:
            raise UsageError(
                f"{directory} holds states made otherwise: {'; '.join(differing)}. Repeat the "
                "settings they were made with, or choose another directory"
            )
        return states
    _refuse_foreign(directory)
    # As it reads back: a tuple is a list in JSON.
    states = replace(make(), sources=(json.loads(json.dumps(source)),))
    save_states(directory, states)
    return states


def _holds_states(directory: Path) -> bool:
    return any(is_there(directory / name) for name in (_NAME, _NAME + REPLACED))


def _require_states(directory: Path) -> None:
    if not _holds_states(directory):
        raise UsageError(f"{directory} holds no states: name a directory that they were saved in")


def _refuse_foreign(directory: Path) -> None:
    """Refuse a directory of other files: the states would lie among them."""
    if not is_there(directory):
        return
    names = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    if foreign := [name for name in names if name not in (_NAME, _NAME + REPLACED)]:
        raise UsageError(
            f"{directory} holds files that are no states ({foreign[0]}): choose another directory"
        )
