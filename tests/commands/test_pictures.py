"""The pictures of a report can be read: whatever the names, and however many there are."""

import numpy as np
import pytest

from agents import AGENTS
from ebu.commands.reporting.aggregates import Profile
from ebu.commands.reporting.pictures import Curve, draw_curves, draw_profiles
from envs.games import ALL57
from tests.figures import unreadable

LONG = "my_package.some_module:AnEnvironmentWithALongName-v0"
GAMES = {
    "one": ["video_pinball"],
    "one of a module": ["module:Env-v0"],
    "one with a long name": [LONG],
    "two": ["video_pinball", "module:Env-v0"],
    "thirteen long": [f"{LONG}{number}" for number in range(13)],
    "all": list(ALL57),
}


def curve(height: float) -> Curve:
    return np.array([10_000, 500_000, 200_000_000]), height * np.array([-0.5, 0.7, 1.0])


@pytest.mark.parametrize("agents", [["ebu"], list(AGENTS)], ids=["one", "all"])
@pytest.mark.parametrize("games", GAMES)
def test_nothing_of_the_curves_is_cut(games: str, agents: list[str]) -> None:
    drawn = {game: {name: [curve(1e6)] for name in agents} for game in GAMES[games]}
    assert unreadable(draw_curves(drawn)) == []


@pytest.mark.parametrize(
    "names",
    [
        ["ebu"],
        list(AGENTS),
        [f"optimality_tightening, update_per_step {number}" for number in range(30)],
        ["a name that is longer than any figure is wide " * 3],
    ],
    ids=["one", "all", "many", "long"],
)
def test_nothing_of_the_profiles_is_cut(names: list[str]) -> None:
    thresholds = np.linspace(0, 8, 20)
    shares = np.linspace(1, 0, 20)
    found = [Profile(name, shares, shares - 0.1, shares + 0.1) for name in names]
    assert unreadable(draw_profiles(thresholds, found)) == []
