"""What TensorBoard shows of a run: which scalars become curves, the custom layout, the settings."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard.summary import custom_scalars

RETURN, LOSS, SPEED = "train/return_last_100_games", "loss/huber", "speed/frames_per_second"
EVAL_MEAN, EVAL_LOW, EVAL_HIGH = "eval/mean", "eval/interval_low", "eval/interval_high"
PREDICTED, EARNED = "q/predicted", "q/earned"

OVERVIEW = {
    RETURN: "Overview/1_return_last_100_games",
    EVAL_MEAN: "Overview/2_eval_mean",
    LOSS: "Overview/3_loss",
    PREDICTED: "Overview/4_q_predicted",
    EARNED: "Overview/5_q_earned",
    SPEED: "Overview/6_frames_per_second",
}
"""What matters first, once more in a group of its own. TensorBoard opens the first two groups in
the order of their names, where capitals come first, and keeps all others closed."""

NOT_CURVES = frozenset(
    # Frames times a constant, and what follows from other curves.
    {"train/agent_steps", "train/updates", "eval/deviation", "eval/frames_played"}
)
ALWAYS_CURVES = frozenset({*OVERVIEW, EVAL_LOW, EVAL_HIGH})


class Point(NamedTuple):
    """A value of a scalar, its step (a frame of a run, an update of a student), and its time."""

    step: int
    wall_time: float
    tag: str
    value: float


class Curves:
    """Decides which scalars are drawn: those that have changed, and the first ones always.

    The points of a scalar are held back until its value changes, and are drawn then, all of them.
    """

    def __init__(self) -> None:
        self._held: dict[str, list[Point]] = {}
        self._changed: set[str] = set(ALWAYS_CURVES)

    def add(self, step: int, scalars: Mapping[str, float]) -> Iterator[Point]:
        """Take in values measured now; the points to draw, in the order of their steps."""
        now = time.time()
        due: list[Point] = []
        for tag, value in scalars.items():
            if tag in NOT_CURVES:
                continue
            held = self._held.setdefault(tag, [])
            held.append(Point(step, now, tag, value))
            if tag in self._changed or not _same(held[0].value, value):
                self._changed.add(tag)
                due += held
                held.clear()
        return iter(sorted(due, key=lambda point: point.step))


def tags_of(point: Point) -> list[str]:
    """Where a point is drawn: under its own tag, and in the overview if it belongs there."""
    return [point.tag, OVERVIEW[point.tag]] if point.tag in OVERVIEW else [point.tag]


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def layout() -> Any:
    """The CUSTOM SCALARS tab: five charts of the curves that matter first.

    TensorBoard draws the charts with margins after all others of their category.
    """
    return custom_scalars(
        {
            "Score": {
                "return of the last 100 training games": _lines(RETURN),
                "evaluation: mean and its 95 % interval": [
                    "Margin",
                    [EVAL_MEAN, EVAL_LOW, EVAL_HIGH],
                ],
            },
            "Learning": {
                "loss": _lines(LOSS),
                "Q: predicted, and really earned": _lines(PREDICTED, EARNED),
            },
            "Speed": {"frames per second": _lines(SPEED)},
        }
    )


def _lines(*tags: str) -> list[Any]:
    # TensorBoard looks for tags that begin as a regular expression says.
    return ["Multiline", [f"^{tag}$" for tag in tags]]


def hyperparameters_row(
    first: Mapping[str, str | float], more: Mapping[str, str | float | None]
) -> Any:
    """A row of the HPARAMS tab: settings, and the last scores.

    TensorBoard reads the columns from one of the runs and shows no more than five settings until
    one is ticked: the first ones are marked as differing between runs, which puts them in front.

    | argument | meaning |
    | --- | --- |
    | first | settings shown at once, at most five |
    | more | settings to be ticked; None: a number that this run does not have and others have |
    """
    experiment = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(
                name=name,
                type=api_pb2.DATA_TYPE_STRING
                if isinstance(value, str)
                else api_pb2.DATA_TYPE_FLOAT64,
                differs=name in first,
            )
            for name, value in {**first, **more}.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in (EVAL_MEAN, RETURN)
        ],
    )
    start = plugin_data_pb2.SessionStartInfo()
    for name, value in {**first, **more}.items():
        if isinstance(value, str):
            start.hparams[name].string_value = value
        elif value is not None:
            start.hparams[name].number_value = value
    return Summary(
        value=[
            _hparams_value(metadata.EXPERIMENT_TAG, experiment=experiment),
            _hparams_value(metadata.SESSION_START_INFO_TAG, session_start_info=start),
        ]
    )


def _hparams_value(tag: str, **content: Any) -> Any:
    data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
    )
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
