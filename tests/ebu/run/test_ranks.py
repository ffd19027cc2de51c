"""What ranks tell each other; as a program, one of the ranks that do."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ebu.errors import EbuError, UsageError
from ebu.game_statistics import RECENT_GAMES, GameStatistics
from ebu.periodic_evaluation import PeriodicEvaluation
from ebu.run.checkpoint import load_latest, load_part, save_checkpoint
from ebu.run.ranks import Ranks
from ebu.schedules import LoopConfig
from ebu.training_log import TrainingLog
from tests.checkpoints import reseal
from tests.ranks import run_ranks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
FIRST, SECOND = "frames-000000000100", "frames-000000000200"


def set_variables(patch: pytest.MonkeyPatch, *values: str) -> None:
    for name in VARIABLES:
        patch.delenv(name, raising=False)
    for name, value in zip(VARIABLES, values, strict=False):
        patch.setenv(name, value)


def test_a_process_that_torchrun_did_not_start_is_single(monkeypatch: pytest.MonkeyPatch) -> None:
    # Clusters set some of the variables for reasons of their own.
    for values in ([], ["1"], ["1", "2"], ["1", "2", "0"], ["0", "1", "0", "1"]):
        set_variables(monkeypatch, *values)
        assert Ranks.from_environment() == Ranks()
    set_variables(monkeypatch, "5", "6", "1", "2")
    assert Ranks.from_environment() == Ranks(5, 6, 1, 2)


@pytest.mark.parametrize(
    "values", ["2 2 0 1", "-1 2 0 1", "a 2 0 1", "0 2 2 2", "0 2 0 3", " 2 0 1"]
)
def test_variables_that_torchrun_does_not_set(values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, *values.split(" "))
    with pytest.raises(UsageError, match="is no rank"):
        Ranks.from_environment()


def test_a_single_process_waits_for_nobody() -> None:
    ranks = Ranks()
    tensor, value = torch.ones(3), {"any": object()}
    ranks.average(tensor)
    ranks.broadcast([tensor])
    assert tensor.tolist() == [1, 1, 1]
    assert ranks.gather(value)[0] is value
    assert ranks.sums([1, 2]) == [1, 2]
    assert ranks.from_first(lambda: value) is value
    with pytest.raises(UsageError), ranks.together():
        raise UsageError("as it is")


@pytest.mark.slow
def test_what_ranks_compute_save_and_play_together(tmp_path: Path) -> None:
    words = ["-m", "tests.ebu.run.test_ranks", "calls", str(tmp_path)]
    for code, error in run_ranks(words, 3):
        assert code == 0, error
    found = load_latest(tmp_path / "checkpoints")
    assert found is not None
    assert (found.name, found.warnings, found.state["rank"]) == (FIRST, [], 0)
    assert os.listdir(tmp_path / "checkpoints") == [FIRST]
    for rank in range(3):
        assert (tmp_path / "checkpoints" / FIRST / f"rank-{rank}" / "note").read_text() == str(rank)


@pytest.mark.slow
def test_an_error_of_one_rank_is_said_once(tmp_path: Path) -> None:
    ends = run_ranks(["-m", "tests.ebu.run.test_ranks", "error", str(tmp_path)])
    assert [code for code, _ in ends] == [2, 2]
    assert [error for _, error in ends] == ["error: only on one\n", ""]


@pytest.mark.parametrize("ranks", [2, 4, 10**9])
def test_a_manifest_that_names_fewer_parts_than_ranks(tmp_path: Path, ranks: int) -> None:
    directory = save_checkpoint(tmp_path, FIRST, {"frames": 100})
    reseal(directory, ranks=ranks)
    with pytest.raises(EbuError, match="names no state"):
        load_latest(tmp_path)


# --- one of the ranks -----------------------------------------------------------------------


def check_calls(ranks: Ranks, directory: Path) -> None:
    rank, count = ranks.rank, ranks.world_size
    assert ranks.sums([1, rank, True]) == [count, 3, count]
    assert ranks.gather({"rank": rank, "text": "é" * rank})[2] == {"rank": 2, "text": "éé"}
    assert ranks.join([rank] * rank) == [1, 2, 2]
    assert ranks.from_first(lambda: ["of", rank]) == ["of", 0]
    numbers = torch.full((5,), float(rank))
    ranks.average(numbers)
    assert numbers.tolist() == [1.0] * 5
    # As weights of convolutions lie: not in the order of their axes.
    image = torch.full((2, 3, 4, 4), float(rank)).to(memory_format=torch.channels_last)
    ranks.broadcast([image, numbers])
    assert image.eq(0).all()
    assert image.is_contiguous(memory_format=torch.channels_last)


def check_logs(ranks: Ranks) -> None:
    games = GameStatistics(1)
    games._finished = [[float(ranks.rank), 1.0, 2.0]] * ranks.rank
    games.recent.extend([-1.0] * RECENT_GAMES + [float(ranks.rank)] * (RECENT_GAMES // 3))
    metrics = games.metrics(4, ranks)
    assert metrics["train/episode_return"] == np.mean([1, 2, 2])
    assert (metrics["train/games"], metrics["train/return_last_100_games"]) == (3, 1)
    assert games.metrics(4, ranks) == {}
    log = TrainingLog(None, 100, num_envs=1, gamma=0.9, clip_rewards=True, ranks=ranks)
    own = {"replay/segments": float(ranks.rank), "loss/huber": float(ranks.rank)}
    if ranks.rank == 2:
        own["q/mean"] = 7.0
    assert log._combine(own) == {"replay/segments": 3.0, "loss/huber": 1.0, "q/mean": 7.0}


def check_checkpoints(ranks: Ranks, root: Path) -> None:
    failing = [False]

    def write(part: Path) -> None:
        if failing[0] and ranks.rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        (part / "note").write_text(str(ranks.rank))

    state = {"rank": ranks.rank}
    save_checkpoint(root, FIRST, state, writers=[write], ranks=ranks)
    failing[0] = True
    with pytest.raises(EbuError if ranks.is_first else SystemExit) as caught:
        save_checkpoint(root, SECOND, state, writers=[write], ranks=ranks)
    assert ("No space left" in str(caught.value)) == ranks.is_first
    found = load_part(root, load_latest(root) if ranks.is_first else None, ranks)
    assert found is not None
    assert (found.name, found.state) == (FIRST, state)


def check_evaluation(ranks: Ranks) -> None:
    """The last rank is told to stop at its third answer; the first plays until it hears of it."""
    played, answers = [0], [0]

    def evaluate(frames: int, should_stop: object) -> dict[str, float] | None:
        for _ in range(10):
            if should_stop():  # type: ignore[operator]
                return None
            played[0] += 1
        return {"mean": 4.5, "games": 1}

    def stop_requested() -> bool:
        answers[0] += 1
        return ranks.rank == 2 and answers[0] == 3

    evaluation = PeriodicEvaluation(LoopConfig(), evaluate, None, None, ranks)
    assert evaluation.play(100, stop_requested, quiet=True) is None
    assert played[0] == (2 if ranks.is_first else 0)
    assert evaluation.play(200, stop_requested, quiet=True) == 4.5
    assert evaluation.is_best(4.5)
    assert not evaluation.is_best(4.5)


if __name__ == "__main__":
    _, case, directory = sys.argv
    ranks = Ranks.from_environment()
    with ranks.connected():
        if case == "error":
            try:
                with ranks.together():
                    if ranks.rank == 1:
                        raise UsageError("only on one")
            except UsageError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(2)
        check_calls(ranks, Path(directory))
        check_logs(ranks)
        check_checkpoints(ranks, Path(directory, "checkpoints"))
        check_evaluation(ranks)
