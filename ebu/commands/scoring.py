"""The rules under which a game is scored: protocol, reference scores, and the run's settings."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ebu.commands.reporting.published import references
from ebu.evaluation import Evaluator, Seeds, environments_for
from ebu.run.progress import starting
from envs import Variant, VectorEnvironment, is_atari, make_vector
from envs.protocols import Protocol


def evaluator_for(
    game: str,
    protocol: Protocol,
    *,
    seeds: Seeds,
    episodes: int,
    num_envs: int | None = None,
    epsilon: float | None = None,
    final_epsilon: float,
    random_start_actions: int,
    threads: int,
    device: torch.device,
    variant: Variant,
) -> Evaluator:
    """The evaluator of a game under a protocol.

    | argument | meaning |
    | --- | --- |
    | num_envs | environments; None takes `environments_for(episodes)` |
    | epsilon | share of random actions; None takes the protocol's |
    | final_epsilon | the run's, which a protocol may ask for |
    | variant | what the run changes in its environments |
    """
    known = references(game)
    return Evaluator(
        new_env=env_maker(game, protocol, threads=threads, training=False, variant=variant),
        num_envs=environments_for(episodes) if num_envs is None else num_envs,
        episodes=episodes,
        seeds=seeds,
        epsilon=(protocol.evaluation_epsilon(game, final_epsilon) if epsilon is None else epsilon),
        random_start_actions=random_start_actions,
        random_score=None if known is None else known.random,
        human_score=None if known is None else known.human(protocol.human_table),
        human_table=protocol.human_table,
        device=device,
    )


def env_maker(
    game: str, protocol: Protocol, *, threads: int, training: bool, variant: Variant
) -> Callable[[int, int], VectorEnvironment]:
    """Makes environments from their number and a seed, by a protocol; reports if it takes long."""

    def make_env(num_envs: int, seed: int) -> VectorEnvironment:
        with starting(num_envs, "emulators" if is_atari(game) else "environments"):
            return make_vector(
                game,
                num_envs,
                seed=seed,
                protocol=protocol,
                training=training,
                num_threads=min(threads, num_envs),
                variant=variant,
            )

    return make_env


def describe(env: VectorEnvironment) -> dict[str, Any]:
    """What config.json says of environments."""
    return {
        "num_actions": env.num_actions,
        "stack": env.stack,
        "frame_shape": list(env.frame_shape),
        "frame_dtype": str(env.frame_dtype),
        "frames_per_step": env.frames_per_step,
        "observation": env.observation,
    }


def variant_of(settings: Mapping[str, Any]) -> Variant:
    """What the settings of a run change in its environments; earlier runs have none of them."""
    return Variant(
        tuple(settings.get("env_args") or ()),
        tuple(settings.get("env_wrappers") or ()),
        settings.get("eval_max_steps"),
        settings.get("action_set"),
    )
