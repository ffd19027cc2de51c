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

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.distillation.dataset import HELD_OUT_SHARE, StateSet
from agents.distillation.experimental.kegnet import (
    RECORD,
    Generator,
    KegNetConfig,
    generate,
    terms_of,
)
from agents.distillation.objective import LossConfig
from agents.distillation.students import build
from agents.distillation.trainer import Lesson, TeachingConfig, Training
from agents.trained import Outputs, TrainedAgent
from ebu.errors import EbuError, UsageError
from tests.agents.distillation.test_states import equal
from tests.made_up import CPU

SIDE, STACK, ACTIONS, COUNT = 36, 3, 4, 90
SMALL = KegNetConfig(
    generators=2, updates=40, batch_size=16, learning_rate=1e-2, channels=8, decoder_units=16
)
SHORT = KegNetConfig(generators=3, updates=3, batch_size=4, channels=4, decoder_units=4)


def teacher_of(outputs: Outputs = "values", **environment: Any) -> TrainedAgent:
    sizes = {"num_actions": ACTIONS, "stack": STACK, "frame_shape": [SIDE, SIDE], **environment}
    student = build(
        "8-8-8/16",
        sizes["num_actions"],
        stack=sizes["stack"],
        frame_shape=tuple(sizes["frame_shape"]),
        generator=torch.Generator().manual_seed(1),
    )
    config = {"settings": {"network": "8-8-8/16"}, "environment": sizes}
    return TrainedAgent(student.network, outputs, config, 100, CPU, [])


@contextlib.contextmanager
def no_bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def generated(
    directory: Path,
    *,
    config: KegNetConfig = SHORT,
    teacher: TrainedAgent | None = None,
    count: int = COUNT,
    seed: int = 5,
    should_stop: Callable[[], bool] = lambda: False,
    bar: Any = no_bar,
) -> StateSet | None:
    return generate(
        teacher or teacher_of(),
        count=count,
        seed=seed,
        directory=directory,
        should_stop=should_stop,
        bar=bar,
        config=config,
    )


def record(directory: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((directory / RECORD).read_text())
    return read


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[StateSet, dict[str, Any]]:
    """States of generators that were trained for a while."""
    directory = tmp_path_factory.mktemp("made")
    states = generated(directory, config=SMALL, count=300)
    assert states is not None
    return states, record(directory)


# --- what is minimised ----------------------------------------------------------------------


def test_the_terms_by_hand() -> None:
    labels = torch.eye(2)
    codes, decoded = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    shares = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    # At τ = 2 the teacher gives its first action 3/4 in either state.
    outputs = torch.tensor([[2 * math.log(3), 0.0], [2 * math.log(3), 0.0]])
    terms = terms_of(labels, codes, shares, outputs, decoded, temperature=2.0)
    divergence = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    # d(z) = 2 and d(x) = 1/2 in two of the four pairs.
    assert terms.tolist() == pytest.approx([divergence, 0.5, math.exp(-0.5)])


def test_each_term_moves_what_it_should() -> None:
    given = {
        "labels": torch.eye(4)[:3],
        "codes": torch.randn(3, 5),
        "shares": torch.rand(3, 2, 6, 6),
        "outputs": torch.randn(3, 4),
        "decoded": torch.randn(3, 5),
    }
    for name in ("shares", "outputs", "decoded"):
        given[name].requires_grad_()
    divergence, error, diversity = terms_of(**given, temperature=0.5)

    def gradient(term: Tensor, name: str) -> Tensor:
        (slope,) = torch.autograd.grad(term, given[name], retain_graph=True)
        return slope

    policy = torch.softmax(given["outputs"] / 0.5, dim=1)
    by_hand = (policy - given["labels"]) / (3 * 0.5)
    torch.testing.assert_close(gradient(divergence, "outputs"), by_hand)
    by_hand = 2 * (given["decoded"] - given["codes"]) / 15
    torch.testing.assert_close(gradient(error, "decoded"), by_hand)
    # A step down makes samples of different noise more different.
    with torch.no_grad():
        moved = given["shares"] - gradient(diversity, "shares")
    after = terms_of(**{**given, "shares": moved}, temperature=0.5)[2]
    assert after < diversity


# --- what is made ---------------------------------------------------------------------------


def test_the_teacher_does_what_generated_states_tell_it(
    made: tuple[StateSet, dict[str, Any]],
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
    made: tuple[StateSet, dict[str, Any]],
) -> None:
    states, _ = made
    assert states.frames.dtype == torch.uint8
    assert states.frames.shape == (300 * STACK, SIDE, SIDE)
    stacks = states.stacks(torch.arange(300))
    assert torch.equal(stacks, states.frames.view(300, STACK, SIDE, SIDE))
    torch.testing.assert_close(states.outputs, teacher_of().outputs_of(stacks))
    assert len(stacks.flatten(1).unique(dim=0)) == 300
    # Each state is an episode of its own, and some of them are held out.
    assert states.num_episodes == 300
    assert len(states.held_out) == round(300 * HELD_OUT_SHARE)
    assert states.actions.unique().tolist() == [*range(ACTIONS)]


def test_pixels_keep_to_their_range() -> None:
    generator = Generator(SHORT, teacher_of(), torch.Generator().manual_seed(0))
    with torch.no_grad():
        [*generator.parameters()][-2].mul_(1e3)
        extreme = generator(torch.eye(ACTIONS), torch.randn(ACTIONS, SHORT.codes))
    assert extreme.shape == (ACTIONS, STACK, SIDE, SIDE)
    assert extreme.min() == 0
    assert extreme.max() == 255


def test_any_image_that_the_networks_take_can_be_made(tmp_path: Path) -> None:
    teacher = teacher_of(frame_shape=[37, 45], stack=2)
    states = generated(tmp_path, teacher=teacher)
    assert states is not None
    assert states.stacks(states.train[:2]).shape == (2, 2, 37, 45)


def test_a_student_can_be_taught_on_generated_states(
    made: tuple[StateSet, dict[str, Any]], tmp_path: Path
) -> None:
    states, _ = made
    student = build(
        "8-8-8/16",
        ACTIONS,
        stack=STACK,
        frame_shape=(SIDE, SIDE),
        generator=torch.Generator().manual_seed(2),
    )
    lesson = Lesson(teacher_of(), states, {"kl": 1.0}, LossConfig(), states.median_gap)
    config = TeachingConfig(updates=300, batch_size=32, learning_rate=3e-3, log_every_updates=300)
    training = Training(tmp_path, student, lesson, config, rng=np.random.default_rng(0))
    before = training.held_out()
    assert training.run()
    training.close()
    after = training.held_out()
    assert after["agreement"] > before["agreement"]
    assert after["loss"] < 0.75 * before["loss"]


# --- stops and kills ------------------------------------------------------------------------


def test_states_are_a_function_of_the_seed_and_of_the_teacher(tmp_path: Path) -> None:
    one, again, other = (
        generated(tmp_path / str(number), seed=seed) for number, seed in enumerate([5, 5, 6])
    )
    assert one is not None
    assert again is not None
    assert other is not None
    assert equal(one, again)
    assert not torch.equal(one.frames, other.frames)
    assert record(tmp_path / "0") == record(tmp_path / "1")


@pytest.mark.parametrize("asked", [1, 5, 11])
def test_a_stop_loses_the_generator_in_training_alone(tmp_path: Path, asked: int) -> None:
    questions = itertools.count(1)
    stopped = tmp_path / "stopped"
    assert generated(stopped, should_stop=lambda: next(questions) >= asked) is None
    assert not (stopped / RECORD).exists()
    shown: list[int] = []

    @contextlib.contextmanager
    def bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        yield shown.append
        assert shown[-1] == total

    again = generated(stopped, bar=bar)
    whole = generated(tmp_path / "whole")
    assert again is not None
    assert whole is not None
    assert equal(again, whole)
    # Of three generators of three updates each those that were finished are not trained again.
    finished = min(SHORT.generators, (asked - 1) // SHORT.updates)
    assert shown[0] == (SHORT.updates if finished else 1)
    assert record(stopped) == record(tmp_path / "whole")


# --- what goes wrong ------------------------------------------------------------------------


def test_a_directory_of_other_generators_is_one_line(tmp_path: Path) -> None:
    generated(tmp_path)
    with pytest.raises(UsageError, match=r"trained otherwise: seed was 5, is 6\. Choose") as error:
        generated(tmp_path, seed=6)
    assert "\n" not in str(error.value)
    with pytest.raises(EbuError, match="for another teacher: choose another directory"):
        generated(tmp_path, teacher=teacher_of(num_actions=6))


def test_what_no_generator_can_make_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="at least 3"):
        generated(tmp_path, count=2)
    with pytest.raises(UsageError, match="flat observations: collect"):
        generated(tmp_path, teacher=teacher_of(frame_shape=[5]))
    monkeypatch.setattr(
        "agents.distillation.experimental.kegnet.available_bytes", lambda device: 50_000
    )
    with pytest.raises(UsageError, match=r"^--states 90: .* at most 12 fit"):
        generated(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_teacher_that_always_answers_alike_gives_no_temperature(tmp_path: Path) -> None:
    teacher = teacher_of()
    with torch.no_grad():
        for weight in teacher.network.parameters():
            weight.zero_()
    with pytest.raises(EbuError, match="gives no temperature"):
        generated(tmp_path, teacher=teacher)
    # A policy's logits need none, and give the generators nothing to go by.
    assert generated(tmp_path, teacher=TrainedAgent(**{**vars_of(teacher), "outputs": "logits"}))


def vars_of(agent: TrainedAgent) -> dict[str, Any]:
    names = ("network", "outputs", "config", "frames", "device", "warnings")
    return {name: getattr(agent, name) for name in names}


def test_a_loss_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    teacher = teacher_of("logits")
    with torch.no_grad():
        next(teacher.network.parameters()).fill_(math.nan)
    with pytest.raises(EbuError, match="no longer a number") as error:
        generated(tmp_path, teacher=teacher)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
