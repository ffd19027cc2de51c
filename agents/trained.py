"""A trained agent, ready to act."""

from pathlib import Path
from typing import Any, Literal, Unpack, get_args

import numpy as np
import torch
from torch import Tensor, nn

from agents.agent import epsilon_greedy, policy_weights
from agents.finiteness import all_finite
from agents.networks import build_network
from ebu.errors import EbuError, UsageError
from ebu.interfaces import Exploration
from ebu.run.checkpoint import load_latest
from ebu.run.directory import CONFIG, identity_of, read_config, require
from ebu.run.machine import arithmetic
from ebu.run.reading import RefusedFileError, check_fits
from ebu.run.released import read_weights, released_in
from ebu.state_checks import REFUSED

WEIGHTS = {"final": "checkpoints", "best": "best"}
STUDENT = "student"
"""The agent that config.json names where a network was distilled and not trained on games."""
IMPORTED = "imported"
"""The same where its weights were imported from another library's file."""

Outputs = Literal["values", "logits"]
"""What a network's outputs are: action values, or a policy's logits, which say nothing of value."""


Precision = Literal["float32", "tf32", "bfloat16"]
"""Arithmetic of a network; its weights and outputs are float32 in each. tf32, which rounds the
factors of products, is that of GPUs; the CPU computes float32 in its place."""


class TrainedAgent:
    """A network with the configuration of the run it comes from, or of its game.

    | attribute | meaning |
    | --- | --- |
    | network | what plays |
    | outputs | what its outputs are: "values", or "logits" of a policy |
    | config | the run's config.json: {"settings": …, "environment": …} |
    | frames | emulator frames it was trained on; 0: unknown, of a policy from elsewhere |
    | num_actions | number of actions A |
    | warnings | damaged checkpoints that were passed over, one line each |
    | temperature | outputs times τ are values, but for a constant of each state; None: unknown |
    """

    def __init__(
        self,
        network: nn.Module,
        outputs: Outputs,
        config: dict[str, Any],
        frames: int,
        device: torch.device,
        warnings: list[str],
        precision: Precision = "float32",
        temperature: float | None = 1.0,
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.outputs = outputs
        self.config = config
        self.frames = frames
        self.num_actions: int = config["environment"]["num_actions"]
        self.device = device
        self.warnings = warnings
        self.precision: Precision = precision
        self.temperature = temperature
        # As the learner computes: see `Learner`.
        self._autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
        )

    def values(self, stacks: np.ndarray | Tensor) -> Tensor:
        """Action values (B, A) float32 of stacks (B, stack, *frame_shape), oldest frame first.

        Raises `ValueError` for a policy, whose outputs are no values.
        """
        if self.outputs != "values":
            raise ValueError("a policy has no action values: its outputs are logits")
        return self.outputs_of(stacks)

    @torch.no_grad()
    def outputs_of(self, stacks: np.ndarray | Tensor) -> Tensor:
        """Values or logits (B, A) float32, as `outputs` says, of stacks as in `values`."""
        with arithmetic(self.device, self.precision), self._autocast:
            outputs: Tensor = self.network(torch.as_tensor(stacks, device=self.device))
        return outputs.float()

    def act(self, stack: np.ndarray | Tensor) -> int:
        """The greedy action for one stack (stack, *frame_shape) of frames, oldest first.

        `ebu.frames.FrameStack` makes them: zeros stand for frames before a game's first.
        """
        return int(self.outputs_of(torch.as_tensor(stack)[None]).argmax())

    def choose(
        self, stacks: Tensor, **exploration: Unpack[Exploration]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Epsilon-greedy actions (N,) int64 for N stacks, and their probabilities (N,) float32."""
        return epsilon_greedy(self.outputs_of(stacks), **exploration)


def load_agent(
    run_dir: str | Path,
    weights: Literal["final", "best"] | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> TrainedAgent:
    """Load a student, or the agent a run has trained: its last weights, or the best evaluated.

    Both are averaged where the run averages weights (`average_updates`).

    Without `weights` the last, and of a folder that release.py wrote those that it holds. It
    computes in float32 unless told otherwise, whatever the run was trained in.

        agent = load_agent("runs/pong")
        frames = FrameStack(1, env.frame_shape, torch_dtype(env.frame_dtype), env.stack, cpu)
        (stack,) = frames.push(step.frames, step.started)  # one environment's newest frames
        action = agent.act(stack)

    examples/play_agent.py plays a whole game so.

    Raises `UsageError` if `run_dir` is no run directory, `EbuError` if it holds no whole weights.
    """
    run_dir = Path(run_dir)
    config = read_config(run_dir)
    environment, settings = config["environment"], config["settings"]
    require(run_dir, settings, "game", "agent", "protocol", "network")
    require(run_dir, environment, "num_actions", "stack", "frame_shape", "frame_dtype")
    state, warnings = _read_state(run_dir, config, weights)
    try:
        network = build_network(
            str(settings["network"]),
            stack=environment["stack"],
            frame_shape=tuple(environment["frame_shape"]),
            num_actions=environment["num_actions"],
            generator=torch.Generator(),
            quantiles=settings.get("quantiles", 0),
        )
        network.load_state_dict(policy_weights(state["agent"]))
        outputs: Outputs = "values"
        if settings["agent"] in (STUDENT, IMPORTED):
            outputs = _outputs_named(settings["outputs"])
        frames = state["frames"]
        check_fits(frames, int, "frames")
        temperature = _temperature(settings, state) if outputs == "logits" else 1.0
    except UsageError as error:
        raise EbuError(f"{run_dir / CONFIG}: {error}: restore it") from error
    except REFUSED as error:
        reason = str(error).splitlines()[0]
        raise EbuError(
            f"the weights in {run_dir} do not fit its config.json ({reason}): restore it"
        ) from error
    if not all_finite(list(network.state_dict().values())):
        raise EbuError(
            f"the {weights or 'newest'} weights in {run_dir}, of frame {frames:,}, are not "
            "finite: its training failed; start a new run with a lower --learning-rate, or in an "
            "environment whose rewards and observations are finite"
        )
    return TrainedAgent(
        network,
        outputs,
        config,
        frames,
        torch.device(device),
        warnings,
        precision,
        temperature,
    )


def _temperature(settings: dict[str, Any], state: dict[str, Any]) -> float | None:
    """τ of logits that are a teacher's values divided by it, as `kl` makes them; else None.

    A student that was trained alongside its teacher has it in its state.
    """
    temperature = (state if settings.get("online") else settings).get("temperature")
    if temperature is None or "kl" not in settings.get("losses", ()):
        return None
    check_fits(temperature, float, "its temperature")
    return float(temperature)


def _read_state(
    run_dir: Path, config: dict[str, Any], which: Literal["final", "best"] | None
) -> tuple[dict[str, Any], list[str]]:
    """The state with a run's weights, or with released ones, and warnings."""
    try:
        released = released_in(config)
        if released is not None:
            if which not in (None, released["weights"]):
                raise UsageError(
                    f"{run_dir} holds the {released['weights']} weights of its run, not the "
                    f"{which} ones: add --weights {released['weights']}"
                )
            network = {"learner": {"online": read_weights(run_dir, released)}}
            return {**released, "agent": network}, []
    except (OSError, RefusedFileError) as error:
        raise EbuError(
            f"the released weights in {run_dir} cannot be read ({error}): restore the folder"
        ) from error
    which = which or "final"
    checkpoint = load_latest(run_dir / WEIGHTS[which], state_only=True, run=identity_of(config))
    if checkpoint is None:
        first = {
            "final": "checkpoint",
            "best": "scheduled evaluation; a student has final ones alone",
        }
        raise EbuError(
            f"{run_dir} has no {which} weights yet: train on until its first {first[which]}"
        )
    return checkpoint.state, checkpoint.warnings


def _outputs_named(name: Any) -> Outputs:
    if name not in get_args(Outputs):
        raise TypeError(f"outputs are {' or '.join(get_args(Outputs))}, not {name!r}")
    outputs: Outputs = name
    return outputs
