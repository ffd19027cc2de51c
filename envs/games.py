"""Names of Atari games, the usual sets of games, and published reference scores."""

import csv
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import gymnasium
from ale_py import roms

# The emulator aborts the process when one player alone plays these.
TWO_PLAYER_GAMES = ("combat", "joust", "maze_craze", "warlords")

# Titles whose ROM id is more than the title without spaces and punctuation.
_TITLES = {
    "montezumasrevenge": "montezuma_revenge",
    "jamesbond007": "jamesbond",
    "pitfallii": "pitfall2",
    "atlantisii": "atlantis2",
}


class UnknownGameError(ValueError):
    """No game has this name; the one-line message names the nearest ones."""


class NoSimilarGameError(UnknownGameError):
    """No game has this name, nor one like it."""


class UnplayableGameError(UnknownGameError):
    """The emulator knows the name, but no agent here can play it."""


@dataclass(frozen=True)
class ReferenceScores:
    """Published raw scores of one game; None where there is none.

    | field | source |
    | --- | --- |
    | random, human_nature2015, dqn_200m | Mnih et al. (2015), extended data table 2 |
    | human_57table | the human scores of the later tables of 57 games |
    | dqn_adam_10m, rainbow_10m, iqn_10m | published learning curves at 10M frames, sticky actions |
    """

    random: float | None
    human_nature2015: float | None
    human_57table: float | None
    dqn_200m: float | None
    dqn_adam_10m: float | None
    rainbow_10m: float | None
    iqn_10m: float | None

    def human(self, table: str) -> float | None:
        """The human score of the table `nature2015` or `57table`; ValueError for another."""
        if table == "nature2015":
            return self.human_nature2015
        if table == "57table":
            return self.human_57table
        raise ValueError(f"unknown human table {table!r}: nature2015 or 57table")


def _read_table(name: str) -> dict[str, dict[str, str]]:
    text = resources.files("envs").joinpath(name).read_text(encoding="utf-8")
    return {row["game"]: row for row in csv.DictReader(text.splitlines())}


_TABLE = _read_table("atari57.csv")
_TABLE_100K = _read_table("atari100k.csv")

ALL57: tuple[str, ...] = tuple(sorted(_TABLE))
PAPER49: tuple[str, ...] = tuple(game for game in ALL57 if _TABLE[game]["in_paper49"] == "1")
# Aitchison, Sweetser, Hutter (2023): the five games that best predict the median over all 57.
ATARI5: tuple[str, ...] = ("battle_zone", "double_dunk", "name_this_game", "phoenix", "qbert")
# Kaiser et al. (2020): the 26 games of the benchmark of 400,000 frames, and five said to stand for
# them.
ATARI100K: tuple[str, ...] = tuple(_TABLE_100K)
ATARI100K_5: tuple[str, ...] = ("assault", "bank_heist", "battle_zone", "demon_attack", "ms_pacman")
GAME_SETS: dict[str, tuple[str, ...]] = {
    "paper49": PAPER49,
    "atari5": ATARI5,
    "all57": ALL57,
    "atari100k": ATARI100K,
    "atari100k-5": ATARI100K_5,
}
"""The usual sets of games by name."""


def reference_scores(game: str) -> ReferenceScores | None:
    """The published scores of a game; None outside the 57. Raises UnknownGameError."""
    row = _TABLE.get(canonical_game(game))
    if row is None:
        return None
    fields = ReferenceScores.__dataclass_fields__
    return ReferenceScores(**{name: float(row[name]) if row[name] else None for name in fields})


def score_at_100k(agent: str, game: str) -> float | None:
    """An agent's published score of a game after 400,000 frames; None outside the 26 games.

    agent: a column of atari100k.csv.
    """
    row = _TABLE_100K.get(game)
    return None if row is None else float(row[agent])


def canonical_game(name: str) -> str:
    """The ROM id of a game given as a ROM id, a title or a Gymnasium id.

    `pong`, `Pong`, `ALE/Pong-v5`, `PongNoFrameskip-v4`, `PongDeterministic-v4`, `Q*bert`,
    `Ms. Pac-Man`, `Up'n Down` … An id names the game alone: the protocol decides frame skip, sticky
    actions and observations. Raises UnknownGameError, or its subclass UnplayableGameError for
    observations of the console's memory (`Pong-ram-v4`) and for games that need two players.
    """
    key = _key(name)
    game = _TITLES.get(key) or games_by_key().get(key)
    if game in TWO_PLAYER_GAMES:
        raise UnplayableGameError(f"{game} needs two players; an agent cannot play it alone")
    if game is not None:
        return game
    if key.endswith("ram") and key[:-3] in games_by_key():
        raise UnplayableGameError(
            f"{quote(name)} observes the console's memory, which is not supported; use "
            f"{games_by_key()[key[:-3]]!r}, which observes the screen"
        )
    raise unknown_game(name, nearest_games(name))


def is_atari(game: str) -> bool:
    """Whether `make_vector` plays this name on the Atari emulator.

    An id that another package registered with Gymnasium is not Atari, even if it is called like a
    game.
    """
    if registered_elsewhere(game) or (":" in game and not game.lower().startswith("ale_py:")):
        return False
    try:
        canonical_game(game)
    except UnknownGameError:
        return False
    return True


def registered_elsewhere(env_id: str) -> bool:
    """Whether the id is registered with Gymnasium, and not by the emulator."""
    spec = gymnasium.registry.get(env_id)
    return spec is not None and not str(spec.entry_point).startswith("ale_py.")


def list_games() -> str:
    """Every playable game on a line of its own, with the sets it belongs to."""
    games = sorted(set(games_by_key().values()) - set(TWO_PLAYER_GAMES))
    width = max(map(len, games))
    sets = {game: [name for name, of in GAME_SETS.items() if game in of] for game in games}
    return "\n".join(f"{game:<{width}}  {' '.join(sets[game])}".rstrip() for game in games)


def nearest_games(name: str) -> list[str]:
    """Up to three ROM ids similar to `name`, nearest first."""
    keys = [key for key, game in games_by_key().items() if game not in TWO_PLAYER_GAMES]
    return [games_by_key()[key] for key in difflib.get_close_matches(_key(name)[:80], keys)]


def unknown_game(name: str, nearest: Sequence[str]) -> UnknownGameError:
    """The error for a name that nothing has: `did you mean a, b or c?`, if there are such."""
    if not nearest:
        return NoSimilarGameError(
            f"unknown game {quote(name)}: no similar name; an environment of another package takes "
            "its module in front, minigrid:MiniGrid-Empty-5x5-v0"
        )
    listed = " or ".join(filter(None, [", ".join(nearest[:-1]), nearest[-1]]))
    return UnknownGameError(f"unknown game {quote(name)}: did you mean {listed}?")


def quote(name: str) -> str:
    """Quote a name for a message, on one line and abbreviated to 80 characters."""
    quoted = repr(name)
    return quoted if len(quoted) <= 80 else quoted[:76] + "...'"


@cache
def games_by_key() -> dict[str, str]:
    """Every ROM id, by its letters and digits alone."""
    return {game.replace("_", ""): game for game in sorted(roms.get_all_rom_ids())}


def _key(name: str) -> str:
    name = name.strip().lower()
    name = re.sub(r"^(ale_py:)?ale/", "", name)
    # Only the versions of Atari ids: `Blackjack-v1` is Gymnasium's card game, not the cartridge.
    name = re.sub(r"-v[045]$", "", name)
    if re.search(r"-v[0-9]+$", name):
        return name
    letters = re.sub(r"[^a-z0-9]", "", name)
    return re.sub(r"(noframeskip|deterministic)$", "", letters)
