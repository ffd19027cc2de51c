"""Settings that change with the updates, by hand."""

from dataclasses import replace

import pytest

from agents.annealing import LEVELS, Annealing
from agents.settings import (
    AGENTS,
    AdaptiveEbuConfig,
    EbuConfig,
    LearnerConfig,
    TransitionConfig,
    check_learner,
)
from ebu.errors import UsageError


def test_horizons_and_steps_change_by_a_factor_and_beta_by_a_difference() -> None:
    steps = TransitionConfig(
        gamma=0.99, gamma_start=0.96, n_step=1, n_step_start=16, anneal_updates=160
    )
    annealing = Annealing(steps, 0)
    assert annealing.at(0)[0] == replace(steps, gamma=0.96, n_step=16)
    half, left = annealing.at(80)
    assert half.n_step == 4
    assert half.gamma == pytest.approx(0.98)
    assert left == 10
    assert annealing.at(159) == (annealing.at(150)[0], 1)
    assert annealing.at(160)[0] is steps
    assert annealing.at(10**9)[0] is steps

    beta = EbuConfig(beta=0.5, beta_start=1.0, anneal_updates=160)
    assert [Annealing(beta, 0).at(u)[0].beta for u in (0, 80, 160)] == [1.0, 0.75, 0.5]


@pytest.mark.parametrize(("anneal", "reset"), [(160, 0), (160, 100), (7, 50), (1, 3), (100, 100)])
def test_settings_hold_as_long_as_they_say_and_begin_again_after_a_reset(
    anneal: int, reset: int
) -> None:
    annealing = Annealing(EbuConfig(beta=0.0, beta_start=0.8, anneal_updates=anneal), reset)
    update, following = 0, 0
    for update in range(400):
        settings, left = annealing.at(update)
        if update == following:
            following = update + left
        assert update + left == following
        done = update % reset if reset else update
        level = min(LEVELS, done * LEVELS // anneal)
        assert settings.beta == pytest.approx(0.8 * (1 - level / LEVELS))


def test_what_does_not_change_is_the_setting_itself() -> None:
    settings = AGENTS["ebu"]
    assert Annealing(settings, 0).at(5)[0] is settings


def test_changes_that_a_reset_ends_before_they_are_done_are_refused() -> None:
    config = EbuConfig(beta_start=1.0, anneal_updates=10)
    check_learner(config, LearnerConfig(reset_updates=10))
    check_learner(EbuConfig(), LearnerConfig(reset_updates=9))
    with pytest.raises(UsageError, match=r"--anneal-updates 10 .* --reset-updates 9"):
        check_learner(config, LearnerConfig(reset_updates=9))


@pytest.mark.parametrize(
    "settings",
    [
        EbuConfig(anneal_updates=5),
        EbuConfig(gamma=1.0, gamma_start=0.9),
        EbuConfig(gamma_start=1.0),
        AdaptiveEbuConfig(beta_start=0.5),
    ],
)
def test_changes_that_mean_nothing_are_refused(settings: EbuConfig) -> None:
    with pytest.raises(UsageError):
        settings.check()
