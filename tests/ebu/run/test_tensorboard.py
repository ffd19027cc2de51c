"""docs/tensorboard.md explains every tag that is written, and real runs show what it promises."""

import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from agents import AGENTS
from ebu.commands.train_arguments import parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.run.tensorboard import ALWAYS_CURVES, NOT_CURVES, OVERVIEW
from tests.distillations import GREY, distilled, train_teacher

PAGE = Path(__file__).parents[3] / "docs" / "tensorboard.md"
FLAGS = [
    *("--frames", "400", "--num-envs", "2", "--replay-capacity", "600", "--threads", "1"),
    *("--device", "cpu", "--log-every-frames", "50", "--eval-every-frames", "100"),
    *("--eval-episodes", "3", "--batch-size", "16", "--learning-starts", "50"),
    *("--updates-per-step", "0.5"),
]
OF_AGENT = {"adaptive_ebu": ["--learners", "3", "--copy-every-steps", "60"]}


def explained() -> list[re.Pattern[str]]:
    """The tags in the first columns of the page's tables; capitals stand for any name."""
    rows = re.findall(r"^\| `([^` ]+/[^` ]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    return [re.compile(re.sub(r"(?<![A-Za-z])[A-Z]+(?![A-Za-z])", ".+", row)) for row in rows]


def unexplained(tags: set[str]) -> list[str]:
    return sorted(tag for tag in tags if not any(row.fullmatch(tag) for row in explained()))


def shown(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()


def written(run_dir: Path) -> set[str]:
    """The tags of every number and picture that a run's logs hold, drawn or not."""
    tags: set[str] = set()
    for log, prefix in (("metrics.jsonl", ""), ("evaluations.jsonl", "eval/")):
        for line in (run_dir / log).read_text().splitlines():
            numbers = {name for name, x in json.loads(line).items() if isinstance(x, int | float)}
            tags |= {f"{prefix}{name}" for name in numbers - {"frames"}}
    events = shown(run_dir).Tags()
    return tags | set(events["scalars"]) | set(events["images"])


def train(run_dir: Path, *flags: str) -> Path:
    config = parse_arguments([*FLAGS, "--run-dir", str(run_dir), *flags])
    trainer = build_trainer(config)
    try:
        assert trainer.run(config.frames)
        assert trainer.finish()
    finally:
        trainer.close()
    return run_dir


@pytest.mark.parametrize(
    "agent",
    ["ebu", *(pytest.param(name, marks=pytest.mark.slow) for name in AGENTS if name != "ebu")],
)
def test_every_tag_of_an_agents_run_is_explained(agent: str, tmp_path: Path) -> None:
    flags = ["--game", GREY, "--agent", agent, "--network", "3-3-3/6", "--distill", "2-2-2/4"]
    run_dir = train(tmp_path / "run", *flags, *OF_AGENT.get(agent, []))
    tags = written(run_dir)
    assert {"loss/huber", "eval/mean", "distill/2-2-2_4/loss"} <= tags
    assert unexplained(tags) == []


@pytest.mark.parametrize(
    ("game", "flags"),
    [
        pytest.param(
            "breakout",
            "--frames 4000 --log-every-frames 1000 --eval-every-frames 2000",
            marks=pytest.mark.slow,
        ),
        ("CartPole-v1", ""),
    ],
)
def test_a_runs_curves(game: str, flags: str, tmp_path: Path) -> None:
    """What matters first is there, what never changes is not; nothing is left without a word."""
    run_dir = train(tmp_path / "run", "--game", game, "--network", "net3", *flags.split())
    curves = shown(run_dir)
    drawn = set(curves.Tags()["scalars"])
    assert {*ALWAYS_CURVES, *OVERVIEW.values()} <= drawn
    assert not NOT_CURVES & drawn
    for tag in drawn - {*ALWAYS_CURVES, *OVERVIEW.values()}:
        # Speeds are measured: two of them are never known to be equal.
        if not tag.startswith("speed/"):
            assert len({event.value for event in curves.Scalars(tag)}) > 1, tag
    assert "replay/bytes" in written(run_dir) - drawn
    assert unexplained(written(run_dir)) == []
    # The CUSTOM SCALARS tab names curves that are there.
    assert {tag for _, tags in charts(run_dir) for tag in tags} <= drawn


def charts(run_dir: Path) -> list[tuple[str, list[str]]]:
    """The charts of a run's CUSTOM SCALARS tab from the top, each with the tags of its curves."""
    event = shown(run_dir).Tensors("custom_scalars__config__")[0]
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    found = []
    for chart in (chart for category in layout.category for chart in category.chart):
        tags = [tag.removeprefix("^").removesuffix("$") for tag in chart.multiline.tag]
        for band in chart.margin.series:
            tags += [band.value, band.lower, band.upper]
        found.append((chart.title, tags))
    return found


def test_the_custom_tab_and_the_overview_begin_with_the_same_five_charts(tmp_path: Path) -> None:
    run_dir = train(tmp_path / "run", "--game", "CartPole-v1", "--network", "net3")
    five = charts(run_dir)
    assert [tags for _, tags in five] == [
        ["train/return_last_100_games"],
        ["eval/mean", "eval/interval_low", "eval/interval_high"],
        ["loss/huber"],
        ["q/predicted", "q/earned"],
        ["speed/frames_per_second"],
    ]
    assert "interval" in five[1][0]
    first = [tag for _, tags in five for tag in tags if not tag.startswith("eval/interval")]
    assert first == list(OVERVIEW) == sorted(OVERVIEW, key=lambda tag: OVERVIEW[tag])


@pytest.mark.slow
def test_every_tag_of_a_distillation_is_explained(tmp_path: Path) -> None:
    out = tmp_path / "out"
    distilled(train_teacher(tmp_path / "teacher"), out, "--loss", "hinton")
    found = [shown(path.parent).Tags()["scalars"] for path in out.rglob("events.out.tfevents.*")]
    tags = {tag for of_student in found for tag in of_student}
    assert {"train/loss", "train/hinton", "held_out/regret", "score/mean"} <= tags
    assert unexplained(tags) == []


def test_a_run_is_a_row_of_what_people_compare(tmp_path: Path) -> None:
    """Its scores are tags of the run, and no setting of it is empty."""
    from tensorboard.plugins.hparams import metadata

    run_dir = train(tmp_path / "run", "--game", "CartPole-v1", "--agent", "adaptive_ebu")
    content = shown(run_dir).PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    values = {name: x.ListFields()[0][1] for name, x in start.hparams.items()}
    assert (values["agent"], values["game"], values["seed"]) == ("adaptive_ebu", "CartPole-v1", "0")
    assert {"learning_rate", "network"} <= values.keys()
    # Eleven learners have a β each.
    assert "beta" not in values
    assert not {"", "None"} & set(values.values())
    scores = {info.name.tag for info in experiment.metric_infos}
    assert "eval/mean" in scores
    assert scores <= set(shown(run_dir).Tags()["scalars"])
