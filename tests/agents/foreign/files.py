"""Files as Stable-Baselines3 and CleanRL write them, made by hand from their published layouts."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SB3_DISCRETE = {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", ":serialized:": "gAWV"}


def nature(num_outputs: int | None, side: int = 84) -> nn.Sequential:
    """CleanRL's network of dqn_atari.py; without outputs the trunk of ppo_atari.py."""
    pixels = (((side - 8) // 4 + 1 - 4) // 2 + 1 - 2) ** 2
    layers = [
        *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * pixels, 512)),
        nn.ReLU(),
    ]
    if num_outputs is not None:
        layers.append(nn.Linear(512, num_outputs))
    return nn.Sequential(*layers)


class CleanDqnAtari(nn.Module):
    """QNetwork of dqn_atari.py."""

    def __init__(self, num_actions: int, side: int = 84) -> None:
        super().__init__()
        self.network = nature(num_actions, side)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.network(x / 255.0)
        return outputs


class CleanDqn(nn.Module):
    """QNetwork of dqn.py."""

    def __init__(self, inputs: int, num_actions: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Linear(inputs, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
            nn.Linear(84, num_actions),
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.network(x.flatten(1))
        return outputs


class CleanPpoAtari(nn.Module):
    """Agent of ppo_atari.py."""

    def __init__(self, num_actions: int, side: int = 84) -> None:
        super().__init__()
        self.network = nature(None, side)
        self.actor = nn.Linear(512, num_actions)
        self.critic = nn.Linear(512, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.actor(self.network(x / 255.0))
        return outputs


class CleanPpo(nn.Module):
    """Agent of ppo.py."""

    def __init__(self, inputs: int, num_actions: int) -> None:
        super().__init__()
        self.critic, self.actor = (
            nn.Sequential(
                *(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()),
                nn.Linear(64, outputs),
            )
            for outputs in (1, num_actions)
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.actor(x.flatten(1))
        return outputs


def pickled(value: Any) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file)  # noqa: TID251 (as the other libraries do)
    return file.getvalue()


def clean_rl(path: Path, agent: nn.Module, **args: Any) -> Path:
    """A file of CleanRL; with arguments as c51 and others write it."""
    weights = agent.state_dict()
    path.write_bytes(pickled({"model_weights": weights, "args": args} if args else weights))
    return path


def sb3_names(agent: nn.Module) -> dict[str, Tensor]:
    """A CleanRL agent's weights by the names that Stable-Baselines3 gives the same layers."""
    named: dict[str, Tensor] = {}
    for name, weight in agent.state_dict().items():
        part, _, rest = name.partition(".")
        index, _, kind = rest.rpartition(".")
        if isinstance(agent, CleanDqnAtari):
            layer = {"7": "features_extractor.linear.0", "9": "q_net.0"}.get(index)
            new = f"q_net.{layer or f'features_extractor.cnn.{index}'}.{kind}"
        elif isinstance(agent, CleanDqn):
            new = f"q_net.q_net.{index}.{kind}"
        elif isinstance(agent, CleanPpoAtari):
            layer = {"7": "linear.0"}.get(index, f"cnn.{index}")
            head = {"actor": "action_net", "critic": "value_net"}.get(part)
            new = f"{head or f'features_extractor.{layer}'}.{kind}"
        else:
            net = {"actor": "policy_net", "critic": "value_net"}[part]
            last = {"actor": "action_net", "critic": "value_net"}[part]
            new = f"{last if index == '4' else f'mlp_extractor.{net}.{index}'}.{kind}"
        named[new] = weight
        if new.startswith("q_net."):
            named[new.replace("q_net.", "q_net_target.", 1)] = weight
        if new.startswith("features_extractor."):
            named |= {f"{side}_{new}": weight for side in ("pi", "vf")}
    return named


def sb3(path: Path, agent: nn.Module, num_actions: int, **data: Any) -> Path:
    """A zip as Stable-Baselines3's `save` writes it."""
    known = {
        "policy_kwargs": {},
        "num_timesteps": 1_000,
        "action_space": {**SB3_DISCRETE, "n": str(num_actions), "start": "0"},
        **data,
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(known))
        archive.writestr("pytorch_variables.pth", pickled({}))
        archive.writestr("policy.pth", pickled(sb3_names(agent)))
        archive.writestr("policy.optimizer.pth", pickled({}))
        archive.writestr("_stable_baselines3_version", "2.9.2")
    return path
