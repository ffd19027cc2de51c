"""Runs of the training loop in the made-up world: built, taken up again, looked at."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import AGENTS, LearnerConfig, build_agent, build_learner
from ebu.interfaces import Distiller, VectorStep
from ebu.replay import EpisodicReplay
from ebu.run.checkpoint import load_latest
from ebu.run.logs import Monitor, cut_logs
from ebu.schedules import ExplorationConfig, LoopConfig
from ebu.training import Trainer
from tests.made_up import CPU, NUM_ACTIONS, MadeUpGames, empty_replay, random_games

STEP_FRAMES = MadeUpGames.frames_per_step
Evaluate = Callable[[int, Callable[[], bool]], dict[str, Any] | None]

open_trainers: list[Trainer] = []

SMALL: dict[str, dict[str, Any]] = {"adaptive_ebu": {"learners": 3, "copy_every_steps": 60}}
"""Settings with which an agent shows in a short run what it does in a long one."""


class Onlooker:
    """Plays at random, learns nothing, and notes what the loop asks of it."""

    def __init__(self, *, needs_segments: bool = False) -> None:
        self.needs_segments = needs_segments
        self.seconds: dict[str, float] = {}
        self.stacks: list[torch.Tensor] = []
        self.epsilons: list[float] = []
        self.forced: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.probabilities: list[np.ndarray] = []
        self.updates: list[int] = []

    def act(
        self,
        stacks: torch.Tensor,
        *,
        epsilon: float,
        rng: np.random.Generator,
        forced_random: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        assert forced_random is not None
        self.last_values = torch.zeros(len(stacks), NUM_ACTIONS)
        self.stacks.append(stacks.clone())
        self.epsilons.append(epsilon)
        self.forced.append(forced_random)
        self.actions.append(rng.integers(NUM_ACTIONS, size=len(stacks)))
        self.probabilities.append(rng.random(len(stacks), dtype=np.float32))
        return self.actions[-1], self.probabilities[-1]

    def observe(self, step: VectorStep) -> None: ...

    def learn(self, replay: EpisodicReplay, updates: int) -> None:
        self.updates.append(updates)

    def first_failed_update(self) -> int | None:
        return None

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def check_memory(self, replay: EpisodicReplay) -> None:
        """Learns nothing from it."""


def no_evaluation(frames: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
    raise AssertionError("no evaluation was due")


def trainer_in(
    run_dir: Path,
    env: MadeUpGames,
    agent: Any,
    *,
    capacity: int = 10_000,
    exploration: ExplorationConfig | None = None,
    evaluate: Evaluate = no_evaluation,
    resume: bool = False,
    distiller: Callable[[Any], Distiller] | None = None,
    **config: Any,
) -> Trainer:
    """A run in this directory, from its beginning or from its newest checkpoint.

    `distiller` makes what trains other networks alongside.
    """
    run_dir.mkdir(exist_ok=True)
    checkpoint = load_latest(run_dir / "checkpoints")
    assert resume == (checkpoint is not None)
    cut_logs(run_dir, {} if checkpoint is None else checkpoint.logs)
    loop: dict[str, Any] = {
        "learning_starts": 0,
        "log_every_frames": 10**9,
        "eval_every_frames": 0,
        "checkpoint_minutes": 1e9,
    }
    values: dict[str, Any] = {"gamma": 0.99, "clip_rewards": True, "life_loss_ends_segment": True}
    values |= {name: config.pop(name) for name in values.keys() & config.keys()}
    trainer = Trainer(
        LoopConfig(**{**loop, **config}),
        **values,
        env=env,
        replay=empty_replay(capacity, env.num_envs, env.stack),
        agent=agent,
        exploration=exploration or ExplorationConfig(),
        rng=np.random.default_rng(5),
        monitor=Monitor(run_dir),
        evaluate=evaluate,
        run_dir=run_dir,
        lock=(run_dir / "lock").open("w"),
        distiller=None if distiller is None else distiller(agent),
    )
    open_trainers.append(trainer)
    if checkpoint is not None:
        trainer.load(checkpoint)
    return trainer


def real_run(run_dir: Path, agent: str, precision: str = "float32", **options: Any) -> Trainer:
    """A small run of an agent, such as "ebu+double-mix-4" or "dqn+quantiles=5".

    Games end in every way, the ring wraps, and the run ends in the middle of a segment.
    """
    row, _, mix = agent.partition("-mix-")
    name, *flags = row.split("+")
    mixed: dict[str, Any] = {"mix_segments": int(mix)} if mix else {}
    of_learner: dict[str, Any] = {}
    of_agent: dict[str, Any] = {}
    for flag in flags:
        key, _, value = flag.partition("=")
        settings = of_learner if key in LearnerConfig.__dataclass_fields__ else of_agent
        settings[key] = json.loads(value or "true")
    method = replace(AGENTS[name], batch_size=8, **mixed, **of_agent, **SMALL.get(name, {}))
    learner = build_learner(
        method,
        LearnerConfig(**{"target_sync_updates": 20, "learning_rate": 1e-3, **of_learner}),
        stack=3,
        frame_shape=MadeUpGames.frame_shape,
        num_actions=NUM_ACTIONS,
        device=CPU,
        precision=precision,
        rng=np.random.default_rng(1),
    )
    built = build_agent(method, learner, np.random.default_rng(2))
    defaults: dict[str, Any] = {
        "capacity": 240,
        "learning_starts": 40,
        "updates_per_step": 0.5,
        "log_every_frames": 100,
        "exploration": ExplorationConfig(epsilon_decay_steps=200, random_start_actions=2),
    }
    env = MadeUpGames(4, random_games(7, 30))
    return trainer_in(run_dir, env, built, **{**defaults, **options})


def lines(run_dir: Path, log: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / log).read_text().splitlines()]
