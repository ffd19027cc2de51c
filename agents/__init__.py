"""What acts and learns: Q-networks, learners and the agents built on them."""

from agents.agent import Agent, AgentConfig
from agents.dqn import Dqn
from agents.ebu import Ebu, EbuConfig
from agents.learner import Learner, LearnerConfig
from agents.registry import AGENTS
from agents.trained import Precision, TrainedAgent, load_agent

__all__ = [
    "AGENTS",
    "Agent",
    "AgentConfig",
    "Dqn",
    "Ebu",
    "EbuConfig",
    "Learner",
    "LearnerConfig",
    "Precision",
    "TrainedAgent",
    "load_agent",
]
