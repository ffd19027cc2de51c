"""Names of games, sets of games, reference scores, protocols, and what a name is made into."""

from pathlib import Path

import gymnasium
import pytest

import tests.envs.tiny  # noqa: F401
from envs import (
    AtariVector,
    GymnasiumVector,
    UnknownGameError,
    check_game,
    is_atari,
    make_vector,
)
from envs.games import (
    ALL57,
    PAPER49,
    TWO_PLAYER_GAMES,
    ReferenceScores,
    canonical_game,
    reference_scores,
)
from envs.protocols import PROTOCOLS, Protocol


@pytest.mark.parametrize(
    ("name", "game"),
    [
        (" PONG ", "pong"),
        ("ALE/Pong-v5", "pong"),
        ("ale_py:ALE/Pong-v5", "pong"),
        ("PongNoFrameskip-v4", "pong"),
        ("Ms. Pac-Man", "ms_pacman"),
        ("Q*bert", "qbert"),
        ("Up'n Down", "up_n_down"),
        ("Montezuma's Revenge", "montezuma_revenge"),
        ("MontezumaRevengeNoFrameskip-v4", "montezuma_revenge"),
        ("James Bond", "jamesbond"),
        ("tic_tac_toe_3d", "tic_tac_toe_3d"),
    ],
)
def test_games_are_known_by_the_names_people_type(name: str, game: str) -> None:
    assert canonical_game(name) == game


def test_every_id_registered_for_the_emulator_means_its_own_game() -> None:
    specs = [s for s in gymnasium.registry.values() if str(s.entry_point).startswith("ale_py.")]
    assert len(specs) > 300
    for spec in specs:
        assert canonical_game(spec.id) == spec.kwargs["game"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Pong-ram-v0", "ALE/Pong-ram-v5", "Pong-ramNoFrameskip-v4"], "memory"),
        ([*TWO_PLAYER_GAMES, "ALE/Combat-v5"], "two players"),
        (["pnog", "ALE/Pomg-v5"], "did you mean pong"),
        (["brekout", "ALE/Breakot-v5"], "did you mean breakout"),
        (["space invader"], "did you mean space_invaders"),
    ],
)
def test_other_names_are_refused_with_a_reason(names: list[str], words: str) -> None:
    for name in names:
        with pytest.raises(UnknownGameError, match=words):
            canonical_game(name)


def test_reference_scores() -> None:
    pong = reference_scores("ALE/Pong-v5")
    assert pong == ReferenceScores(-20.7, 9.3, 14.6, 18.9, 6.3, 15.2, 15.2)
    assert (pong.human("nature2015"), pong.human("57table")) == (9.3, 14.6)
    with pytest.raises(ValueError, match="human table"):
        pong.human("2015")
    assert reference_scores("tetris") is None
    with pytest.raises(UnknownGameError):
        reference_scores("CartPole-v1")


def test_scores_can_be_normalised() -> None:
    for game in ALL57:
        scores = reference_scores(game)
        assert scores is not None
        assert scores.random is not None
        assert scores.human_57table is not None
        assert (scores.human_nature2015 is not None) == (game in PAPER49)
        for human in (scores.human_nature2015, scores.human_57table):
            assert human is None or human > scores.random


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rules", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_a_game_is_played_under_its_protocol(rules: Protocol, training: bool) -> None:
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


# The tests register Tetris-v0, and Blackjack-v1 is Gymnasium's card game.
@pytest.mark.parametrize(
    ("name", "atari"),
    [
        *((name, True) for name in ("pong", "ALE/Pong-v5", "ale_py:ALE/Pong-v5", "tetris")),
        *((name, False) for name in ("Tetris-v0", "Blackjack-v1", "CartPole-v1", "nonsense")),
        ("tests.envs.tiny:Tetris-v0", False),
    ],
)
def test_what_is_an_atari_game(name: str, atari: bool) -> None:
    assert is_atari(name) == atari


@pytest.mark.parametrize("name", ["CartPole-v1", "Tetris-v0", "tests.envs.tiny:TinyGrey-v0"])
def test_a_registered_id_is_made_by_gymnasium(name: str) -> None:
    env = make_vector(name, 2, seed=0, protocol=PROTOCOLS["paper"], training=True)
    assert isinstance(env, GymnasiumVector)
    env.reset()


def test_a_package_registers_its_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plugged", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "gym.py").write_text(
            "from gymnasium.envs.registration import register\n"
            "def register_envs():\n"
            f"    register('{name}/Tiny-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
        )
        metadata = tmp_path / f"{name}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(
            f"[gymnasium.envs]\n{name} = {name}.gym:register_envs\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    check_game("plugged:plugged/Tiny-v0")
    assert "other/Tiny-v0" not in gymnasium.registry
    with pytest.raises(UnknownGameError, match=r"did you mean plugged/Tiny-v0"):
        check_game("plugged:plugged/Tny-v0")
    del gymnasium.registry["plugged/Tiny-v0"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pnog", "did you mean pong"),
        ("CartPol-v1", "CartPole-v1"),
        ("CartPole-v99", "CartPole-v1"),
        ("tests.envs.tiny:TinyGray-v0", "did you mean TinyGrey-v0"),
        ("no_such_module:Some-v0", "no_such_module"),
        ("..:Some-v0", "cannot import"),
        (":", "cannot import"),
        ("combat", "two players"),
        ("Pong-ram-v4", "memory"),
        ("xqzw", "no similar name"),
        ("tests.envs.tiny:xqzw", "no similar name"),
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
