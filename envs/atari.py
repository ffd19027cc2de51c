"""N Atari games in ale-py's native vector environment."""

import math
import os
import weakref
from typing import Any

import ale_py
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from envs.games import canonical_game
from envs.observations import FRAME_SIDE, STACK
from envs.vector import RawStep, VectorEnvironment, check_at_least
from envs.watchdog import Watchdog

FRAME_SKIP = 4  # emulator frames per step: the action is repeated, the last two are maxed
RULES = ("repeat_action_probability", "full_action_space", "noop_max", "max_frames_per_game")
"""Keys of `AtariVector.identity` that are also arguments of `make_emulators`."""
RESET_SECONDS = 1
"""More than a thread takes for a seeded reset, which loads the game: 0.2 to 0.35 s."""


class AtariVector(VectorEnvironment):
    """N copies of one Atari game: 84×84 grey frames, raw rewards, lost lives apart from game over.

    | argument | meaning |
    | --- | --- |
    | game | a ROM id or any name that `canonical_game` knows |
    | seed | non-negative; environment j gets seeds derived from it |
    | repeat_action_probability | sticky actions: 0 or Machado et al. (2018)'s 0.25 |
    | full_action_space | all 18 actions instead of those the game uses |
    | noop_max | each game starts with 0..noop_max no-ops, uniformly |
    | max_frames_per_game | emulator frames without the no-ops; then the game is truncated |
    | num_threads | emulator threads, 0: one per core; changes no result |
    | reseed_every_frames | frames of all environments between two seeded resets of one |

    A game is over when the emulator says so. A life is lost when the number of lives drops within
    a game, also to 0: some games (Atlantis, Bank Heist, Wizard of Wor) continue at 0. Ten games
    count no lives and never report a lost one.
    """

    frame_shape: tuple[int, ...] = (FRAME_SIDE, FRAME_SIDE)
    frame_dtype: np.dtype[Any] = np.dtype(np.uint8)
    stack = STACK
    frames_per_step = FRAME_SKIP
    observation = (
        f"the screen: grey frames of {FRAME_SIDE}×{FRAME_SIDE}, of which {STACK} are a state"
    )

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        seed: int,
        repeat_action_probability: float = 0.0,
        full_action_space: bool = False,
        noop_max: int = 0,
        max_frames_per_game: int = 108_000,
        num_threads: int = 0,
        reseed_every_frames: int = 2_500_000,
    ) -> None:
        game = canonical_game(game)
        check_at_least(noop_max, 0, "noop_max")
        check_at_least(max_frames_per_game, 1, "max_frames_per_game")
        check_at_least(num_threads, 0, "num_threads")
        if not 0.0 <= repeat_action_probability <= 1.0:
            raise ValueError(
                f"repeat_action_probability must be in [0, 1], got {repeat_action_probability}"
            )
        rules: dict[str, Any] = {
            "repeat_action_probability": float(repeat_action_probability),
            "full_action_space": bool(full_action_space),
            "noop_max": noop_max,
            "max_frames_per_game": max_frames_per_game,
        }
        super().__init__(
            "atari",
            game,
            num_envs,
            seed=seed,
            reseed_every_frames=reseed_every_frames,
            rules=rules,
            engine=f"ale-py {ale_py.__version__}",
        )
        self._native = make_emulators(game, num_envs, num_threads=num_threads, **rules)
        self._threads = min(num_threads or num_envs, _cores())
        self._steps = 0  # since it was made; only for messages
        self.num_actions = len(self._native.ale.get_action_set())
        self.watchdog = Watchdog(lambda: f"the emulator of {game}")
        weakref.finalize(self, self.watchdog.stop)
        self._strengths = np.ones(num_envs, dtype=np.float32)

    def _reset(self, mask: np.ndarray, seeds: list[int]) -> RawStep:
        # One call resets them all: a thread resets one after the other.
        rounds = math.ceil(len(seeds) / self._threads)
        with self._watch(0, RESET_SECONDS * (rounds - 1)):
            frames, info = self._native.reset(
                seed=np.array(seeds, dtype=np.int64), options={"reset_mask": mask}
            )
        return self._blank()._replace(frames=frames[:, 0], lives=info["lives"])

    def _start(self, actions: np.ndarray, active: np.ndarray) -> None:
        self._native.ale.send(actions, self._strengths)

    def _collect(self) -> RawStep:
        self._steps += 1
        with self._watch(self._steps):
            frames, rewards, terminated, truncated, info = self._native.ale.recv()
        return RawStep(
            frames=frames[:, 0],
            rewards=rewards.astype(np.float32),
            terminated=terminated,
            truncated=truncated & ~terminated,
            lives=info["lives"],
        )

    def _watch(self, step: int, more: int = 0) -> Watchdog:
        """Watch step number `step`, 0: a reset; it may take `more` seconds longer than others."""
        self.watchdog.place, self.watchdog.more = (-1, -1, step), more
        return self.watchdog

    def _close(self) -> None:
        self.watchdog.stop()
        del self._native


def _cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_emulators(
    game: str,
    num_envs: int,
    *,
    repeat_action_probability: float,
    full_action_space: bool,
    noop_max: int,
    max_frames_per_game: int,
    num_threads: int,
    shape: tuple[int, int] = (FRAME_SIDE, FRAME_SIDE),
    colour: bool = False,
) -> AtariVectorEnv:
    """Make the emulators of `num_envs` games of a ROM id; frames are (num_envs, 1, *shape) uint8.

    Every option is given, because the emulator's defaults clip rewards and press FIRE.
    """
    return AtariVectorEnv(
        game,
        num_envs,
        # A smaller batch would return rows in the order in which threads finish.
        batch_size=num_envs,
        num_threads=num_threads,
        max_num_frames_per_episode=max_frames_per_game,
        repeat_action_probability=repeat_action_probability,
        full_action_space=full_action_space,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        img_height=shape[0],
        img_width=shape[1],
        grayscale=not colour,
        # The replay memory and the agent stack frames; here each recv would copy the stack.
        stack_num=1,
        frameskip=FRAME_SKIP,
        maxpool=True,
        # The emulator draws from 0..noop_max - 1.
        noop_max=noop_max + 1 if noop_max else 0,
        # Would reset the whole game at a lost life, so that later lives are never played.
        episodic_life=False,
        # Misses a lost life after which the game continues with `lives` at 0.
        life_loss_info=False,
        reward_clipping=False,
        use_fire_reset=False,
    )
