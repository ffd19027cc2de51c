"""Two ranks with halves of the minibatches train as one process with whole ones."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ebu.run.ranks import SINGLE
from tests.ranked_updates import LEARNERS, build, train
from tests.ranks import run_ranks

TOLERANCE = 1 / 500
"""Of the distance that the weights have gone after 200 updates; sums are rounded differently."""


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_minibatches(tmp_path: Path) -> None:
    for code, error in run_ranks(["-m", "tests.ranked_updates", str(tmp_path)]):
        assert code == 0, error
    for name in LEARNERS:
        start = flat(dict(build(name, SINGLE).learner.online.state_dict()))
        whole = flat(train(name, SINGLE))
        first, second = (
            flat(safetensors.torch.load_file(tmp_path / f"{name}-{rank}.safetensors"))
            for rank in (0, 1)
        )
        assert torch.equal(first, second)
        assert (first - whole).norm() < TOLERANCE * (whole - start).norm()
        assert (first - whole).abs().max() < TOLERANCE * (whole - start).abs().max()
