"""DQN and PPO of Stable-Baselines3, from the zip files that `model.save` writes.

Of the archive `policy.pth` is read, weights alone, and `data`, as JSON: the pickled objects in it
are left as the text that they are. What it knows is the number of actions and steps, the activation
and whether images are divided by 255, not the game.

Its Atari states are this project's: four frames of 84 × 84, oldest first, divided by 255
(`VecFrameStack` and `VecTransposeImage`, which moves the frames before the pixels).
"""

import zipfile
from typing import Any, cast

from agents.foreign.layers import ACTIVATIONS, Activation, Layers, check_layers, layers_in
from agents.foreign.pickled import check_weights, load_values, read_member
from agents.foreign.policy import ForeignPolicy
from agents.trained import Outputs
from ebu.run.reading import RefusedFileError, parse_json

POLICY, DATA = "policy.pth", "data"


def is_ours(archive: zipfile.ZipFile) -> bool:
    """Whether an archive was written by Stable-Baselines3."""
    return POLICY in archive.namelist()


def read(name: str, archive: zipfile.ZipFile) -> ForeignPolicy:
    """The policy in a zip of Stable-Baselines3.

    Raises ValueError, one line, for another algorithm, policy or space than DQN's and PPO's
    CnnPolicy and MlpPolicy over discrete actions.
    """
    weights = check_weights(load_values(read_member(archive, POLICY)))
    data = parse_json(read_member(archive, DATA), finite=False)
    if not isinstance(data, dict):
        raise RefusedFileError("its data are no settings")
    kind: str
    outputs: Outputs
    if any(key.startswith("q_net.") for key in weights):
        kind, outputs, activation = "Stable-Baselines3 DQN", "values", "ReLU"
        extractor, heads = "q_net.features_extractor.", ["q_net.q_net."]
    elif "action_net.weight" in weights:
        if "log_std" in weights:
            raise RefusedFileError("its actions are continuous: distil agents of discrete ones")
        kind, outputs, activation = "Stable-Baselines3 PPO", "logits", "Tanh"
        extractor, heads = "features_extractor.", ["mlp_extractor.policy_net.", "action_net."]
    else:
        raise RefusedFileError("it is neither a DQN nor a PPO of Stable-Baselines3")
    convolutions = layers_in(weights, f"{extractor}cnn.")
    flat = layers_in(weights, f"{extractor}linear.")
    known = 2 * (len(convolutions) + len(flat))
    if known != sum(key.startswith(extractor) for key in weights):
        raise RefusedFileError("its features are another extractor's than CnnPolicy's: not known")
    head = [layer for prefix in heads for layer in layers_in(weights, prefix)]
    given, divided = _settings(data)
    own: Activation = given or cast(Activation, activation)
    if convolutions and own != "ReLU" and len(head) > 1:
        raise RefusedFileError(f"its layers after the convolutions have {own} between them")
    layers = Layers(
        tuple(convolutions),
        (*flat, *head),
        "ReLU" if convolutions else own,
        divided=divided,
    )
    num_actions = check_layers(layers).num_outputs
    _check_actions(data, num_actions)
    return ForeignPolicy(
        name=name,
        kind=kind,
        policy=layers,
        outputs=outputs,
        num_actions=num_actions,
        steps=_count(data.get("num_timesteps")),
    )


def _settings(data: dict[str, Any]) -> tuple[Activation | None, bool]:
    """The activation that was chosen, if one was, and whether images are divided by 255."""
    chosen = data.get("policy_kwargs")
    chosen = chosen if isinstance(chosen, dict) else {}
    named = str(chosen.get("activation_fn", "")).removesuffix("'>").rpartition(".")[2]
    if named and named not in ACTIVATIONS:
        raise RefusedFileError(f"its activation is {named[:40]!a}: {' or '.join(ACTIVATIONS)} are")
    divided = str(chosen.get("normalize_images", True)).lower() != "false"
    return (cast(Activation, named) if named else None), divided


def _check_actions(data: dict[str, Any], num_actions: int) -> None:
    space = data.get("action_space")
    if not isinstance(space, dict):
        return
    kind = str(space.get(":type:", ""))
    if "discrete.Discrete" not in kind or str(space.get("n", num_actions)) != str(num_actions):
        raise RefusedFileError("its actions are not one discrete choice")


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**40 else 0
