"""Several teachers of one game as one: the mean of their policies.

Never of their values, which are of different scales (Rusu et al. 2015; Hinton et al. 2015). Members
are agents of several runs, or the learners of one run of adaptive EBU: with diffusion factors of
their own they are an ensemble that cost nothing more.
"""

import contextlib
import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, cast

import torch
from torch import Tensor, nn

from agents.agent import policy_weights
from agents.distillation import losses
from agents.distillation.collect import collect
from agents.distillation.pipeline import Offline
from agents.distillation.records import read_record, write_record
from agents.distillation.sources import finished, rng_of
from agents.distillation.teachers import ENSEMBLE, load_teacher
from agents.distillation.temperature import temperature_of
from agents.networks import Features, QNetwork
from agents.trained import WEIGHTS, TrainedAgent
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import load_latest

LEARNERS = "adaptive_ebu"
PROBE_STATES, PROBE_GAMES = 2_000, 8
"""States that each member plays to find its temperature, and games side by side in it."""
PROBE = int.from_bytes(b"prob")


class Member(NamedTuple):
    """A teacher in an ensemble: of which run; which of its learners, None: the one that plays."""

    agent: TrainedAgent
    run_dir: Path
    learner: int | None = None

    @property
    def name(self) -> str:
        return str(self.run_dir) + ("" if self.learner is None else f" learner {self.learner}")


class MemberRecord(TypedDict):
    """A member: its name, its τ, and its median gap in the units of its outputs."""

    member: str
    frames: int
    temperature: float
    gap: float


class EnsembleRecord(TypedDict):
    """What ensemble.json holds."""

    members: list[MemberRecord]


class MeanPolicy(QNetwork):
    """Q-networks of one game as one whose outputs are log (1/K) Σ_k softmax(Q_k / τ_k).

    Logits, whose softmax at temperature 1 is the mean of the members' policies; `losses.ensemble`.
    """

    temperatures: Tensor

    def __init__(self, members: Sequence[nn.Module], temperatures: Sequence[float]) -> None:
        nn.Sequential.__init__(self, *members)
        self.register_buffer("temperatures", torch.tensor(temperatures), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """Log-probabilities (B, A) float32 of states (B, stack, *frame_shape)."""
        members = torch.stack([member(states).float() for member in self])
        mean = losses.ensemble(members, self.temperatures)
        # Where all members are sure, the other actions' probabilities round to 0.
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

    def features(self, states: Tensor) -> Features:
        raise UsageError("an ensemble has no layers to compare with, but outputs alone")


def learners_of(
    run_dir: Path, weights: Literal["final", "best"], device: torch.device
) -> list[Member]:
    """All learners of a run of adaptive EBU, by ascending diffusion factor.

    Raises `UsageError` for a run of another agent or of one learner; else as `load_teacher`.
    """
    playing = load_teacher(run_dir, weights, device)
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
        members.append(Member(agent, run_dir, learner))
    return members


def load_members(
    run_dirs: Sequence[Path],
    weights: Literal["final", "best"],
    device: torch.device,
    *,
    all_learners: bool,
) -> dict[str, list[Member]]:
    """The agents of several runs by their games: those of one game are an ensemble.

    Raises `UsageError` for a run that is named twice, and for agents of a game that do not fit
    together; else as `load_teacher` and `learners_of`.
    """
    if len({run_dir.resolve() for run_dir in run_dirs}) < len(run_dirs):
        raise UsageError(f"{' '.join(map(str, run_dirs))}: name each run once")
    games: dict[str, list[Member]] = {}
    for run_dir in run_dirs:
        if all_learners:
            members = learners_of(run_dir, weights, device)
        else:
            members = [Member(load_teacher(run_dir, weights, device), run_dir)]
        game = str(members[0].agent.config["settings"]["game"])
        games.setdefault(game, []).extend(members)
    for members in games.values():
        check_members(members)
    return games


def check_members(members: Sequence[Member]) -> None:
    """Raise `UsageError` unless all members play the same game under the same protocol."""
    first, *others = members
    for other in others:
        for part, keys in {"settings": ("game", "protocol"), "environment": None}.items():
            own, its = first.agent.config[part], other.agent.config[part]
            for key in keys or sorted(own.keys() | its.keys()):
                if own.get(key) != its.get(key):
                    raise UsageError(
                        f"{key} of {first.run_dir} is {own.get(key)}, of {other.run_dir} "
                        f"{its.get(key)}: an ensemble is of agents of the same game and setting"
                    )


def as_ensemble(procedure: Offline, members: Sequence[Member]) -> Offline:
    """The procedure with all its members as the teacher: its first is the procedure's own.

    Each member's temperature is what the procedure's setting stands for with its own values, auto
    its median gap over `PROBE_STATES` states of its own play. The ensemble's outputs are a policy's
    logits already, and are softened no further. Temperatures are kept in ensemble.json.

    Raises `Stopped` where told to stop.
    """
    path = procedure.out / "ensemble.json"
    record: EnsembleRecord | None = read_record(path, cast(Any, EnsembleRecord))
    if record is None:
        record = {"members": [_probed(procedure, *each) for each in enumerate(members)]}
        write_record(path, record)
    temperatures = [member["temperature"] for member in record["members"]]
    first = procedure.teacher
    teacher = TrainedAgent(
        MeanPolicy([member.agent.network for member in members], temperatures),
        "logits",
        {**first.config, "settings": {**first.config["settings"], ENSEMBLE: _in_words(members)}},
        # Learners of one run have seen the same frames.
        sum({member.run_dir: member.agent.frames for member in members}.values()),
        first.device,
        [],
    )
    return replace(procedure, teacher=teacher, temperature="auto")


def _in_words(members: Sequence[Member]) -> dict[str, str]:
    networks = Counter(str(member.agent.config["settings"]["network"]) for member in members)
    return {
        "run_dir": ", ".join(member.name for member in members),
        "network": " + ".join(f"{count} × {name}" for name, count in networks.items()),
    }


def _probed(procedure: Offline, number: int, member: Member) -> MemberRecord:
    agent = member.agent
    rng = rng_of(procedure.seed, PROBE, number)
    env = procedure.make_games(PROBE_GAMES, int(rng.integers(2**31)))
    with (
        contextlib.closing(env),
        procedure.bar(f"temperature of {member.name}: states", PROBE_STATES, "states") as progress,
    ):
        states = collect(
            env,
            agent.outputs_of,
            count=PROBE_STATES,
            rng=rng,
            random_start_actions=procedure.examination.evaluator.random_start_actions,
            device=agent.device,
            should_stop=procedure.should_stop,
            progress=progress,
        )
    outputs = finished(states).outputs
    found = temperature_of(procedure.temperature, outputs, kind=agent.outputs)
    return {
        "member": member.name,
        "frames": agent.frames,
        "temperature": found.value,
        "gap": found.median_gap,
    }
