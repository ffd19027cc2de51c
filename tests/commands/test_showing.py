"""A window that fails costs pictures alone."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import tests.faulty as faulty
from ebu.commands.showing import open_window
from envs.gymnasium_vector import GymnasiumVector


def test_a_display_that_is_lost_ends_no_evaluation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plt.switch_backend("agg")
    env = GymnasiumVector("tests.faulty:FloatImage-v0", 1, seed=1)
    window = open_window(env, "game")
    assert window is not None

    def lost(seconds: float) -> None:
        raise RuntimeError('can\'t invoke "update" command: application has been destroyed')

    monkeypatch.setattr(plt, "pause", lost)
    for _ in range(3):
        window.watch(np.zeros(1, np.int64))
    closed: list[faulty.Base] = []
    monkeypatch.setattr(faulty.Base, "close", lambda env: closed.append(env))
    window.close()
    assert len(closed) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the games are no longer shown: can't invoke")
    plt.close("all")
