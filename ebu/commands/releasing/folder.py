"""Write the folder of a released agent.

README.md             the model card
model.safetensors     the network's weights
model.onnx            the same network, where it can be exported
config.json           settings and environment, and what the weights are
evaluations/*.json    what evaluate.py has measured of these weights, and of random play, in games
                      of the run's own length
provenance.json       code and machine that trained them
replay.mp4            the best game of the evaluation, where its environment has pictures
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from agents import TrainedAgent, load_agent
from agents.distillation.deploy.export import ONLY_SINGLE_NETWORKS, exportable, onnx_bytes
from agents.distillation.deploy.onnx_policy import OnnxPolicy, check_parity, compare
from agents.distillation.settings import require_export
from ebu.commands.evaluate_arguments import EvaluateConfig
from ebu.commands.evaluation import rules_of, run
from ebu.commands.release import ReleaseConfig
from ebu.commands.releasing.card import card_text
from ebu.commands.reporting.scores import FOLDER, read_records, write_evaluation
from ebu.commands.studying.provenance import PROVENANCE, provenance_of
from ebu.errors import EbuError, UsageError
from ebu.evaluation import Evaluator
from ebu.run.directory import CONFIG, RELEASED, check_links, differences, identity_of, read_config
from ebu.run.files import as_json, write_whole, writing
from ebu.run.progress import say
from ebu.run.released import WEIGHTS_FILE, write_weights
from envs import EnvironmentFault
from envs.film import CannotFilmError
from envs.protocols import PROTOCOLS

CARD, FILM, ONNX = "README.md", "replay.mp4", "model.onnx"
"""Model hubs show files of the first two names."""
PARITY_STATES = 1_000
_PATHS = ("run_dir", "init_from", "teacher", "from")
"""Settings and entries of records that are paths: of another machine they say nothing."""


def write_folder(config: ReleaseConfig) -> None:
    """Evaluate and film the agent, and write its folder; config.json comes last.

    Raises `UsageError` where the folder holds something else or the run cannot be played, and
    `EbuError` for a run without whole, finite weights and where the disk is full or fails.
    """
    out, agent = config.out, load_agent(config.run_dir, config.weights)
    if RELEASED in agent.config:
        raise UsageError(f"{config.run_dir} is released already: copy or push it as it is")
    with writing(out):
        _check_out(out, agent)
    for line in agent.warnings:
        say(f"warning: {line}")
    evaluation = EvaluateConfig(
        config.run_dir,
        episodes=config.episodes,
        weights=config.weights,
        device=config.device,
        threads=config.threads,
        trust_env=config.trust_env,
    )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        film = Path(scratch) / FILM
        played = _evaluate(evaluation, film)
        filmed = film.read_bytes() if film.exists() else None
    if played["trained_frames"] != agent.frames:
        raise EbuError(
            f"{config.run_dir} saved other weights meanwhile: run the same command again when it "
            "has ended"
        )
    records = [
        _without_paths(record)
        for record in read_records(config.run_dir)
        if record.get("max_steps") is None
        and (
            record["policy"] == "random"
            or (record["weights"], record["trained_frames"]) == (config.weights, agent.frames)
        )
    ]
    records = [record for record in records if _is_whole(record, played)]
    if (played := _without_paths(played)) not in records:
        records.append(played)
    name = Path(os.path.abspath(out)).name
    onnx = _onnx(agent, name, rules_of(evaluation).evaluator)
    # What an earlier release has left stays whole until everything is played.
    with writing(out):
        for path in (out / FILM, out / ONNX, *(out / FOLDER).glob("*.json")):
            path.unlink(missing_ok=True)
    if filmed is not None:
        write_whole(out / FILM, filmed)
    for record in records:
        write_evaluation(out, record)
    if onnx is not None:
        write_whole(out / ONNX, onnx)
    released = write_weights(
        out, agent.network.state_dict(), which=config.weights, frames=agent.frames
    )
    if agent.config["settings"].get("online") and agent.temperature is not None:
        released["temperature"] = agent.temperature
    described = {
        **agent.config,
        "settings": _without_paths(agent.config["settings"]),
        RELEASED: released,
    }
    provenance = provenance_of(config.run_dir)
    write_whole(out / PROVENANCE, as_json(provenance))
    files = [name for name in (WEIGHTS_FILE, ONNX, FILM) if (out / name).exists()]
    text = card_text(name, described, agent, records, provenance, files)
    write_whole(out / CARD, text.encode(errors="backslashreplace"))
    write_whole(out / CONFIG, as_json(described))


def _check_out(out: Path, agent: TrainedAgent) -> None:
    """Raise `UsageError` where the folder holds something else than a release of this agent."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: choose a folder")
    # Those of version control are left alone.
    names = [name for name in os.listdir(out) if not name.startswith(".")] if out.exists() else []
    if not names:
        return
    if CONFIG not in names:
        # What a release that was stopped has left.
        if set(names) <= {FOLDER, FILM, ONNX, WEIGHTS_FILE, PROVENANCE, CARD}:
            return
        raise UsageError(f"--out {out} holds other files: choose another folder")
    check_links(out)
    before = read_config(out)
    if RELEASED not in before:
        raise UsageError(f"--out {out} holds a run: choose another folder")
    own = {**agent.config, "settings": _without_paths(agent.config["settings"])}
    if differing := differences(identity_of(before), identity_of(own)):
        raise UsageError(
            f"--out {out} holds another agent: {'; '.join(differing)}. Choose another folder"
        )


def _is_whole(record: Mapping[str, Any], played: Mapping[str, Any]) -> bool:
    """Whether a record has all that the card tells; those of earlier versions may lack some."""
    interval = record["interval_95"]
    scores = (record.get("random_score"), record.get("human_score"))
    return (
        played.keys() - {"max_steps"} <= record.keys()
        and record["protocol"] in PROTOCOLS
        and (interval is None or len(interval) == 2)
        and (record["human_normalised"] is None or None not in scores)
    )


def _without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values whose paths are names, which say nothing of this machine."""
    return {
        name: Path(value).name if name in _PATHS and isinstance(value, str) else value
        for name, value in values.items()
    }


def _evaluate(config: EvaluateConfig, film: Path) -> dict[str, Any]:
    """Play and film; where the environment has no pictures, play alone."""
    try:
        return run(replace(config, video=film))
    except UsageError as error:
        if not isinstance(error.__cause__, CannotFilmError):
            raise
        say(f"warning: there is no film: {error.__cause__}")
        return run(config)


class _States:
    """At most `PARITY_STATES` states of a game, evenly spread, to compare a network on."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []
        self._steps, self._every = 0, 1

    def keep(self, stacks: Tensor) -> None:
        """Keep the state of one step of the game, or leave it out."""
        if self._steps % self._every == 0:
            self._seen.append(stacks.cpu().clone())
        self._steps += 1
        if len(self._seen) > PARITY_STATES:
            self._seen = self._seen[::2]
            self._every *= 2

    def __len__(self) -> int:
        return sum(map(len, self._seen))

    def stacks(self, which: Tensor) -> Tensor:
        """States (B, stack, *frame_shape) by their indices (B,)."""
        return torch.cat(self._seen)[which]


def _onnx(agent: TrainedAgent, name: str, evaluator: Evaluator) -> bytes | None:
    """The network as ONNX, compared with torch's outputs on the states of one game.

    None where it cannot be exported. Raises `EbuError` where the environment or the comparison
    fails.
    """
    try:
        require_export()
    except UsageError as error:
        say(f"warning: there is no {ONNX}: {error}")
        return None
    if not exportable(agent.network):
        say(f"there is no {ONNX}: {ONLY_SINGLE_NETWORKS}")
        return None
    states = _States()

    def choose(stacks: Tensor, **rules: Any) -> Any:
        states.keep(stacks)
        return agent.choose(stacks.cpu(), **rules)

    try:
        replace(evaluator, num_envs=1, episodes=1).play(choose)
    except EnvironmentFault as fault:
        raise EbuError(f"{fault}; run the same command again") from fault
    content = onnx_bytes(agent, name)
    policy = OnnxPolicy(content, ONNX)
    check_parity(compare(agent, policy, states, torch.arange(len(states))), ONNX)
    return content
