"""The games of a run: how many no-ops they begin with, and that starting many is reported."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ale_py.vector_env import AtariVectorEnv

import tests.faulty as faulty
from ebu.commands.train_arguments import (
    parse_arguments,
    unlike_the_protocol,
    without_effect,
)
from ebu.commands.trainer import build_trainer
from ebu.commands.training_environments import protocol_of
from envs.protocols import PROTOCOLS


@pytest.mark.parametrize(
    ("flags", "no_ops"),
    [
        ("", 30),
        ("--protocol machado", 30),
        ("--protocol machado --train-noops 0", 0),
        ("--preset few_frames", 30),
        ("--preset paper", 0),
        ("--preset paper --train-noops 7", 7),
    ],
)
def test_no_ops_of_training_are_a_setting_under_every_protocol(flags: str, no_ops: int) -> None:
    config = parse_arguments(flags.split())
    assert config.train_noops == no_ops
    assert protocol_of(config) == replace(PROTOCOLS[config.protocol], train_noop_max=no_ops)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--game CartPole-v1 --train-noops 7", "--train-noops 7 changes"),
        ("--game gymnasium:ALE/Pong-v5 --preset paper --train-noops 7", "--train-noops 7 changes"),
        ("--game CartPole-v1 --life-loss-ends-segment False", "--life-loss-ends-segment False ch"),
        ("--target-average 0.01 --target-sync-updates 999", "--target-sync-updates 999 changes"),
        ("--agent adaptive_ebu --average-updates 9", "--average-updates 9 changes"),
    ],
)
def test_a_flag_that_changes_nothing_is_named(flags: str, named: str) -> None:
    (line,) = without_effect(parse_arguments(flags.split()))
    assert line.startswith(named)


@pytest.mark.parametrize(
    "flags",
    [
        "--train-noops 7",
        "--preset paper",
        "--preset few_frames --agent adaptive_ebu",
        "--game CartPole-v1",
        "--game CartPole-v1 --agent adaptive_ebu",
        "--game CartPole-v1 --preset paper",
        # Says how many games an evaluation plays.
        "--game CartPole-v1 --protocol machado",
        "--game CartPole-v1 --train-noops 0",
        "--target-sync-updates 999",
        "--average-updates 9",
    ],
)
def test_other_flags_are_not_named(flags: str) -> None:
    assert without_effect(parse_arguments(flags.split())) == []


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--protocol atari100k", ["--frames 400k"]),
        ("--protocol atari100k --frames 400k", []),
        ("--preset few_frames", []),
        ("--preset few_frames --train-noops 3", ["--train-noops 30"]),
        ("--preset few_frames --life-loss-ends-segment True", []),
        ("--preset few_frames --life-loss-ends-segment False", ["--life-loss-ends-segment"]),
        ("--preset paper --protocol atari100k", ["--frames 400k", "--train-noops 30"]),
        ("", []),
    ],
)
def test_what_is_not_as_the_protocols_agents_are_compared_is_named(
    flags: str, named: list[str]
) -> None:
    found = unlike_the_protocol(parse_arguments(flags.split()))
    assert len(found) == len(named)
    assert all(flag in line for flag, line in zip(named, found, strict=True))


def test_a_run_that_recorded_no_ops_without_effect_is_resumed(tmp_path: Path) -> None:
    args = ["--game", "CartPole-v1", "--frames", "20", "--device", "cpu", "--threads", "1"]
    build_trainer(parse_arguments([*args, "--run-dir", str(tmp_path)])).close()
    config = tmp_path / "config.json"
    record = json.loads(config.read_text())
    record["settings"]["train_noops"] = 7
    config.write_text(json.dumps(record))
    assert parse_arguments(["--resume", str(tmp_path)]).train_noops == 7


@pytest.mark.parametrize(
    ("flags", "of_training", "most_of_evaluation"),
    [
        ("--preset paper", {0}, 30),
        ("--train-noops 1 --protocol machado", {0, 1}, 0),
    ],
)
def test_games_begin_after_the_no_ops_that_were_asked_for(
    flags: str,
    of_training: set[int],
    most_of_evaluation: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: dict[int, list[int]] = {}
    reset = AtariVectorEnv.reset

    def counted(emulators: AtariVectorEnv, **options: Any) -> Any:
        frames, info = reset(emulators, **options)
        begun[emulators.num_envs] = info["episode_frame_number"].tolist()
        return frames, info

    monkeypatch.setattr(AtariVectorEnv, "reset", counted)
    args = [
        *("--game", "pong", "--num-envs", "5", "--replay-capacity", "500", "--network", "net3"),
        *("--frames", "40", "--eval-every-frames", "40", "--eval-episodes", "3"),
        *("--eval-max-steps", "5", "--threads", "1", "--device", "cpu", *flags.split()),
    ]
    trainer = build_trainer(parse_arguments([*args, "--run-dir", str(tmp_path / "run")]))
    assert trainer.run(40)
    trainer.close()
    assert set(begun[5]) == of_training
    assert max(begun[3]) <= most_of_evaluation
    # Three games of at most one no-op are drawn from 0 to 30 with a probability of 0.0003.
    assert (max(begun[3]) > 1) == (most_of_evaluation > 1)


def test_every_environment_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[faulty.Base] = []
    closed: list[faulty.Base] = []
    make = faulty.Base.__init__

    def count(env: faulty.Base, render_mode: str | None = None) -> None:
        made.append(env)
        make(env, render_mode)

    monkeypatch.setattr(faulty.Base, "__init__", count)
    monkeypatch.setattr(faulty.Base, "close", lambda env: closed.append(env))
    args = [
        *("--game", "tests.faulty:Ram-v0", "--num-envs", "2", "--frames", "40", "--threads", "1"),
        *("--eval-every-frames", "20", "--eval-episodes", "3", "--device", "cpu"),
    ]
    trainer = build_trainer(parse_arguments([*args, "--run-dir", str(tmp_path / "run")]))
    assert trainer.run(40)
    assert trainer.finish()
    trainer.close()
    assert len(made) > 4
    assert sorted(map(id, closed)) == sorted(map(id, made))


def test_many_environments_show_that_they_start(
    tmp_path: Path, starts: list[tuple[int, str]]
) -> None:
    args = ["--game", "CartPole-v1", "--num-envs", "20", "--frames", "20", "--device", "cpu"]
    trainer = build_trainer(parse_arguments([*args, "--run-dir", str(tmp_path / "run")]))
    assert starts == [(20, "environments")]
    trainer.run(20)
    trainer.close()
    assert starts == [(20, "environments"), (20, "games")]
