"""Agents by name."""

from agents.agent import Agent
from agents.dqn import Dqn
from agents.ebu import Ebu

AGENTS: dict[str, type[Agent]] = {"ebu": Ebu, "dqn": Dqn}
"""Agents by the name `--agent` takes."""
