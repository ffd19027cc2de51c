"""A trained agent, ready to act."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from agents.agent import epsilon_greedy
from agents.networks import build_network
from agents.registry import AGENTS
from ebu.checkpoint import load_latest
from ebu.errors import EbuError
from ebu.run_directory import read_config

WEIGHTS = {"final": "checkpoints", "best": "best"}


class TrainedAgent:
    """A Q-network with the configuration of the run it comes from.

    | attribute | meaning |
    | --- | --- |
    | config | the run's config.json: {"settings": …, "environment": …} |
    | frames | emulator frames it was trained on |
    | num_actions | number of actions A |
    | warnings | damaged checkpoints that were passed over, one line each |
    """

    def __init__(
        self,
        network: torch.nn.Module,
        config: dict[str, Any],
        frames: int,
        device: torch.device,
        warnings: list[str],
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.config = config
        self.frames = frames
        self.num_actions: int = config["environment"]["num_actions"]
        self.device = device
        self.warnings = warnings

    @torch.no_grad()
    def values(self, stacks: np.ndarray | Tensor) -> Tensor:
        """Action values (B, A) float32 of stacks (B, stack, *frame_shape), oldest frame first."""
        values: Tensor = self.network(torch.as_tensor(stacks, device=self.device))
        return values

    def act(self, stack: np.ndarray | Tensor) -> int:
        """The greedy action for one stack (stack, *frame_shape), oldest frame first."""
        return int(self.values(torch.as_tensor(stack)[None]).argmax())

    def choose(
        self,
        stacks: Tensor,
        *,
        epsilon: float,
        rng: np.random.Generator,
        forced_random: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Epsilon-greedy actions (N,) int64 for N stacks, and their probabilities (N,) float32."""
        return epsilon_greedy(
            self.values(stacks), epsilon=epsilon, rng=rng, forced_random=forced_random
        )


def load_agent(
    run_dir: str | Path,
    weights: Literal["final", "best"] = "final",
    device: str | torch.device = "cpu",
) -> TrainedAgent:
    """Load the agent a run has trained: its newest weights, or those that evaluated best.

    Raises `UsageError` if `run_dir` is no run directory, `EbuError` if it holds no whole weights.
    """
    run_dir = Path(run_dir)
    config = read_config(run_dir)
    checkpoint = load_latest(run_dir / WEIGHTS[weights], state_only=True)
    if checkpoint is None:
        raise EbuError(
            f"{run_dir} has no {weights} weights yet: train on until its first "
            + ("checkpoint" if weights == "final" else "evaluation")
        )
    environment = config["environment"]
    try:
        network = build_network(
            config["settings"]["network"],
            stack=environment["stack"],
            frame_shape=tuple(environment["frame_shape"]),
            num_actions=environment["num_actions"],
            generator=torch.Generator(),
        )
        kind = AGENTS[config["settings"]["agent"]]
        network.load_state_dict(kind.policy_weights(checkpoint.state["agent"]))
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise EbuError(
            f"the weights in {run_dir} do not fit its config.json ({reason}): restore it"
        ) from error
    return TrainedAgent(
        network, config, checkpoint.state["frames"], torch.device(device), checkpoint.warnings
    )
