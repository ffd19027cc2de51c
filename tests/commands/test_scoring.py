"""What commands say of a game that does not exist, and while many environments start."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.foreign.flags import PolicyFlags
from ebu.commands.policies import load_policy
from ebu.commands.scoring import env_maker
from ebu.commands.studying.plan import games_of
from ebu.commands.train_arguments import parse_arguments
from ebu.errors import UsageError
from envs import Variant
from envs.protocols import PROTOCOLS

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


@pytest.mark.parametrize(("game", "what"), [("pong", "emulators"), ("CartPole-v1", "environments")])
@pytest.mark.parametrize("training", [False, True])
def test_all_environments_are_made_under_a_report(
    game: str, what: str, training: bool, starts: list[tuple[int, str]]
) -> None:
    make = env_maker(game, PROTOCOLS["paper"], threads=1, training=training, variant=Variant())
    make(2, 0).close()
    assert starts == [(2, what)]
