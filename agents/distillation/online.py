"""Online distillation: train students while their teacher trains, on its replay memory.

Policy distillation (Rusu et al. 2015) of the network of the best evaluation so far: the current one
is better and worse by turns in training. Update schedule, step size and the running temperature are
this project's own choices.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.agent import Agent, policy_weights
from agents.distillation.losses import policy_divergence
from agents.distillation.records import file_name, student_directory
from agents.distillation.students import Student, build, save_student
from agents.distillation.teachers import median_gap
from agents.distillation.trainer import generator_from
from agents.finiteness import FiniteUpdates, all_finite
from agents.log_averages import Averages
from agents.networks import build_network
from agents.optimizers import Adam, averages_of, load_averages
from agents.trained import TrainedAgent
from ebu.replay import EpisodicReplay
from ebu.run.reading import LARGEST_FLOAT
from ebu.state_checks import check_range, check_state

EVERY_UPDATES = 4
"""Updates of the agent for each update of the students."""
BATCH_SIZE = 32
"""States in a minibatch, the same for all students, drawn uniformly from the memory."""
LEARNING_RATE = 3e-4
"""Constant step size of Adam: the teacher changes, too."""
REFRESH_UPDATES = 1_000
"""Before the first evaluation: updates of the agent between two copies of it as the teacher."""
GAP_SHARE = 0.01
"""Weight of a minibatch's median gap in the running temperature."""
_STREAM = int.from_bytes(b"onli")


class Students:
    """Students of an agent in training, and their teacher.

    The teacher is the network of the best evaluation so far; before the first one, a copy of the
    agent's network, renewed every `REFRESH_UPDATES`. It is the one that `load_agent` would load: of
    an agent with several learners the one that plays.

    τ is the median gap between the teacher's two best actions, as a running mean of the
    minibatches' medians that starts with the first.

    The agent's random numbers and state are not touched: it trains to the same bits as alone.

    | argument | meaning |
    | --- | --- |
    | names | of the students' networks |
    | config | the run's config.json: {"settings": …, "environment": …} |
    | seed | of the run |

    Raises `UsageError`, one line, for an unknown name.
    """

    def __init__(
        self,
        names: Sequence[str],
        agent: Agent,
        config: dict[str, Any],
        run_dir: Path,
        *,
        seed: int,
    ) -> None:
        self._agent = agent
        self._config = config
        self._run_dir = run_dir
        self._seed = seed
        self._device = agent.learner.device
        weights, self._rng = (
            np.random.default_rng(stream)
            for stream in np.random.SeedSequence(seed, spawn_key=(_STREAM,)).spawn(2)
        )
        environment = config["environment"]
        sizes: dict[str, Any] = {
            "stack": environment["stack"],
            "frame_shape": tuple(environment["frame_shape"]),
            "num_actions": environment["num_actions"],
        }
        self._students = {
            name: _OnlineStudent(
                build(name, **sizes, generator=generator_from(weights)).to(self._device)
            )
            for name in names
        }
        self._teacher = build_network(
            str(config["settings"]["network"]),
            **sizes,
            generator=torch.Generator(),
            quantiles=config["settings"].get("quantiles", 0),
        ).to(self._device)
        self._teacher.requires_grad_(False)
        self._evaluated = False
        self._updates = 0
        # On the device: reading it would wait.
        self._temperature = torch.zeros((), dtype=torch.float64, device=self._device)

    def learn(self, replay: EpisodicReplay, updates: int) -> None:
        """Make the students' updates due after `updates` more of the agent."""
        for _ in range(updates):
            if not self._evaluated and self._updates % REFRESH_UPDATES == 0:
                self._copy_teacher()
            self._updates += 1
            if self._updates % EVERY_UPDATES == 0:
                self._update(replay)

    def set_teacher(self) -> None:
        """Make the agent as it is now the teacher: it had the best evaluation so far."""
        self._evaluated = True
        self._copy_teacher()

    def metrics(self) -> dict[str, float]:
        """Averages since the last call, for the logs: of each student the loss, its divergence from
        the teacher, and the agreement, the share of states with the teacher's action."""
        metrics = {
            f"distill/{file_name(name)}/{what}": value
            for name, online in self._students.items()
            for what, value in online.averages.take().items()
        }
        return {**metrics, "distill/temperature": float(self._temperature)} if metrics else metrics

    def save(self, frames: int) -> None:
        """Write each student's run directory, RUN_DIR/students/NAME.

        Its checkpoint has τ, or 1 where the teacher had no policy yet and nothing was learnt.

        Raises `UsageError` where it holds something else, `EbuError` where the disk is full.
        """
        temperature = float(self._temperature) or 1.0
        teacher = TrainedAgent(
            self._teacher, "values", self._config, frames, self._device, warnings=[]
        )
        for name, online in self._students.items():
            save_student(
                student_directory(self._run_dir, name),
                online.student,
                teacher=teacher,
                teacher_dir=self._run_dir,
                seed=self._seed,
                settings={"student": name, "losses": {"kl": 1.0}, "online": True},
                temperature=temperature,
            )

    def first_failed_update(self) -> tuple[str, int] | None:
        """A student and its first update whose loss was not finite, or the last if weights are not.

        None if all are finite.
        """
        for name, online in self._students.items():
            failed = online.first_failed_update()
            if failed is not None:
                return name, failed
        return None

    def _copy_teacher(self) -> None:
        self._teacher.load_state_dict(policy_weights(self._agent.state_dict()))

    def _update(self, replay: EpisodicReplay) -> None:
        states = replay.read(*replay.transitions.draw(self._rng, BATCH_SIZE)).states
        with torch.no_grad():
            labels = self._teacher(states)
        share = torch.where(self._temperature > 0, GAP_SHARE, 1.0)
        self._temperature += share * (median_gap(labels) - self._temperature)
        for online in self._students.values():
            online.update(states, labels, self._temperature)

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self._updates,
            "evaluated": self._evaluated,
            "temperature": float(self._temperature),
            "rng": self._rng.bit_generator.state,
            "teacher": dict(self._teacher.state_dict()),
            # The key of the first version, so that its runs can be resumed.
            "pupils": {
                file_name(name): online.state_dict() for name, online in self._students.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, self.state_dict(), path="distiller/")
        check_range(np.array(state["temperature"]), 0, LARGEST_FLOAT, "distiller/temperature")
        self._updates = state["updates"]
        self._evaluated = state["evaluated"]
        self._temperature.fill_(state["temperature"])
        self._rng.bit_generator.state = state["rng"]
        self._teacher.load_state_dict(state["teacher"])
        for name, online in self._students.items():
            online.load_state_dict(state["pupils"][file_name(name)])
            online.start_at(self._updates // EVERY_UPDATES)


class _OnlineStudent:
    """A student with its optimizer and averages."""

    def __init__(self, student: Student) -> None:
        self.student = student
        weights = [*student.parameters()]
        self.averages = Averages(("loss", "agreement"), weights[0].device)
        self._optimizer = Adam(weights, learning_rate=LEARNING_RATE)
        self._finite = FiniteUpdates(weights[0].device)
        self._updates = 0

    def update(self, states: Tensor, labels: Tensor, temperature: Tensor) -> None:
        """Make a gradient step towards the teacher's outputs (B, A) for states (B, stack, …).

        temperature: (). With 0 nothing is learnt: a teacher with equal values for all actions has
        no policy yet.
        """
        outputs = self.student(states)
        has_policy = temperature > 0
        temperature = torch.where(has_policy, temperature, 1.0)
        loss = policy_divergence(labels, outputs, temperature=temperature) * has_policy
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._updates += 1
        self._finite.add([loss.detach()])
        agreement = (outputs.argmax(dim=1) == labels.argmax(dim=1)).float().mean()
        self.averages.add(loss.detach(), agreement)

    def start_at(self, updates: int) -> None:
        """Count on from this many updates, all of them finite."""
        self._updates = updates
        self._finite.start_at(updates)

    def first_failed_update(self) -> int | None:
        """The first update whose loss was not finite, or the last if weights are not; else None."""
        failed = self._finite.first_failure()
        slots = [each for slot in self._optimizer.state.values() for each in slot.values()]
        if failed is None and not all_finite([*self.student.parameters(), *slots]):
            return self._updates
        return failed

    def state_dict(self) -> dict[str, Any]:
        return {
            "student": dict(self.student.state_dict()),
            "optimizer": averages_of(self._optimizer, self.student),
            "averages": self.averages.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        load_averages(self._optimizer, self.student, state["optimizer"])
        self.averages.load_state_dict(state["averages"])
