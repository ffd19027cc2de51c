"""Names of games, sets of games, reference scores, protocols, and what a name is made into."""

import gymnasium
import pytest
from ale_py import roms
from hypothesis import given
from hypothesis import strategies as st

import tests.envs.tiny  # noqa: F401
from envs import (
    AtariVector,
    GymnasiumVector,
    UnknownGameError,
    is_atari,
    make_vector,
)
from envs.games import (
    ALL57,
    ATARI5,
    GAME_SETS,
    PAPER49,
    TWO_PLAYER_GAMES,
    UnplayableGameError,
    canonical_game,
    reference_scores,
)
from envs.protocols import PROTOCOLS

GAMES = [game for game in roms.get_all_rom_ids() if game not in TWO_PLAYER_GAMES]


def message_of(name: str) -> str:
    with pytest.raises(UnknownGameError) as error:
        canonical_game(name)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("pong", "pong"),
        ("Pong", "pong"),
        ("PONG", "pong"),
        (" pong ", "pong"),
        ("ALE/Pong-v5", "pong"),
        ("ale/pong-v5", "pong"),
        ("ale_py:ALE/Pong-v5", "pong"),
        ("Pong-v0", "pong"),
        ("Pong-v4", "pong"),
        ("PongNoFrameskip-v4", "pong"),
        ("PongDeterministic-v4", "pong"),
        ("MsPacman", "ms_pacman"),
        ("Ms Pacman", "ms_pacman"),
        ("Ms. Pac-Man", "ms_pacman"),
        ("ms-pacman", "ms_pacman"),
        ("ALE/MsPacman-v5", "ms_pacman"),
        ("Q*bert", "qbert"),
        ("Up'n Down", "up_n_down"),
        ("UpNDown", "up_n_down"),
        ("H.E.R.O.", "hero"),
        ("Montezuma's Revenge", "montezuma_revenge"),
        ("MontezumaRevengeNoFrameskip-v4", "montezuma_revenge"),
        ("Yars' Revenge", "yars_revenge"),
        ("Space Invaders", "space_invaders"),
        ("River Raid", "riverraid"),
        ("James Bond", "jamesbond"),
        ("tic_tac_toe_3d", "tic_tac_toe_3d"),
    ],
)
def test_games_are_known_by_the_names_people_type(name: str, game: str) -> None:
    assert canonical_game(name) == game


@pytest.mark.parametrize("game", GAMES)
def test_every_cartridge_is_known_by_its_own_name(game: str) -> None:
    assert canonical_game(game) == game
    assert canonical_game(game.upper().replace("_", " ")) == game


def test_every_id_registered_for_the_emulator_means_its_own_game() -> None:
    specs = [s for s in gymnasium.registry.values() if str(s.entry_point).startswith("ale_py.")]
    assert len(specs) > 300
    for spec in specs:
        assert canonical_game(spec.id) == spec.kwargs["game"]


@pytest.mark.parametrize("name", ["Pong-ram-v0", "ALE/Pong-ram-v5", "Pong-ramNoFrameskip-v4"])
def test_observations_from_memory_are_refused(name: str) -> None:
    assert "memory" in message_of(name)


@pytest.mark.parametrize("name", [*TWO_PLAYER_GAMES, "ALE/Combat-v5"])
def test_games_that_need_two_players_are_refused(name: str) -> None:
    assert "two players" in message_of(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("pnog", "pong"),
        ("brekout", "breakout"),
        ("ALE/Breakot-v5", "breakout"),
        ("mspacmn", "ms_pacman"),
        ("space invader", "space_invaders"),
    ],
)
def test_an_unknown_game_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    assert f"did you mean {nearest}" in message_of(name)


@given(st.one_of(st.text(), st.text(alphabet="pongPONG-v45/: _\n")))
def test_any_text_is_a_cartridge_or_refused_in_one_line(name: str) -> None:
    try:
        game, message = canonical_game(name), None
    except UnknownGameError as error:
        game, message = None, str(error)
    if message is None:
        assert game in GAMES
    else:
        assert len(message.splitlines()) == 1
        assert len(message) < 300


def test_the_sets_of_games() -> None:
    assert len(PAPER49) == 49
    assert len(ALL57) == 57
    assert set(PAPER49) < set(ALL57) <= set(GAMES)
    assert set(ALL57) - set(PAPER49) == {
        *["berzerk", "defender", "phoenix", "pitfall", "skiing", "solaris", "surround"],
        "yars_revenge",
    }
    assert GAME_SETS == {"paper49": PAPER49, "atari5": ATARI5, "all57": ALL57}
    assert ATARI5 == ("battle_zone", "double_dunk", "name_this_game", "phoenix", "qbert")


def test_reference_scores() -> None:
    pong = reference_scores("ALE/Pong-v5")
    assert pong is not None
    assert (pong.random, pong.human_nature2015, pong.human_57table) == (-20.7, 9.3, 14.6)
    assert (pong.dqn_200m, pong.dqn_adam_10m, pong.rainbow_10m, pong.iqn_10m) == (
        *(18.9, 6.3, 15.2, 15.2),
    )
    assert pong.human("nature2015") == 9.3
    assert pong.human("57table") == 14.6
    with pytest.raises(ValueError, match="human table"):
        pong.human("2015")
    breakout = reference_scores("breakout")
    assert breakout is not None
    assert (breakout.random, breakout.human_nature2015, breakout.dqn_200m) == (1.7, 31.8, 401.2)
    phoenix = reference_scores("phoenix")
    assert phoenix is not None
    assert (phoenix.random, phoenix.human_nature2015, phoenix.human_57table) == (
        *(761.4, None, 7242.6),
    )
    assert reference_scores("tetris") is None
    with pytest.raises(UnknownGameError):
        reference_scores("CartPole-v1")


@pytest.mark.parametrize("game", ALL57)
def test_scores_can_be_normalised(game: str) -> None:
    scores = reference_scores(game)
    assert scores is not None
    assert scores.random is not None
    assert scores.human_57table is not None
    assert (scores.human_nature2015 is not None) == (game in PAPER49)
    for human in (scores.human_nature2015, scores.human_57table):
        assert human is None or human > scores.random


def test_the_protocols() -> None:
    paper, machado = PROTOCOLS["paper"], PROTOCOLS["machado"]
    assert (paper.name, machado.name) == ("paper", "machado")
    assert paper.repeat_action_probability == 0.0
    assert machado.repeat_action_probability == 0.25
    assert (paper.train_noop_max, paper.eval_noop_max) == (0, 30)
    assert (machado.train_noop_max, machado.eval_noop_max) == (0, 0)
    assert (paper.train_max_frames, paper.eval_max_frames) == (108_000, 18_000)
    assert (machado.train_max_frames, machado.eval_max_frames) == (108_000, 108_000)
    assert (paper.eval_epsilon, machado.eval_epsilon) == (0.05, None)
    assert (paper.eval_episodes, machado.eval_episodes) == (30, 100)
    assert (paper.life_loss_ends_segment, machado.life_loss_ends_segment) == (True, False)
    assert (paper.full_action_space, machado.full_action_space) == (False, True)
    assert (paper.human_table, machado.human_table) == ("nature2015", "57table")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_a_game_is_played_under_the_rules_of_its_protocol(protocol: str, training: bool) -> None:
    rules = PROTOCOLS[protocol.name]
    env = make_vector("Pong", 2, seed=3, protocol=rules, training=training, num_threads=1)
    assert isinstance(env, AtariVector)
    assert env.num_actions == (18 if rules.full_action_space else 6)
    assert env.identity == {
        "kind": "atari",
        "game": "pong",
        "num_envs": 2,
        "seed": 3,
        "repeat_action_probability": rules.repeat_action_probability,
        "full_action_space": rules.full_action_space,
        "noop_max": rules.train_noop_max if training else rules.eval_noop_max,
        "max_frames_per_game": rules.train_max_frames if training else rules.eval_max_frames,
        "reseed_every_frames": 2_500_000,
    }
    env.close()


@pytest.mark.parametrize(
    ("name", "atari"),
    [
        ("pong", True),
        ("ALE/Pong-v5", True),
        ("ale_py:ALE/Pong-v5", True),
        ("tetris", True),
        ("Tetris-v0", False),  # registered by the tests
        ("Blackjack-v1", False),  # Gymnasium's card game
        ("blackjack", True),
        ("CartPole-v1", False),
        ("tests.envs.tiny:Tetris-v0", False),
        ("nonsense", False),
    ],
)
def test_whether_a_name_is_an_atari_game(name: str, atari: bool) -> None:
    assert is_atari(name) == atari


@pytest.mark.parametrize("name", ["CartPole-v1", "Tetris-v0", "tests.envs.tiny:TinyGrey-v0"])
def test_a_registered_id_is_made_by_gymnasium(name: str) -> None:
    env = make_vector(name, 2, seed=0, protocol=PROTOCOLS["paper"], training=True)
    assert isinstance(env, GymnasiumVector)
    env.reset()
    env.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pnog", "did you mean pong"),
        ("CartPol-v1", "CartPole-v1"),
        ("CartPole", "CartPole-v1"),
        ("CartPole-v99", "CartPole-v1"),
        ("tests.envs.tiny:TinyGray-v0", "did you mean TinyGrey-v0"),
        ("no_such_module:Some-v0", "no_such_module"),
        ("..:Some-v0", "cannot import"),
        (":", "cannot import"),
        ("combat", "two players"),
        ("Pong-ram-v4", "memory"),
        ("xqzw", "no similar name"),
        ("", "no similar name"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_of_both_kinds(
    name: str, message: str
) -> None:
    with pytest.raises(UnknownGameError, match=message) as error:
        make_vector(name, 1, seed=0, protocol=PROTOCOLS["paper"], training=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("final_epsilon", [0.01, 0.1])
def test_evaluation_epsilon(final_epsilon: float) -> None:
    for game in ("Pong", "ALE/Pong-v5"):
        assert PROTOCOLS["paper"].evaluation_epsilon(game, final_epsilon) == 0.05
        assert PROTOCOLS["machado"].evaluation_epsilon(game, final_epsilon) == final_epsilon
    for game in ("CartPole-v1", "TinyNumbers-v0"):
        assert {p.evaluation_epsilon(game, final_epsilon) for p in PROTOCOLS.values()} == {0.0}


def test_an_environment_whose_library_is_missing_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="cannot be made: no such library is installed"):
        make_vector("TinyNeedsALibrary-v0", 1, seed=0, protocol=PROTOCOLS["paper"], training=True)


def test_the_kinds_of_errors() -> None:
    assert issubclass(UnplayableGameError, UnknownGameError)
    assert issubclass(UnknownGameError, ValueError)
