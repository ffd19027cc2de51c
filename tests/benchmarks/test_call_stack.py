"""The way from the command to the loss crosses four files, each once."""

from itertools import groupby

from benchmarks.call_stack import stack_at_the_loss


def test_the_loss_is_four_files_from_the_command() -> None:
    files = [path for path, _ in groupby(each.partition(":")[0] for each in stack_at_the_loss())]
    assert files[-1] == "agents/learner.py"
    assert len(files) == len(set(files)) <= 4
