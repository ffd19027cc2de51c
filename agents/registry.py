"""Agents by name."""

from agents.adaptive import AdaptiveEbu
from agents.agent import Agent
from agents.double_dqn import DoubleDqn
from agents.dqn import Dqn
from agents.ebu import Ebu
from agents.nstep import NStep
from agents.optimality_tightening import OptimalityTightening
from agents.prioritized import Prioritized
from agents.q_lambda import QLambda
from agents.retrace import Retrace

AGENTS: dict[str, type[Agent]] = {
    "ebu": Ebu,
    "adaptive_ebu": AdaptiveEbu,
    "dqn": Dqn,
    "double_dqn": DoubleDqn,
    "nstep": NStep,
    "prioritized": Prioritized,
    "retrace": Retrace,
    "q_lambda": QLambda,
    "optimality_tightening": OptimalityTightening,
}
"""Agents by the name `--agent` takes."""
