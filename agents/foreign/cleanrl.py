"""Agents of CleanRL, from the `.cleanrl_model` files that its scripts save and publish.

| script | weights | outputs |
| --- | --- | --- |
| dqn_atari.py | network.0, 2, 4 (convolutions), 7, 9 | values |
| dqn.py | network.0, 2, 4 (dense) | values |
| ppo_atari.py | network.0, 2, 4 (convolutions), 7, actor, critic | logits |
| ppo.py | actor.0, 2, 4 (dense, Tanh), critic | logits |

The file is a state dict, or {"model_weights": …, "args": …}, whose `env_id` names the game. Frames
are stacked oldest first and divided by 255 in the network, as here; where CleanRL repeats a game's
first frame in the first stack, this project has zeros.
"""

import re
from typing import Any

from agents.foreign.layers import Activation, Layers, check_layers, layers_in
from agents.foreign.pickled import check_weights
from agents.foreign.policy import ForeignPolicy
from agents.trained import Outputs
from ebu.run.reading import RefusedFileError

_ATARI = re.compile(r"(?:ALE/)?(\w+?)(?:NoFrameskip)?-v[45]")


def read(name: str, values: Any) -> ForeignPolicy:
    """The policy in what `torch.load` has read from a file of CleanRL.

    Raises ValueError, one line, for weights of another layout.
    """
    game = None
    if isinstance(values, dict) and "model_weights" in values:
        args = values.get("args")
        game = _game(args.get("env_id") if isinstance(args, dict) else None)
        values = values["model_weights"]
    weights = check_weights(values)
    network, actor = layers_in(weights, "network."), layers_in(weights, "actor.")
    known = 2 * (len(network) + len(actor))
    if known != sum(not key.startswith("critic.") for key in weights) or not (network or actor):
        raise RefusedFileError("its weights are not named as those of CleanRL's dqn and ppo")
    outputs: Outputs = "logits" if actor else "values"
    activation: Activation = "ReLU" if network else "Tanh"
    convolutions = tuple(layer for layer in network if layer.weight.ndim == 4)
    dense = (*(layer for layer in network if layer.weight.ndim == 2), *actor)
    layers = check_layers(Layers(convolutions, dense, activation))
    return ForeignPolicy(
        name=name,
        kind=f"CleanRL {'PPO' if actor else 'DQN'}",
        policy=layers,
        outputs=outputs,
        num_actions=layers.num_outputs,
        game=game,
    )


def _game(env_id: object) -> str | None:
    """A game as it is named here: Breakout for BreakoutNoFrameskip-v4."""
    if not isinstance(env_id, str):
        return None
    atari = _ATARI.fullmatch(env_id)
    return atari[1] if atari and ("NoFrameskip" in env_id or env_id.startswith("ALE/")) else env_id
