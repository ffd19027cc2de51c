"""A run whose checkpoint a stranger has altered, digests and all, is refused or trains on."""

import random
import shutil
from pathlib import Path

import pytest

from tests.checkpoints import alter_state, reseal
from tests.distillations import GREY, train
from tests.fuzz import FINE, outcome, resume_and_train

FLAGS = (
    f"--game {GREY} --frames 240 --log-every-frames 50 --eval-episodes 1 --network 3-3-3/6 "
    "--replay-capacity 150"
)
AGENTS = {
    "ebu": "--agent ebu --distill 2-2-2/4",
    "segments": "--agent ebu --prioritized --mix-segments 2 --double --quantiles 3",
    "transitions": "--agent prioritized --n-step 2 --noisy",
    "adaptive_ebu": "--agent adaptive_ebu --learners 2",
}


@pytest.fixture(scope="module", params=AGENTS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    return train(run_dir, f"{FLAGS} {AGENTS[request.param]}")


def newest(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").iterdir())


def test_a_run_of_its_own_trains_on(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    reseal(newest(copy))
    assert outcome(lambda: resume_and_train(copy), "as it was") == "loaded"


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(20, 200, 20))]
)
def test_an_altered_state_is_refused_in_one_line_or_trains_on(
    trained: Path, tmp_path: Path, first: int
) -> None:
    met = {}
    for number in range(first, first + 20):
        copy = Path(shutil.copytree(trained, tmp_path / "run"))
        what = alter_state(newest(copy), random.Random(number))
        met[f"{number}, {what}"] = outcome(lambda: resume_and_train(copy), "")  # noqa: B023
        shutil.rmtree(copy)
    assert not {what: found for what, found in met.items() if found not in FINE}
