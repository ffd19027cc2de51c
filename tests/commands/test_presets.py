"""Flags of train.py: numbers of every size, flags of other agents, and runs taken up again."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents import AGENTS
from ebu.commands.presets import DEFAULT, for_agent
from ebu.commands.train_arguments import flags_of_run, parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.errors import UsageError
from ebu.run.settings import flat
from envs.games import GAME_SETS, canonical_game

SMALL = [
    *("--game", "CartPole-v1", "--frames", "300", "--num-envs", "2", "--device", "cpu"),
    *("--replay-capacity", "500", "--learning-starts", "50", "--batch-size", "16"),
    *("--log-every-frames", "100", "--eval-every-frames", "200", "--eval-episodes", "1"),
    *("--network", "net3", "--updates-per-step", "0.25", "--epsilon-decay-steps", "50"),
]


def refusal(*args: str) -> str:
    with pytest.raises(UsageError) as error:
        parse_arguments(args)
    message = str(error.value)
    assert "\n" not in message
    return message


def flags_of_type(kind: type) -> Iterator[tuple[str, str]]:
    """Every flag with a default of this type, with an agent that has it."""
    seen = set()
    for agent in AGENTS:
        for name, value in flat(for_agent(DEFAULT, agent)).items():
            if type(value) is kind and name not in seen:
                seen.add(name)
                yield agent, f"--{name.replace('_', '-')}"


INTEGERS, FLOATS = [*flags_of_type(int)], [*flags_of_type(float)]


def test_no_number_is_too_large_for_a_line() -> None:
    for agent, flag in [*INTEGERS, *FLOATS]:
        for text in ("1e30", "1" + "0" * 400, "99999999999999999999"):
            assert flag in refusal("--agent", agent, f"{flag}={text}")


def test_what_is_typed_for_an_integer_is_one() -> None:
    for agent, flag in INTEGERS:
        for text in ("1.5", "1e-3"):
            assert flag in refusal("--agent", agent, flag, text)
    config = parse_arguments(["--frames", "2M", "--replay-capacity", "1e5"])
    assert (config.frames, config.replay_capacity) == (2_000_000, 100_000)


@pytest.mark.parametrize(
    ("typed", "owners", "asked"),
    [
        ("--agent dqn --beta 1", ["ebu", "adaptive_ebu"], "dqn"),
        ("--beta=1 --agent=nstep", ["ebu", "adaptive_ebu"], "nstep"),
        ("--n_step 3", ["dqn", "nstep"], "ebu"),
        ("--trace-lambda 1 --preset paper", ["retrace", "q_lambda"], "ebu"),
    ],
)
def test_a_flag_of_another_agent_is_named_as_such(
    typed: str, owners: list[str], asked: str
) -> None:
    message = refusal(*typed.split())
    assert f"not of {asked}" in message
    assert all(owner in message for owner in owners)
    assert f"--agent {owners[0]}" in message


def test_trust_is_for_what_a_run_names() -> None:
    assert "--trust-env says nothing without --resume" in refusal("--trust-env")


ORIGINAL: dict[str, Any] = {
    # Games of the authors' code: no no-ops in training, but 4 random actions.
    "protocol": "paper",
    "frames": 10_000_000,
    "num_envs": 1,
    "train_noops": 0,
    "random_start_actions": 4,
    "life_loss_ends_segment": None,
    "replay_capacity": 1_000_000,
    # Targets: Lee et al. (2019) with one diffusion factor, and DQN (2015).
    "agent": "ebu",
    "beta": 0.5,
    "mix_segments": 1,
    "double": False,
    "gamma": 0.99,
    "batch_size": 32,
    "clip_rewards": True,
    # Network, loss and optimizer: DQN (2015).
    "network": "nature",
    "output_scale": 1.0,
    "precision": "float32",
    "loss_reduction": "sum",
    "huber_delta": 1.0,
    "optimizer": "rmsprop",
    "learning_rate": 0.00025,
    "optimizer_epsilon": 0.01,
    "target_sync_updates": 10_000,
    # Schedules: DQN (2015), but an update for each agent step, as in the authors' code.
    "epsilon_start": 1.0,
    "epsilon_end": 0.1,
    "epsilon_decay_steps": 1_000_000,
    "updates_per_step": 1.0,
    "learning_starts": 50_000,
    "eval_every_frames": 250_000,
    "eval_episodes": 30,
    # Not in the original.
    "average_acts": False,
    "average_updates": 0,
    "beta_start": None,
    "gamma_start": None,
    "init_from": None,
    "intensity": 0.0,
    "noisy": False,
    "prioritized": False,
    "quantiles": 0,
    "reset_updates": 0,
    "shift_pixels": 0,
    "target_average": 0.0,
    "weight_decay": 0.0,
}
"""The settings of the preset `paper`, whatever the defaults are."""
NOT_OF_THE_METHOD = {
    # What is trained and logged, where, and how fast.
    *("game", "env_args", "env_wrappers", "preset", "seed", "run_dir", "eval_max_steps"),
    *("fresh_games", "device", "threads", "deterministic", "profile", "distill", "cuda_graphs"),
    *("log_every_frames", "checkpoint_minutes", "overlap"),
    # Without effect, because what they belong to is off.
    *("priority_exponent", "importance_exponent", "importance_updates", "anneal_updates"),
}


def test_the_preset_paper_has_the_values_of_the_original() -> None:
    settings = flat(parse_arguments(["--preset", "paper"]))
    assert {name: settings[name] for name in settings.keys() - NOT_OF_THE_METHOD} == ORIGINAL


# --- --resume -------------------------------------------------------------------------------


def start(run_dir: Path, *more: str, until: int = 160) -> dict[str, Any]:
    """Train a part of a run; what its config.json then holds."""
    trainer = build_trainer(parse_arguments([*SMALL, "--run-dir", str(run_dir), *more]))
    assert trainer.run(until)
    trainer.close()
    return read(run_dir)


def resume(*args: object) -> None:
    config = parse_arguments(["--resume", *map(str, args)])
    trainer = build_trainer(config)
    assert trainer.frames > 0
    assert trainer.run(config.frames)
    trainer.close()


def read(run_dir: Path) -> dict[str, Any]:
    config = json.loads((run_dir / "config.json").read_text())
    del config["settings"]["run_dir"]
    return dict(config)


@pytest.mark.parametrize(
    ("agent", "more"),
    [
        *((agent, "") for agent in AGENTS),
        ("ebu", "--preset paper"),
        ("q_lambda", "--preset few_frames --game pong --network 2-2-2/4 --batch-size 32"),
    ],
)
def test_a_run_is_resumed_by_its_directory_alone(
    agent: str, more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    started = start(tmp_path / "a run", "--agent", agent, *more.split())
    monkeypatch.chdir(tmp_path / "below")
    resume("../a run")
    assert read(tmp_path / "a run") == started


@pytest.mark.parametrize(
    "flags",
    [
        "--distill net2 4-4-4/8 --no-overlap --no-clip-rewards",
        "--game pong --network 2-2-2/4 --life-loss-ends-segment False --protocol machado "
        "--checkpoint-minutes 0.5",
        "--device auto --threads 0 --precision auto --seed 7 --random-start-actions 2",
        "--learning-rate 3.0000000000000004e-05 --optimizer rmsprop --eval-every-frames 0",
    ],
)
def test_a_resumed_run_equals_one_that_was_never_stopped(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started = start(Path("stopped"), *flags.split())
    start(Path("whole"), *flags.split(), until=300)
    resume("stopped", "--checkpoint-minutes", "1", "--profile")
    assert read(Path("stopped"))["settings"] == {
        **started["settings"],
        "checkpoint_minutes": 1.0,
        "profile": True,
    }
    one, other = (Path(run_dir, "metrics.jsonl").read_bytes() for run_dir in ("stopped", "whole"))
    assert one == other != b""
    resume("stopped", "--frames", "400")
    assert read(Path("stopped"))["settings"]["frames"] == 400


def test_what_was_left_automatic_is_kept_or_changes_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, automatic = tmp_path / "run", {"threads": 2, "device": "cpu"}

    def resumed_with(cores: int, frames: int) -> str:
        monkeypatch.setattr("ebu.run.machine.all_cores", lambda: cores)
        resume(run_dir, "--frames", frames)
        return capsys.readouterr().err

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("ebu.run.machine.all_cores", lambda: 3)
    started = start(run_dir, "--threads", "0", "--device", "auto")["settings"]
    assert started.items() >= automatic.items()
    assert " here: " not in resumed_with(9, 400)
    assert read(run_dir)["settings"] == {**started, "frames": 400}
    assert "warning: threads was 2, is 1 here: " in resumed_with(1, 500)
    assert read(run_dir)["settings"] == {**started, "frames": 500, "threads": 1}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped, not to be changed."""
    run_dir = tmp_path_factory.mktemp("runs") / "started"
    start(run_dir)
    return run_dir


@pytest.mark.parametrize(
    "flags",
    ["--game pong", "--beta 0.5", "--run-dir x", "--seed=1", "--no-deterministic", "--agent dqn"],
)
def test_settings_of_the_run_are_refused_with_resume(flags: str, started: Path) -> None:
    message = refusal("--resume", str(started), *flags.split())
    assert flags.split()[0].partition("=")[0] in message


@pytest.fixture
def copied(started: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(started, tmp_path / "copied"))


def test_what_cannot_be_resumed_is_one_line(copied: Path, tmp_path: Path) -> None:
    assert "not a run directory" in refusal("--resume", str(tmp_path / "absent"))
    assert "--resume" in refusal("--resume")
    assert "--resume" in refusal("--resume", "")
    assert "extra" in refusal("--resume", str(copied), "extra")
    path = copied / "config.json"
    config = json.loads(path.read_text())
    for change, said in (
        ({"beta": None}, "no beta"),
        ({"agent": "student"}, "of no run of train.py"),
        ({"preset": "3"}, "of no run of train.py"),
        ({"learning_starts": "soon"}, "--learning-starts"),
        ({"triple": True}, "triple"),
    ):
        settings = {**config["settings"], **change}
        if said == "no beta":
            del settings["beta"]
        path.write_text(json.dumps({**config, "settings": settings}))
        assert said in refusal("--resume", str(copied))


def test_a_run_from_before_what_changes_nothing_was_recorded_is_resumed(copied: Path) -> None:
    path = copied / "config.json"
    config = json.loads(path.read_text())
    for name in ("overlap", "profile", "checkpoint_minutes"):
        del config["settings"][name]
    del config["automatic"]
    path.write_text(json.dumps(config))
    assert "--beta=0.5" in flags_of_run(copied)
    resume(copied)


def test_new_games_are_begun_by_the_start_that_asks_for_them_alone(copied: Path) -> None:
    path = copied / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["fresh_games"] = True
    path.write_text(json.dumps(config))
    assert not parse_arguments(["--resume", str(copied)]).fresh_games
    assert parse_arguments(["--resume", str(copied), "--fresh-games"]).fresh_games


def test_games_are_listed_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(["--list-games"])
    assert exit_.value.code == 0
    table, _, rest = capsys.readouterr().out.partition("\n\n")
    sets = {game: sets for game, *sets in map(str.split, table.splitlines())}
    assert [game for game in sets if canonical_game(game) != game] == []
    assert sets["ms_pacman"] == ["paper49", "all57", "atari100k", "atari100k-5"]
    for name, games in GAME_SETS.items():
        assert {game for game, among in sets.items() if name in among} == set(games)
    assert "CartPole-v1" in rest
