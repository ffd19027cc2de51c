"""The teacher's temperature τ: by how much its values are divided before they are a policy.

τ is in units of the values. The temperatures of classification, 3 to 20, make nearly every policy
of Q-values uniform. Published are 0.01 (Rusu et al. 2015) and 0.1 (Agarwal et al. 2022), for values
of clipped rewards. `auto` ties τ to the teacher instead: the median, over states, of the gap
between its best and second-best action. In the median state the best action is then e times as
probable as the next, whatever the scale of the rewards. That rule is this project's own.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.trained import Outputs
from ebu.errors import EbuError, UsageError

AUTO, RUSU = "auto", "rusu"
RUSU_TEMPERATURE = 0.01


@dataclass(frozen=True)
class Temperature:
    """A temperature, and what it makes of the teacher.

    | field | unit | meaning |
    | --- | --- | --- |
    | value | of the outputs | τ |
    | median_gap | of the outputs | best minus second-best output, the median over states |
    | entropy | nats | of softmax(outputs / τ), the mean over states; at most log A |
    """

    value: float
    median_gap: float
    entropy: float


def check_temperature(setting: str, *, flag: str = "--temperature") -> None:
    """Raise `UsageError` unless the setting is auto, rusu or a positive number."""
    if setting not in (AUTO, RUSU):
        _number(setting, flag)


def temperature_of(
    setting: str,
    outputs: Tensor,
    *,
    kind: Outputs = "values",
    flag: str = "--temperature",
) -> Temperature:
    """What a setting stands for with a teacher's outputs (N, A) float32.

    | setting | τ |
    | --- | --- |
    | auto | `median_gap(outputs)`; 1 for a teacher whose outputs are a policy's logits already |
    | rusu | 0.01 |
    | a number | that number |

    Raises `UsageError` for another setting, `EbuError` for auto where the median gap is 0.
    """
    gap = median_gap(outputs)
    if setting == AUTO:
        value = 1.0 if kind == "logits" else gap
        if not (value > 0 and math.isfinite(value)):
            raise EbuError(
                f"the median gap between the teacher's two best actions is {value:g}: it gives no "
                f"temperature; set one with {flag}, or train the teacher on"
            )
    else:
        value = RUSU_TEMPERATURE if setting == RUSU else _number(setting, flag)
    return Temperature(value, gap, mean_entropy(outputs, value))


def median_gap(outputs: Tensor) -> float:
    """Median over states of the best minus the second-best of their outputs (N, A); A ≥ 2."""
    best = outputs.topk(2, dim=1).values
    return float((best[:, 0] - best[:, 1]).double().quantile(0.5))


def mean_entropy(outputs: Tensor, temperature: float) -> float:
    """Mean entropy of softmax(outputs / τ) over the states, in nats."""
    probabilities = torch.softmax(outputs.double() / temperature, dim=1)
    return float(torch.special.entr(probabilities).sum(dim=1).mean())


def _number(setting: str, flag: str) -> float:
    try:
        value = float(setting)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(
            f"{flag} {setting}: choose {AUTO} (the teacher's median gap between its two best "
            f"actions), {RUSU} ({RUSU_TEMPERATURE}) or a positive number"
        )
    return value
