"""An ensemble of teachers of one game: the mean of their policies.

Not of their values, whose scales differ: a member with large values would decide alone (Rusu et al.
2015; Hinton et al. 2015). Members are agents
of several runs, or the learners of one run of adaptive EBU, an ensemble at no further cost.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from agents.agent import policy_weights
from agents.distillation.pipeline import Pipeline, rng_of
from agents.distillation.records import (
    ENSEMBLE_FILE,
    EnsembleRecord,
    MemberRecord,
    read_record,
    write_record,
)
from agents.distillation.settings import (
    AUTO,
    LOSSES,
    DistillConfig,
    StudentSpec,
    flag_of,
    refuse_factorised,
    student_outputs,
)
from agents.distillation.teachers import ENSEMBLE, Teacher, temperature_of
from agents.networks import Features, QNetwork
from agents.trained import WEIGHTS, TrainedAgent, load_agent
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import load_latest

LEARNERS = "adaptive_ebu"
PROBE_STATES, PROBE_GAMES = 2_000, 8
"""States that each member plays to find its temperature, and environments for them."""
PROBE = int.from_bytes(b"prob")


class MeanPolicy(QNetwork):
    """Q-networks of one game as one whose outputs are log (1/K) Σ_k softmax(Q_k / τ_k).

    Logits, whose softmax at temperature 1 is the mean of the members' policies.
    """

    temperatures: Tensor

    def __init__(self, members: Sequence[nn.Module], temperatures: Sequence[float]) -> None:
        nn.Sequential.__init__(self, *members)
        self.register_buffer("temperatures", torch.tensor(temperatures), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """Log-probabilities (B, A) float32 of states (B, stack, *frame_shape)."""
        members = torch.stack([member(states).float() for member in self])
        mean = torch.softmax(members / self.temperatures[:, None, None], dim=2).mean(dim=0)
        # Where all members are sure, the other actions' probabilities round to 0.
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

    def features(self, states: Tensor) -> Features:
        raise UsageError("an ensemble has no layers to compare with, but outputs alone")


def learners_of(
    run_dir: Path, weights: Literal["final", "best"], device: torch.device
) -> list[Teacher]:
    """All learners of a run of adaptive EBU, by ascending diffusion factor.

    Raises `UsageError` for a run of another agent or of one learner; else as `load_agent`.
    """
    playing = load_agent(run_dir, weights, device)
    settings = playing.config["settings"]
    count = settings.get("learners", 1)
    if settings["agent"] != LEARNERS or count < 2:
        raise UsageError(
            f"--all-learners: {run_dir} is of {settings['agent']} and has one learner: name a run "
            f"of {LEARNERS} with several, or leave the flag out"
        )
    checkpoint = load_latest(run_dir / WEIGHTS[weights], state_only=True)
    if checkpoint is None or checkpoint.state["frames"] != playing.frames:
        raise EbuError(f"{run_dir} is being trained: start again")
    members = []
    for learner in range(count):
        network = copy.deepcopy(playing.network)
        state = {**checkpoint.state["agent"], "best": learner}
        network.load_state_dict(policy_weights(state))
        warnings = playing.warnings if learner == 0 else []
        agent = TrainedAgent(network, "values", playing.config, playing.frames, device, warnings)
        members.append(Teacher(agent, run_dir, learner))
    return members


def check_members(members: Sequence[Teacher]) -> None:
    """Raise `UsageError` unless all members play the same game under the same protocol."""
    first, *others = members
    for other in others:
        for part, keys in {"settings": ("game", "protocol"), "environment": None}.items():
            own, its = first.agent.config[part], other.agent.config[part]
            for key in keys or sorted(own.keys() | its.keys()):
                if own.get(key) != its.get(key):
                    raise UsageError(
                        f"{key} of {first.run_dir} is {own.get(key)}, of {other.run_dir} "
                        f"{its.get(key)}: members of an ensemble play the same game and protocol"
                    )


def check(config: DistillConfig, specs: Sequence[StudentSpec]) -> None:
    """Raise `UsageError` for students that an ensemble cannot teach: its outputs are a policy."""
    refuse_factorised("an ensemble", config.students)
    losses_of = [spec.weights for spec in specs]
    for name in sorted({n for weights in losses_of for n, weight in weights.items() if weight}):
        if LOSSES[name].layers:
            raise UsageError(
                f"{name} compares layers with the teacher's, and an ensemble has outputs alone: "
                f"leave --{flag_of(name)} out"
            )
    if "values" in {student_outputs(weights, config.outputs) for weights in losses_of}:
        raise UsageError(
            "an ensemble is a policy, which has no values to teach: choose kl, hard or centred for "
            "--loss and --baselines, and no --outputs values"
        )


def join_teachers(pipeline: Pipeline, members: Sequence[Teacher]) -> Pipeline:
    """The pipeline with the ensemble of all members as its teacher, the first being its own.

    Each member's temperature is that of the pipeline's setting for its own values; auto is its
    median gap over `PROBE_STATES` states of its own play. The ensemble's outputs are a policy's
    logits, and are not softened again. Temperatures are kept in ensemble.json.
    """
    path = pipeline.config.out / ENSEMBLE_FILE
    record = read_record(path, EnsembleRecord)
    if record is None:
        record = {"members": [_probe(pipeline, *each) for each in enumerate(members)]}
        write_record(path, record)
    temperatures = [member["temperature"] for member in record["members"]]
    first = pipeline.teacher
    # Learners of one run share its frames.
    frames = {member.run_dir: member.agent.frames for member in members}.values()
    teacher = TrainedAgent(
        MeanPolicy([member.agent.network for member in members], temperatures),
        "logits",
        {**first.config, "settings": {**first.config["settings"], ENSEMBLE: _in_words(members)}},
        sum(frames) if all(frames) else 0,
        first.device,
        [],
    )
    return replace(pipeline, teacher=teacher, config=replace(pipeline.config, temperature=AUTO))


def _in_words(members: Sequence[Teacher]) -> dict[str, str]:
    networks = Counter(str(member.agent.config["settings"]["network"]) for member in members)
    return {
        "run_dir": ", ".join(member.name for member in members),
        "network": " + ".join(f"{count} × {name}" for name, count in networks.items()),
    }


def _probe(pipeline: Pipeline, number: int, member: Teacher) -> MemberRecord:
    """Let a member play, and measure its temperature."""
    agent = member.agent
    rng = rng_of(pipeline.config.seed, PROBE, number)
    states = pipeline.play(f"temperature of {member.name}", agent, PROBE_GAMES, PROBE_STATES, rng)
    found = temperature_of(pipeline.config.temperature, states.outputs, kind=agent.outputs)
    return {
        "member": member.name,
        "frames": agent.frames or None,
        "temperature": found.value,
        "gap": found.median_gap,
    }
