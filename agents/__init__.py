"""What acts and learns: Q-networks, learners and the agents built on them."""

from agents.agent import Agent, AgentConfig
from agents.dqn import Dqn
from agents.ebu import Ebu
from agents.learner import Learner, LearnerConfig
from agents.trained import TrainedAgent, load_agent

AGENTS: dict[str, type[Agent]] = {"ebu": Ebu, "dqn": Dqn}
"""Agents by the name `--agent` takes."""

__all__ = [
    "AGENTS",
    "Agent",
    "AgentConfig",
    "Dqn",
    "Ebu",
    "Learner",
    "LearnerConfig",
    "TrainedAgent",
    "load_agent",
]
