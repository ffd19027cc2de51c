"""What a training saves when its environments fail, and how new games go on from there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebu.run.checkpoint import load_latest
from ebu.training import Trainer
from ebu.training_checkpoints import FRESH_GAMES
from tests.made_up import same
from tests.made_up_runs import lines, real_run

pytestmark = pytest.mark.usefixtures("closing")


def fail_after(trainer: Trainer, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environments of the trainer fail in this step of its next run."""
    left, recv = [steps], trainer.env.recv

    def failing() -> Any:
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("simulator lost")
        return recv()

    monkeypatch.setattr(trainer.env, "recv", failing)


@pytest.mark.parametrize("agent", ["ebu", "prioritized", "adaptive_ebu"])
def test_new_games_go_on_from_the_last_whole_step(
    tmp_path: Path, agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = real_run(tmp_path / "run", agent, learning_starts=20)
    assert trainer.run(400)
    exact = load_latest(tmp_path / "run" / "checkpoints")
    fail_after(trainer, 30, monkeypatch)
    with pytest.raises(RuntimeError, match="simulator lost"):
        trainer.run(4000)
    said = trainer.rescue()
    saved = load_latest(tmp_path / "run" / FRESH_GAMES)
    still = load_latest(tmp_path / "run" / "checkpoints")
    assert exact is not None
    assert saved is not None
    assert still is not None
    assert (still.name, same(still.state, exact.state)) == (exact.name, True)
    assert str(saved.directory) in said
    assert "--fresh-games" in said
    assert saved.state["frames"] == trainer.frames > exact.state["frames"]
    assert same(saved.state["agent"], trainer.agent.state_dict())

    again = real_run(tmp_path / "again", agent, learning_starts=20)
    again.load(saved, fresh_games=True)
    assert again.frames == trainer.frames
    assert again.updates == trainer.updates
    replay, before = again.replay, trainer.replay
    # Nothing is lost, no new transition leads from the old games to the new ones, and of the
    # segments that were open all have ended.
    assert replay.transitions.num_steps == before.transitions.num_steps + 1
    assert len(replay.transitions) == len(before.transitions)
    assert (replay._open_start == replay.transitions.num_steps - 1).all()
    assert (again.log.games._returns == 0).all()
    assert again.run(trainer.frames + 400)
    assert again.updates > trainer.updates
    games = lines(tmp_path / "again")
    assert all(np.isfinite(list(line.values())).all() for line in games)


def test_before_anything_is_played_nothing_is_saved(tmp_path: Path) -> None:
    trainer = real_run(tmp_path, "dqn")
    assert trainer.rescue() == "nothing was played yet"
    assert not (tmp_path / FRESH_GAMES).exists()


def test_an_evaluation_that_fails_is_passed_over_when_the_run_is_resumed(tmp_path: Path) -> None:
    played: list[int] = []

    def evaluate(frames: int, should_stop: Callable[[], bool]) -> dict[str, Any]:
        played.append(frames)
        if len(played) == 2:
            raise RuntimeError("simulator lost")
        return {"mean": 1.0, "games": 1}

    options: dict[str, Any] = {"eval_every_frames": 300, "evaluate": evaluate}
    trainer = real_run(tmp_path, "dqn", **options)
    with pytest.raises(RuntimeError, match="simulator lost"):
        trainer.run(1200)
    failed = trainer.frames
    assert "same command" in trainer.rescue()
    again = real_run(tmp_path, "dqn", resume=True, **options)
    assert again.frames == failed
    assert again.run(1200)
    assert played[1] == failed
    assert played.count(failed) == 1
    assert len(played) == 4


def test_a_run_that_is_rescued_while_it_films_is_saved_as_after_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = real_run(
        tmp_path, "dqn", eval_every_frames=300, evaluate=lambda *_: {"mean": 1.0, "games": 1}
    )
    said: list[str] = []
    monkeypatch.setattr(trainer.evaluation, "_film", lambda _: said.append(trainer.rescue()))
    assert trainer.run(400)
    assert "to resume after this evaluation" in said[0]
    assert not (tmp_path / FRESH_GAMES).exists()
    assert trainer.evaluation.best == 1
