"""KegNet: the terms of its loss, what its generators do to a teacher, and that a kill costs little.

Nothing here plays a game: the teacher is a network with random weights.
"""

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.distillation.dataset import HELD_OUT_SHARE, Dataset
from agents.distillation.experimental import kegnet
from agents.distillation.experimental.generators import KegNetConfig
from agents.distillation.experimental.kegnet import RECORD, generate
from agents.distillation.settings import Stopped
from agents.trained import TrainedAgent
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import load_latest, save_checkpoint
from tests.agents.distillation.small_pipelines import SIDE, STACK, teacher_of
from tests.agents.distillation.test_dataset import equal

ACTIONS, COUNT = 4, 90
KIND: dict[str, Any] = {"network": "8-8-8/16", "num_actions": ACTIONS}
SMALL = KegNetConfig(
    generators=2, updates=40, batch_size=16, learning_rate=1e-2, channels=8, decoder_units=16
)
SHORT = KegNetConfig(generators=3, updates=3, batch_size=4, channels=4, decoder_units=4)


def generated(
    directory: Path,
    *,
    config: KegNetConfig = SHORT,
    teacher: TrainedAgent | None = None,
    count: int = COUNT,
    seed: int = 5,
    should_stop: Callable[[], bool] = lambda: False,
) -> Dataset:
    return generate(
        teacher or teacher_of(1, **KIND),
        count=count,
        seed=seed,
        directory=directory,
        should_stop=should_stop,
        config=config,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, Any]]:
    """States of generators that were trained for a while."""
    directory = tmp_path_factory.mktemp("made")
    states = generated(directory, config=SMALL, count=300)
    return states, json.loads((directory / RECORD).read_text())


# --- what is made ---------------------------------------------------------------------------


def test_the_teacher_does_what_generated_states_tell_it(
    made: tuple[Dataset, dict[str, Any]],
) -> None:
    states, measured = made
    obeyed = (states.outputs.argmax(dim=1) == states.actions).double()
    # By chance a quarter; with 300 states 0.5 is ten standard errors above.
    assert obeyed.mean() > 0.5
    shares = [each["wanted"] for each in measured["generators"]]
    halves = [float(half.mean()) for half in obeyed.split(150)]
    assert shares == pytest.approx(halves)
    best = torch.bincount(states.outputs.argmax(dim=1), minlength=ACTIONS) / 300
    assert measured["actions"] == pytest.approx(best.tolist())


def test_generated_states_differ_and_have_the_labels_of_their_bytes(
    made: tuple[Dataset, dict[str, Any]],
) -> None:
    states, _ = made
    assert states.frames.dtype == torch.uint8
    assert states.frames.shape == (300 * STACK, SIDE, SIDE)
    stacks = states.stacks(torch.arange(300))
    assert torch.equal(stacks, states.frames.view(300, STACK, SIDE, SIDE))
    torch.testing.assert_close(states.outputs, teacher_of(1, **KIND).outputs_of(stacks))
    assert len(stacks.flatten(1).unique(dim=0)) == 300
    # Each state is an episode of its own, and some of them are held out.
    assert len(states.episodes) == 300
    assert len(states.held_out) == round(300 * HELD_OUT_SHARE)
    assert states.actions.unique().tolist() == [*range(ACTIONS)]


# --- stops and kills ------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [5, 11])
def test_a_stop_loses_the_generator_in_training_alone(
    tmp_path: Path, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = itertools.count(1)
    stopped = tmp_path / "stopped"
    with pytest.raises(Stopped):
        generated(stopped, should_stop=lambda: next(questions) >= asked)
    assert not (stopped / RECORD).exists()
    shown: list[int] = []

    @contextlib.contextmanager
    def bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        yield shown.append
        assert shown[-1] == total

    with monkeypatch.context() as patch:
        patch.setattr(kegnet, "progress_bar", bar)
        again = generated(stopped)
    whole = generated(tmp_path / "whole")
    assert equal(again, whole)
    # Of three generators of three updates each those that were finished are not trained again.
    finished = min(SHORT.generators, (asked - 1) // SHORT.updates)
    assert shown[0] == (SHORT.updates if finished else 1)
    assert (stopped / RECORD).read_text() == (tmp_path / "whole" / RECORD).read_text()
    assert not torch.equal(generated(tmp_path / "other", seed=6).frames, whole.frames)


# --- what goes wrong ------------------------------------------------------------------------


def test_a_directory_of_other_generators_is_one_line(tmp_path: Path) -> None:
    generated(tmp_path)
    with pytest.raises(UsageError, match=r"trained otherwise: seed was 5, is 6\. Choose") as error:
        generated(tmp_path, seed=6)
    assert "\n" not in str(error.value)
    with pytest.raises(EbuError, match="for another teacher: choose another directory"):
        generated(tmp_path, teacher=teacher_of(1, network="8-8-8/16", num_actions=6))


@pytest.mark.parametrize("lost", ["generator", "means"])
def test_a_generator_that_lacks_something_is_one_line(tmp_path: Path, lost: str) -> None:
    generated(tmp_path)
    directory = tmp_path / "generator-0"
    saved = load_latest(directory, kind="trained")
    assert saved is not None
    state = {name: value for name, value in saved.state.items() if name != lost}
    save_checkpoint(directory, saved.name, state)
    with pytest.raises(EbuError, match="for another teacher: choose another directory"):
        generated(tmp_path)


def test_what_no_generator_can_make_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="at least 3"):
        generated(tmp_path, count=2)
    monkeypatch.setattr(
        "agents.distillation.experimental.kegnet.available_bytes", lambda device: 50_000
    )
    with pytest.raises(UsageError, match=r"^--states 90: .* at most 12 fit"):
        generated(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    teacher = teacher_of(1, outputs="logits", **KIND)
    with torch.no_grad():
        next(teacher.network.parameters()).fill_(math.nan)
    with pytest.raises(EbuError, match="no longer a number") as error:
        generated(tmp_path, teacher=teacher)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
