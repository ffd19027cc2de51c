"""The model card of a released agent: what it is, how it scores, how to use it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agents import TrainedAgent
from agents.distillation.students import num_parameters
from agents.trained import IMPORTED, STUDENT
from ebu.commands.trust import trust_words
from ebu.run.directory import RELEASED
from ebu.run.markdown import NONE, table
from envs import is_atari
from envs.protocols import PROTOCOLS, Protocol

FILES = {
    "model.safetensors": "weights of the network, by the names of its layers",
    "model.onnx": "the same network, compared with torch's outputs: play it without PyTorch",
    "replay.mp4": "the best game of the evaluation, at twice its speed",
}
WEIGHTS_FLAG: dict[str, tuple[str, ...]] = {"final": (), "best": ("--weights", "best")}
"""What evaluate.py is told of released weights."""
WHICH = {"final": "after training", "best": "at the best evaluation in training"}


def card_text(
    name: str,
    config: Mapping[str, Any],
    agent: TrainedAgent,
    records: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    files: Sequence[str],
) -> str:
    """README.md: metadata that hubs read, then the card itself.

    | argument | meaning |
    | --- | --- |
    | config | config.json of the folder |
    | records | evaluations of these weights, and of random play |
    | files | which of `FILES` there are |
    """
    settings, released = config["settings"], config[RELEASED]
    game, student = str(settings["game"]), settings["agent"] == STUDENT
    of_agent = [record for record in records if record["policy"] == "agent"]
    what = f"An agent of the method `{_cell(settings['agent'])}`, trained"
    if student:
        what = f"A policy distilled from `{_cell(settings.get('teacher'))}`"
    elif settings["agent"] == IMPORTED:
        what = f"A policy imported from `{_cell(settings.get('from'))}`"
    about = {
        "weights": f"{released['weights']}: {WHICH[released['weights']]}",
        "frames of training": f"{agent.frames:,}" + " (of its teacher)" * student
        if agent.frames
        else None,
        "seed": settings.get("seed"),
        "trained under protocol": settings["protocol"],
        "network": f"{settings['network']}, {num_parameters(agent.network):,} parameters",
        "outputs": agent.outputs,
        "actions": agent.num_actions,
        "precision of training": settings.get("precision"),
        "code": " ".join(filter(None, (provenance["ebu_version"], provenance["commit"]))) or None,
        "trained on": provenance["hardware"] or None,
    }
    steps = settings.get("eval_max_steps")
    film = ["## Film", "[The best game](replay.mp4)"] if "replay.mp4" in files else []
    parts = [
        _metadata(name, game, [record for record in of_agent if not _other_epsilon(record)]),
        f"# {_cell(name)}",
        f"{what} to play **{_cell(game)}**, with "
        "the package `ebu` (Episodic Backward Update: Lee, Choi and Chung, NeurIPS 2019).",
        "## Evaluation",
        table(
            [
                *("policy", "protocol", "ε", "games", "mean score", "95 % interval", "median"),
                *("human-normalised", "precision"),
            ],
            map(_row, records),
        ),
        "Raw scores of whole games with fresh seeds. The interval is Student's t over games: it "
        "says nothing of agents trained with other seeds."
        + " Best weights are chosen by an evaluation, so judge them by games played afterwards."
        * (released["weights"] == "best"),
        *(_rules(game, protocol) for protocol in sorted({str(r["protocol"]) for r in records})),
        *([f"Games are cut after {steps:,} agent steps."] if steps is not None else []),
        *film,
        "## Training",
        table(["setting", "value"], [(key, _cell(value)) for key, value in about.items()]),
        "All settings are in `config.json`.",
        "## Use",
        _use(settings, released["weights"]),
        "## Files",
        table(["file", "content"], [(f"`{file}`", FILES[file]) for file in files]),
        "`config.json` has the settings, the environment and the digest of the weights; "
        "`evaluations/` the score of every game; `provenance.json` the code and the machine. "
        "Nothing here is pickled.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(name: str, game: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The block of YAML that model hubs index; strings as JSON has them are YAML's, too."""
    tags = ["reinforcement-learning", "deep-q-learning", "episodic-backward-update", game]
    lines = ["---", "library_name: ebu", "pipeline_tag: reinforcement-learning", "tags:"]
    lines += [f"- {json.dumps(tag)}" for tag in [*tags, *["atari"] * is_atari(game)]]
    if records:
        best = max(records, key=lambda record: int(record["games"]))
        deviation = best["deviation"]
        value = f"{best['mean']:.2f}" + (f" +/- {deviation:.2f}" if deviation is not None else "")
        lines += [
            "model-index:",
            f"- name: {json.dumps(name)}",
            "  results:",
            "  - task:",
            "      type: reinforcement-learning",
            "      name: reinforcement-learning",
            "    dataset:",
            f"      name: {json.dumps(game)}",
            f"      type: {json.dumps(game)}",
            "    metrics:",
            "    - type: mean_reward",
            f"      value: {value}",
            f"      name: mean_reward ({best['games']} games, protocol {best['protocol']})",
            "      verified: false",
        ]
    return "\n".join([*lines, "---"])


def _row(record: Mapping[str, Any]) -> Iterable[str]:
    """A record as a row. An ε that is not the protocol's is marked."""
    random = record["policy"] == "random"
    other = not random and _other_epsilon(record)
    interval = record["interval_95"]
    normalised = NONE
    if record["human_normalised"] is not None:
        normalised = (
            f"{record['human_normalised']:.1%} ({_cell(record['human_table'])}: random "
            f"{record['random_score']:,g}, human {record['human_score']:,g})"
        )
    return (
        "random play" if random else str(record["weights"]),
        record["protocol"] + " (separate evaluation)" * bool(record["separate_evaluation"]),
        f"{record['epsilon']:g}" + " (not the protocol's)" * other,
        str(record["games"]),
        f"**{record['mean']:,.2f}**",
        NONE if interval is None else f"[{interval[0]:,.2f}, {interval[1]:,.2f}]",
        f"{record['median']:,.2f}",
        normalised,
        record.get("precision") or NONE,
    )


def _other_epsilon(record: Mapping[str, Any]) -> bool:
    return bool(record["epsilon"] != record["protocol_epsilon"])


def _rules(game: str, name: str) -> str:
    """A protocol in a sentence."""
    if not is_atari(game):
        return (
            f"Under protocol `{name}` a Gymnasium environment is played as it is registered, "
            "without random actions."
        )
    protocol: Protocol = PROTOCOLS[name]
    epsilon = (
        "the run's last ε" if protocol.eval_epsilon is None else f"ε {protocol.eval_epsilon:g}"
    )
    actions = "all 18 actions" if protocol.full_action_space else "the game's own actions"
    sticky = protocol.repeat_action_probability
    return (
        f"Protocol `{name}`: {epsilon}, {actions}, "
        + (f"sticky actions with probability {sticky:g}, " if sticky else "no sticky actions, ")
        + f"up to {protocol.eval_noop_max} no-ops at the start, games cut after "
        f"{protocol.eval_max_frames:,} frames, scores normalised by the human table "
        f"{protocol.human_table}."
    )


def _use(settings: Mapping[str, Any], weights: str) -> str:
    words = [*WEIGHTS_FLAG[weights], *trust_words(settings)]
    text = (
        "In a checkout of `ebu`, with this folder downloaded as `FOLDER`:\n\n"
        f"    .venv/bin/python {' '.join(['evaluate.py', 'FOLDER', *words])}\n\n"
        "```python\n"
        "from agents import load_agent\n\n"
        'agent = load_agent("FOLDER")\n'
        "action = agent.act(stack)  # (stack, *frame_shape), oldest frame first\n"
        "```"
    )
    # The example imports no modules that a run names.
    return (
        text
        if trust_words(settings)
        else f"{text}\n\n`examples/play_agent.py FOLDER` plays a whole game so."
    )


def _cell(value: Any) -> str:
    """A value in one line, whatever a foreign config.json says."""
    if value is None:
        return NONE
    return " ".join(str(value).split()).replace("<", "&lt;").replace("`", "'")
