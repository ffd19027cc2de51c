"""What acts and learns: Q-networks, learners and the agents built on them.

The names below are imported when they are first asked for, so that settings can be read and
checked before torch is loaded.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.agent import Agent
    from agents.learner import Learner
    from agents.registry import build_agent, build_learner
    from agents.settings import AGENTS, AgentConfig, EbuConfig, LearnerConfig
    from agents.trained import Precision, TrainedAgent, load_agent

_MODULES = {
    "Agent": "agent",
    "Learner": "learner",
    "build_agent": "registry",
    "build_learner": "registry",
    "AGENTS": "settings",
    "AgentConfig": "settings",
    "EbuConfig": "settings",
    "LearnerConfig": "settings",
    "Precision": "trained",
    "TrainedAgent": "trained",
    "load_agent": "trained",
}

__all__ = [
    "AGENTS",
    "Agent",
    "AgentConfig",
    "EbuConfig",
    "Learner",
    "LearnerConfig",
    "Precision",
    "TrainedAgent",
    "build_agent",
    "build_learner",
    "load_agent",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    return getattr(importlib.import_module(f"agents.{_MODULES[name]}"), name)
