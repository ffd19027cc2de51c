"""What commands say of a game that does not exist."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.foreign.flags import PolicyFlags
from ebu.commands.policies import load_policy
from ebu.commands.table.plan import games_of
from ebu.commands.train_arguments import parse_arguments
from ebu.errors import UsageError

POLICY = Path("tests.commands.test_policies:balance")


def test_a_name_like_no_other_is_answered_with_a_command_that_lists_games() -> None:
    asked: tuple[Callable[[], object], ...] = (
        lambda: parse_arguments(["--game", "xqzw"]),
        lambda: games_of(["xqzw"]),
        lambda: load_policy(POLICY, PolicyFlags(game="xqzw"), torch.device("cpu")),
    )
    said = set()
    for ask in asked:
        with pytest.raises(UsageError) as refused:
            ask()
        said |= set(re.findall(r"\((.*) lists the Atari games\)", str(refused.value)))
        assert "\n" not in str(refused.value)
        assert len(said) == 1
    listed = subprocess.run(said.pop(), shell=True, capture_output=True, text=True, check=True)
    assert "breakout" in listed.stdout
