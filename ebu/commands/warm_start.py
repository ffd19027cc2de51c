"""Start training from the weights of another run or of a student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents import load_agent
from agents.learner import Learner
from agents.networks import PlainHead
from ebu.errors import UsageError
from ebu.run.progress import say


def initial_weights(
    source: Path, network: str, environment: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The weights of a run's agent, as those of a network of action values.

    Logits of a student by kl, whose teacher had values, are those values divided by τ, up to a
    constant for each state: its last layer is multiplied by τ, so it starts with the student's
    actions and differences of values. Of other logits the scale is unknown: they stay as they are,
    with a warning.

    | argument | meaning |
    | --- | --- |
    | network | name of the network that will be trained |
    | environment | its environments, as config.json describes them |

    Raises `UsageError` where the agent has another network or plays other environments.
    """
    agent = load_agent(source)
    settings, trained = agent.config["settings"], agent.config["environment"]
    if settings["network"] != network:
        raise UsageError(
            f"--init-from {source}: its network is {settings['network']}, and {network} is to be "
            f"trained: add --network {settings['network']}"
        )
    for name in ("num_actions", "stack", "frame_shape", "frame_dtype"):
        if trained[name] != environment[name]:
            raise UsageError(
                f"--init-from {source}: {name.replace('_', ' ')} is {trained[name]} there and "
                f"{environment[name]} in this game"
            )
    if agent.temperature is None:
        say(
            f"warning: --init-from {source}: training starts with its actions, but the scale of "
            "its values is unknown; it is known of students by kl whose teacher gives values"
        )
        return dict(agent.network.state_dict())
    with torch.no_grad():
        for head in agent.network.modules():
            if isinstance(head, PlainHead):
                for weight in head[-1].parameters():
                    weight.mul_(agent.temperature)
    return dict(agent.network.state_dict())


def start_from(
    learner: Learner, source: Path, network: str, environment: Mapping[str, Any]
) -> None:
    """Give a learner the weights of a run's agent; raises as `initial_weights`."""
    try:
        learner.start_from(initial_weights(source, network, environment))
    except ValueError as error:
        raise UsageError(f"--init-from {source}: {error}") from error
