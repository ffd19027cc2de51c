"""The first update that is not finite is found, and weights that are not finite are refused."""

import math
from pathlib import Path

import pytest
import torch

from agents import finiteness
from agents.finiteness import FiniteUpdates, all_finite
from tests.made_up_runs import real_run

CPU = torch.device("cpu")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first", [1, 2, 7])
@pytest.mark.parametrize("learners", [0, 3])
@pytest.mark.parametrize("waits", [False, True])
def test_the_first_update_that_is_not_finite_is_kept(
    bad: float, first: int, learners: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finiteness, "AT_ONCE", set() if waits else {"cpu"})  # as on a GPU
    updates = FiniteUpdates(CPU)
    updates.start_at(100)
    losses = [torch.full((learners,) if learners else (), 1e30) for _ in range(9)]
    losses[first - 1].view(-1)[-1] = bad
    for group in (losses[:1], losses[1:5], losses[5:]):
        updates.add(group)
    assert updates.first_failure() == 100 + first
    updates.start_at(3)
    updates.add(losses[:1] if first > 1 else losses[1:2])
    assert updates.first_failure() is None


def test_all_finite() -> None:
    assert all_finite([torch.ones(3), torch.arange(2)])
    assert not all_finite([torch.ones(3), torch.tensor([1.0, math.inf])])


@pytest.mark.parametrize("agent", ["dqn", "prioritized", "adaptive_ebu"])
def test_a_run_with_infinite_weights_says_so_and_saves_nothing(tmp_path: Path, agent: str) -> None:
    trainer = real_run(tmp_path, agent, learning_starts=20)
    assert trainer.run(400)
    (saved,) = (tmp_path / "checkpoints").iterdir()
    weight = next(iter(trainer.agent.learner.online.parameters()))  # type: ignore[attr-defined]
    made = trainer.updates
    with torch.no_grad():
        weight.view(-1)[0] = math.inf
    assert trainer.agent.first_failed_update() == made
    with pytest.raises(Exception, match=rf"update {made:,} .* is not finite.*{saved.name} is kept"):
        trainer.save()
    with pytest.raises(Exception, match=r"is not finite"):
        trainer.run(800)
    assert list((tmp_path / "checkpoints").iterdir()) == [saved]
