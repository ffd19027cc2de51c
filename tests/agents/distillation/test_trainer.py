"""Trainer a student: what is minimised, on which states, and resuming to the bit."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.distillation import losses
from agents.distillation.dataset import Dataset
from agents.distillation.settings import DistillConfig
from agents.distillation.students import Student, build
from agents.distillation.trainer import PROGRESS, StudentTrainer, Supervision
from ebu.errors import EbuError
from ebu.run.checkpoint import load_latest, save_checkpoint
from tests.agents.distillation.small_pipelines import SIDE, config_with, teacher_of
from tests.agents.distillation.test_dataset import set_of
from tests.distillations import scalars

ACTIONS, BATCH = 4, 8
CONFIG = config_with(updates=12, batch_size=BATCH, learning_rate=1e-2, log_every_updates=4)
KL = {"kl": 1.0}


def network(name: str, seed: int) -> Student:
    generator = torch.Generator().manual_seed(seed)
    return build(name, ACTIONS, stack=3, frame_shape=(SIDE, SIDE), generator=generator)


def supervision_of(weights: dict[str, float] = KL, **changes: Any) -> Supervision:
    """Random frames, labelled by a network."""
    teacher = teacher_of(1, num_actions=ACTIONS)
    states = set_of(*[6] * 10, shape=(SIDE, SIDE))
    frames = torch.randint(256, states.frames.shape, generator=torch.Generator().manual_seed(2))
    states = replace(states, frames=frames.to(torch.uint8)).relabelled(teacher.outputs_of)
    supervision = Supervision(teacher, states, weights, CONFIG, temperature=0.5)
    return replace(supervision, **changes)


def trainer_in(
    directory: Path,
    weights: dict[str, float] = KL,
    *,
    student: Student | None = None,
    config: DistillConfig = CONFIG,
    **options: Any,
) -> StudentTrainer:
    supervision = options.pop("supervision", None) or supervision_of(weights)
    rng = options.pop("rng", None) or np.random.default_rng(3)
    student = student or network("2-2-2/4", 0)
    return StudentTrainer(directory, [student], [supervision], replace(config, **options), rng=rng)


def weights_of(training: StudentTrainer) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in training.pairs[0][0].state_dict().items()}


# --- what is learnt -------------------------------------------------------------------------


def test_updates_are_adams_on_the_divergence_with_half_a_cosine(tmp_path: Path) -> None:
    training = trainer_in(tmp_path, config=replace(CONFIG, updates=5))
    assert training.run()

    supervision, other, rng = supervision_of(), network("2-2-2/4", 0), np.random.default_rng(3)
    rng.integers(2**63)  # what losses draw
    adam = torch.optim.Adam(other.parameters())
    train = supervision.dataset.train
    for update in range(5):
        indices = train[torch.from_numpy(rng.integers(len(train), size=BATCH))]
        outputs = other(supervision.dataset.stacks(indices))
        loss = losses.policy_divergence(
            supervision.dataset.outputs[indices], outputs, temperature=0.5
        )
        adam.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * update / 5)) / 2
        adam.zero_grad()
        loss.backward()
        adam.step()
    for name, weight in other.state_dict().items():
        torch.testing.assert_close(training.pairs[0][0].state_dict()[name], weight)


@pytest.mark.parametrize("weights", [KL, {"kl": 1.0, "distance": 1.0}])
def test_held_out_episodes_are_never_trained_on(
    weights: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = trainer_in(tmp_path, weights, config=replace(CONFIG, log_every_updates=100))
    drawn: list[Tensor] = []
    real = Dataset.stacks

    def noticing(states: Dataset, indices: Tensor) -> Tensor:
        drawn.append(indices)
        return real(states, indices)

    monkeypatch.setattr(Dataset, "stacks", noticing)
    monkeypatch.setattr(StudentTrainer, "_log", lambda training: None)
    training.run()
    states = training.pairs[0][1].dataset
    assert len(drawn) == CONFIG.updates
    episodes = [states.episode_of(indices) for indices in drawn]
    assert not states.held_out_episodes[torch.cat(episodes)].any()
    # What compares the states of a minibatch gets them from different episodes, here of nine.
    apart = [len(part.unique()) == BATCH for part in episodes]
    assert all(apart) == ("distance" in weights)


def test_what_is_measured_on_held_out_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = supervision_of().dataset
    labels = torch.tensor([[0.0, 1.0, 3.0, 2.0], [5.0, 1.0, 1.0, 4.5], [2.0, 0.0, 0.0, 0.0]])
    # The teacher's action, then one that costs 0.5, then one that costs 2.
    outputs = torch.tensor([[0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 0.0, 9.0], [0.0, 9.0, 0.0, 0.0]])
    rows = torch.arange(len(states)) % 3
    supervision = supervision_of(dataset=replace(states, outputs=labels[rows]))
    training = trainer_in(tmp_path, supervision=supervision)
    monkeypatch.setattr("agents.distillation.trainer.HELD_OUT_BATCH", 4)
    parts = iter(states.held_out.split(4))
    monkeypatch.setattr(Student, "forward", lambda student, stacks: outputs[rows[next(parts)]])
    assert len(states.held_out) == 6
    held_out = training.measure()
    assert held_out["agreement"] == pytest.approx(1 / 3)
    assert held_out["regret"] == pytest.approx((0 + 0.5 + 2) / 3)
    expected = losses.policy_divergence(labels, outputs, temperature=0.5).item()
    assert held_out["loss"] == pytest.approx(expected)


# --- resuming -------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a training as a signal would: without saving."""


def assert_killed_training_ends_with_the_same_bits(start: Callable[..., StudentTrainer]) -> None:
    """Kill trainings before and after checkpoints, stop one, and compare the end with a whole one.

    `start` makes or resumes a training from the name of its directory and changed settings.
    """
    whole = start("whole")
    assert whole.run()
    seen: list[int] = []

    def kill_at(last: int) -> Callable[[int], None]:
        def progress(updates: int) -> None:
            seen.append(updates)
            if updates == last:
                raise Killed

        return progress

    # Before a checkpoint; after some, the last of them the update before.
    for last in (2, 6, 9):
        with pytest.raises(Killed):
            start("killed", checkpoint_minutes=0.0 if last > 2 else 10.0).run(
                progress=kill_at(last)
            )
    # Told to stop: a checkpoint at that update.
    stopped = start("killed", checkpoint_minutes=10.0)
    assert not stopped.run(should_stop=lambda: stopped.updates == 11)
    stopped.close()
    again = start("killed")
    assert again.updates == 11
    assert again.run()
    assert seen == [1, 2, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9]
    for (one, _), (other, _) in zip(whole.pairs, again.pairs, strict=True):
        for name, weight in one.state_dict().items():
            assert torch.equal(weight, other.state_dict()[name]), name
    assert whole.measure() == again.measure()
    for trainer in (whole, again):
        trainer.close()
    logged = scalars(whole.directory)
    assert scalars(again.directory) == logged
    assert [step for step, _ in logged["held_out/loss"]] == [4, 8, 12]
    assert {"train/loss", "held_out/agreement", "held_out/regret"} <= set(logged)


@pytest.mark.parametrize(
    "weights",
    [KL, {"kl": 1.0, "hint": 0.5, "adversarial": 0.1}, {"noisy": 1.0, "distance": 0.5}],
    ids=str,
)
def test_a_killed_training_ends_with_the_same_bits(
    weights: dict[str, float], tmp_path: Path
) -> None:
    assert_killed_training_ends_with_the_same_bits(
        lambda name, **changes: trainer_in(tmp_path / name, weights, **changes)
    )


def test_a_finished_training_is_found_finished(tmp_path: Path) -> None:
    first = trainer_in(tmp_path)
    first.run()
    first.log_score(7.0)
    first.close()
    again = trainer_in(tmp_path)
    assert (again.updates, again.seconds) == (CONFIG.updates, first.seconds)
    assert again.run(progress=lambda updates: pytest.fail("it was finished"))
    # What was logged after the checkpoint is logged again.
    assert "score/mean" not in scalars(tmp_path)
    again.log_score(7.0)
    assert scalars(tmp_path)["score/mean"] == [(CONFIG.updates, 7.0)]


# --- what goes wrong ------------------------------------------------------------------------


def test_the_checkpoint_of_another_student_is_one_line(tmp_path: Path) -> None:
    trainer_in(tmp_path).run()
    with pytest.raises(EbuError, match=r"another training .*: delete that directory") as error:
        trainer_in(tmp_path, student=network("3-2-2/4", 0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "altered",
    [
        {"averages": {"sums": torch.zeros(1)}},
        {"rng": {"bit_generator": "MT19937"}},
        {"rng": 3},
        {"taught": None},
    ],
)
def test_a_checkpoint_that_is_altered_is_one_line(tmp_path: Path, altered: dict[str, Any]) -> None:
    trainer_in(tmp_path).run()
    saved = load_latest(tmp_path / PROGRESS, kind="updates")
    assert saved is not None
    save_checkpoint(tmp_path / PROGRESS, saved.name, saved.state | altered, logs=saved.logs)
    with pytest.raises(EbuError, match=r"another training .*: delete that directory") as error:
        trainer_in(tmp_path)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    training = trainer_in(tmp_path)
    with torch.no_grad():
        next(training.pairs[0][0].parameters()).fill_(math.nan)
    with pytest.raises(EbuError, match="no longer a number after 4 updates: lower --learning-rate"):
        training.run()


def test_bfloat16_trains_float32_weights(tmp_path: Path) -> None:
    weights = {"kl": 1.0, "hint": 0.1}
    training = trainer_in(tmp_path, weights, precision="bfloat16")
    training.run()
    assert {weight.dtype for weight in training.pairs[0][0].parameters()} == {torch.float32}
    assert math.isfinite(training.measure()["loss"])
