"""N environments stepped together, restored after a restart by replaying their actions.

The emulators cannot save their state, but the state is a function of the seed of the last seeded
reset and of the actions since then. The `Journal` keeps both, `state_dict` saves them, and
`load_state_dict` replays them. To bound the journal, an environment gets a new seed from time to
time, always between two games: no game is ever cut for bookkeeping.
"""

import hashlib
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from envs.journal import Journal
from envs.watchdog import Watchdog


class ReplayMismatchError(RuntimeError):
    """Replaying a journal did not lead to the saved state."""


class VectorStep(NamedTuple):
    """One step of N environments; row j belongs to environment j.

    The row after the end of a game is the first frame of the next game: `started` is set, the
    action sent for it was ignored, its reward is 0 and no other flag is set.
    """

    frames: np.ndarray  # (N, *frame_shape) frame_dtype: the newest frame of each environment
    rewards: np.ndarray  # (N,) float32: raw, never clipped
    terminated: np.ndarray  # (N,) bool: the game is over
    truncated: np.ndarray  # (N,) bool: the game was cut by its time limit; never with terminated
    life_lost: np.ndarray  # (N,) bool: the number of lives dropped, and the game is not over
    started: np.ndarray  # (N,) bool: first frame of a new game


class RawStep(NamedTuple):
    """A step as the environments return it; lost lives and starts of games are derived from it."""

    frames: np.ndarray  # (N, *frame_shape)
    rewards: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool
    lives: np.ndarray  # (N,) integer


def environment_seed(seed: int, environment: int, seedings: int) -> int:
    """Seed in [1, 2**31 - 1] of an environment's seeded reset number `seedings`.

    Emulators take a signed 32-bit seed. They read a negative one as "no seed", and some read 0 as
    "seed from the clock", so neither is used.
    """
    word = np.random.SeedSequence((seed, environment, seedings)).generate_state(1, np.uint32)[0]
    return 1 + int(word) % (2**31 - 1)


def validate_actions(actions: np.ndarray, num_envs: int, num_actions: int) -> np.ndarray:
    """An int64 copy of `actions`; raises a one-line ValueError for invalid ones.

    An emulator hangs if it is sent an unknown action, so none may reach it.
    """
    actions = np.asarray(actions)
    if actions.shape != (num_envs,):
        raise ValueError(f"actions must have shape ({num_envs},), got {actions.shape}")
    if actions.dtype.kind not in "iu":
        raise ValueError(f"actions must be integers, got {actions.dtype}")
    if not ((actions >= 0) & (actions < num_actions)).all():
        raise ValueError(f"actions must be in 0..{num_actions - 1}, got {actions.tolist()}")
    return actions.astype(np.int64)


def check_at_least(value: int, least: int, name: str) -> None:
    """Raise ValueError unless a constructor argument is at least `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


class VectorEnvironment(ABC):
    """What all vector environments share: games, lives, seeds, journal and restore.

    A subclass resets, starts and collects its environments, and sets `num_actions`, `frame_shape`,
    `frame_dtype`, `stack` and `frames_per_step`.

    | argument | meaning |
    | --- | --- |
    | kind, game | `atari` or `gymnasium`, and the name of the game |
    | seed | non-negative; environment j gets seeds derived from it |
    | reseed_every_frames | frames of all environments between two seeded resets of one |
    | rules | what else decides how the environments behave, as JSON values |
    | engine | what runs the environments; named when a restore fails, not compared |

    `identity` holds all of these but the engine; only an object with the same identity accepts a
    saved state. Raises ValueError for arguments out of range.
    """

    num_actions: int
    frame_shape: tuple[int, ...]
    frame_dtype: np.dtype[Any]
    stack: int
    frames_per_step: int
    observation: str = ""
    """What the observations are taken for, in one line."""
    watchdog: Watchdog
    """Detects environments that do not answer."""

    def __init__(
        self,
        kind: str,
        game: str,
        num_envs: int,
        *,
        seed: int,
        reseed_every_frames: int,
        rules: dict[str, Any],
        engine: str,
    ) -> None:
        check_at_least(num_envs, 1, "num_envs")
        check_at_least(seed, 0, "seed")
        check_at_least(reseed_every_frames, 1, "reseed_every_frames")
        self.num_envs = num_envs
        self._seed = int(seed)
        self.reseed_after_steps = -(-reseed_every_frames // (self.frames_per_step * num_envs))
        self.identity = {
            "kind": kind,
            "game": game,
            "num_envs": num_envs,
            "seed": self._seed,
            **rules,
            "reseed_every_frames": reseed_every_frames,
        }
        self._engine = engine
        self._journal = Journal(num_envs)
        self._sent: np.ndarray | None = None
        self._last: RawStep | None = None  # None: before the first reset
        self._closed = False
        self._all = np.ones(num_envs, dtype=bool)
        # Only to verify a restored state.
        self._reward_sums = np.zeros(num_envs, dtype=np.float64)

    @abstractmethod
    def _reset(self, mask: np.ndarray, seeds: list[int]) -> RawStep:
        """Reset the environments in `mask` with seeds, from scratch; leave the others untouched.

        Rewards and flags of the reset rows are 0; of the other rows only frames and lives are read.
        """

    @abstractmethod
    def _start(self, actions: np.ndarray, active: np.ndarray) -> None:
        """Begin a step with valid `actions`, (N,) int64; environments not `active` may idle.

        An environment whose game ended in the step before is reset without a seed instead.
        """

    @abstractmethod
    def _collect(self) -> RawStep:
        """Finish the step begun by `_start`."""

    @abstractmethod
    def _close(self) -> None:
        """Release what the environments hold."""

    def reset(self) -> VectorStep:
        """Start a new game in every environment, each from a seed of its own."""
        self._check_idle("reset")
        self._last = self._seeded_reset(self._all)
        return _step_of(self._last, ~self._all, self._all.copy())

    def send(self, actions: np.ndarray) -> None:
        """Begin a step with `actions` (N,) of any integer dtype, each in 0..num_actions - 1.

        Raises ValueError for anything else before it reaches an environment.
        """
        self._check_idle("send")
        if self._last is None:
            raise RuntimeError("send before reset: call reset first")
        valid = validate_actions(actions, self.num_envs, self.num_actions)
        self._start(valid, self._all)
        self._sent = valid

    def recv(self) -> VectorStep:
        """Finish the step begun by `send`."""
        if self._sent is None or self._last is None:
            raise RuntimeError("recv without send: call send first")
        before = self._last
        after = self._collect()
        self._journal.append(self._sent)
        self._sent = None
        self._reward_sums += after.rewards
        started = before.terminated | before.truncated
        if started.any():
            due = started & (self._journal.lengths >= self.reseed_after_steps)
            if due.any():
                fresh = self._seeded_reset(due)
                after = after._replace(frames=fresh.frames, lives=fresh.lives)
        self._last = after
        life_lost = (after.lives < before.lives) & ~after.terminated & ~started
        return _step_of(after, life_lost, started)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit for bit; call it between `recv` and `send`."""
        self._check_idle("state_dict")
        if self._last is None:
            return {"identity": dict(self.identity), "engine": self._engine, "journal": None}
        return {
            "identity": dict(self.identity),
            "engine": self._engine,
            "journal": self._journal.state_dict(),
            "reached": _summary(self._last, self._reward_sums),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state by replaying its journal.

        Raises ValueError if the state belongs to other environments, and ReplayMismatchError if
        the journal does not lead to the saved state.
        """
        self._check_idle("load_state_dict")
        self._check_identity(state["identity"])
        if state["journal"] is None:
            self._journal = Journal(self.num_envs)
            self._last = None
            return
        self._journal.load_state_dict(state["journal"])
        self._last = self._replay_journal()
        self._verify_restored(state)

    def difference(self) -> str | None:
        """What differs between two games with the same seed, in a few words; None: nothing."""
        return None

    def seedings(self) -> dict[str, Any]:
        """The state that `start_fresh` needs; valid also in the middle of a failed step."""
        return {"seedings": self._journal.seedings.copy()}

    def start_fresh(self, state: dict[str, Any]) -> VectorStep:
        """Begin new games, with seeds that follow those of a saved state or of `seedings`."""
        self._check_idle("start_fresh")
        self._journal = Journal(self.num_envs)
        seedings = (state.get("journal") or state).get("seedings", 0)
        self._journal.seedings[:] = seedings
        return self.reset()

    def reseed(self, seed: int) -> None:
        """Start over as if constructed with this seed; call `reset` next."""
        self._check_idle("reseed")
        self._seed = self.identity["seed"] = seed
        self._journal = Journal(self.num_envs)
        self._last = None

    def close(self) -> None:
        """Release the environments. Calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._close()

    def _seeds_of(self, mask: np.ndarray, seedings: np.ndarray) -> list[int]:
        return [
            environment_seed(self._seed, int(j), int(seedings[j])) for j in np.flatnonzero(mask)
        ]

    def _seeded_reset(self, mask: np.ndarray) -> RawStep:
        raw = self._reset(mask, self._seeds_of(mask, self._journal.seedings))
        self._journal.record_seeding(mask)
        self._reward_sums[mask] = 0.0
        return raw

    def _blank(self) -> RawStep:
        """Frames, rewards and flags that are all 0."""
        return RawStep(
            frames=np.zeros((self.num_envs, *self.frame_shape), dtype=self.frame_dtype),
            rewards=np.zeros(self.num_envs, dtype=np.float32),
            terminated=np.zeros(self.num_envs, dtype=bool),
            truncated=np.zeros(self.num_envs, dtype=bool),
            lives=np.zeros(self.num_envs, dtype=np.int64),
        )

    def _replay_journal(self) -> RawStep:
        # All environments step together, which keeps every thread busy. One with a short journal
        # takes its own older actions, which are valid, until its seeded reset is due.
        starts = self._journal.starts
        seedings = self._journal.seedings - 1
        raw = self._reset(self._all, self._seeds_of(self._all, seedings))
        self._reward_sums[:] = 0.0
        resets = {int(row) for row in starts}
        for row in range(len(self._journal.actions) + 1):
            if row in resets:
                mask = starts == row
                if row > 0:
                    fresh = self._reset(mask, self._seeds_of(mask, seedings))
                    raw = _with_fresh(raw, fresh, mask)
                    self._reward_sums[mask] = 0.0
                active = starts <= row
            if row < len(self._journal.actions):
                self._start(self._journal.actions[row].astype(np.int64), active)
                raw = self._collect()
                self._reward_sums += raw.rewards
        return raw

    def _check_idle(self, what: str) -> None:
        if self._closed:
            raise RuntimeError(f"{what} after close: the environments are gone")
        if self._sent is not None:
            raise RuntimeError(f"{what} between send and recv: call recv first")

    def _check_identity(self, saved: dict[str, Any]) -> None:
        keys = sorted(self.identity.keys() | saved.keys())
        differing = [
            f"{key} {saved.get(key)!r} saved, {self.identity.get(key)!r} here"
            for key in keys
            if saved.get(key) != self.identity.get(key)
        ]
        if differing:
            raise ValueError(f"the state is of other environments: {'; '.join(differing)}")

    def _verify_restored(self, state: dict[str, Any]) -> None:
        assert self._last is not None
        saved, reached = state["reached"], _summary(self._last, self._reward_sums)
        for key, value in reached.items():
            was, now = np.asarray(saved[key]), np.asarray(value)
            differs = (was != now) & ((was == was) | (now == now))  # nan is nan
            if differs.any():
                environment = int(np.flatnonzero(differs)[0])
                self._last = None
                raise ReplayMismatchError(
                    f"environment {environment} of {self.identity['game']} did not return to its "
                    f"saved state: {key.replace('_', ' ')} differ. Either it is no function of its "
                    "seed and actions, or the machine or a version changed (saved with "
                    f"{state['engine']}, this is {self._engine}): --fresh-games resumes with what "
                    "was learned and new games"
                )


def _step_of(raw: RawStep, life_lost: np.ndarray, started: np.ndarray) -> VectorStep:
    frames, rewards, terminated, truncated, _ = raw
    return VectorStep(frames, rewards, terminated, truncated, life_lost, started)


def _with_fresh(raw: RawStep, fresh: RawStep, mask: np.ndarray) -> RawStep:
    return RawStep(
        frames=fresh.frames,
        rewards=np.where(mask, np.float32(0.0), raw.rewards),
        terminated=raw.terminated & ~mask,
        truncated=raw.truncated & ~mask,
        lives=fresh.lives,
    )


def _summary(raw: RawStep, reward_sums: np.ndarray) -> dict[str, Any]:
    """Values that a restored state must reproduce, each with an entry for every environment."""
    return {
        "frames": [hashlib.sha256(frame.tobytes()).hexdigest() for frame in raw.frames],
        "lives": raw.lives.astype(np.int64),
        "game_over_flags": raw.terminated.copy(),
        "time_limit_flags": raw.truncated.copy(),
        "rewards": reward_sums.copy(),
    }
