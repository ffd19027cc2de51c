"""The main job from its command line: what it makes, how it goes on, what it refuses."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents import AGENTS, load_agent
from ebu.commands.presets import DEFAULT, PAPER
from ebu.commands.train_arguments import flags_of, gymnasium_defaults, parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import load_latest
from ebu.run.profiling import PROFILED_STEPS
from ebu.run.settings import flat
from ebu.training import Trainer

ROOT = Path(__file__).parents[2]
CARTPOLE = [
    *("--game", "CartPole-v1", "--frames", "3000", "--num-envs", "2", "--threads", "1"),
    *("--replay-capacity", "2000", "--learning-starts", "200", "--log-every-frames", "500"),
    *("--eval-every-frames", "1000", "--eval-episodes", "2", "--device", "cpu"),
]


def command(*args: str, script: str = "train.py") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script, *args], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def build(run_dir: Path, *more: str) -> Trainer:
    return build_trainer(parse_arguments([*CARTPOLE, "--run-dir", str(run_dir), *more]))


def run(run_dir: Path, *more: str, until: int = 3000) -> None:
    trainer = build(run_dir, *more)
    assert trainer.run(until)
    trainer.close()


def metrics(run_dir: Path) -> list[dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_on_a_real_game_makes_what_the_readme_says(tmp_path: Path) -> None:
    run_dir = tmp_path / "breakout"
    flags = ["--game", "ALE/Breakout-v5", "--frames", "8000", "--learning-starts", "1200"]
    flags += ["--replay-capacity", "5000", "--log-every-frames", "2000", "--batch-size", "8"]
    flags += ["--threads", "1", "--eval-episodes", "2"]
    ended = command(*flags, "--run-dir", str(run_dir))
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert {path.name.split(".")[0] for path in run_dir.iterdir()} == {
        "config",
        "metrics",
        "evaluations",
        "events",
        "checkpoints",
        "lock",
    }
    lines = metrics(run_dir)
    assert [line["frames"] // 1000 for line in lines] == [1, 2, 4, 5, 6, 8]
    evaluations = (run_dir / "evaluations.jsonl").read_bytes()
    assert json.loads(evaluations)["frames"] == lines[-1]["frames"]
    # The updates that a step allows are taken while the next one is played.
    assert lines[-1]["train/updates"] == lines[-1]["train/agent_steps"] - 8 - 1200
    assert lines[-1]["train/agent_steps"] * 4 == lines[-1]["frames"]
    agent = load_agent(run_dir)
    assert agent.frames >= 8000
    assert agent.act(np.zeros((4, 84, 84), np.uint8)) in range(4)
    again = command(*flags, "--run-dir", str(run_dir))
    assert again.returncode == 0
    assert "already at" in again.stderr
    assert metrics(run_dir) == lines
    assert (run_dir / "evaluations.jsonl").read_bytes() == evaluations


def test_a_profile_shows_the_stages_and_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "without")
    run(tmp_path / "with", "--profile")
    trace = json.loads((tmp_path / "with" / "profile" / "steps.pt.trace.json").read_text())
    counts = Counter(event["name"] for event in trace["traceEvents"])
    stages = {"acting", "sending", "learning", "emulator_wait", "storing"}
    assert {counts[name] for name in stages} == {PROFILED_STEPS}
    assert counts["target_passes"] > 0
    assert counts["update"] > 0
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")


@pytest.mark.parametrize("agent", ["ebu", "dqn"])
def test_the_defaults_learn_to_balance_a_pole(agent: str, tmp_path: Path) -> None:
    # Random play keeps the pole up for 22 steps on average (standard deviation of a game 12): a
    # mean of 10 games above 60 is 10 standard errors away.
    flags = ["--game", "CartPole-v1", "--agent", agent, "--frames", "6000", "--device", "cpu"]
    trainer = build_trainer(parse_arguments([*flags, "--run-dir", str(tmp_path)]))
    assert trainer.run(6000)
    assert trainer.finish()
    trainer.close()
    last = json.loads((tmp_path / "evaluations.jsonl").read_text().splitlines()[-1])
    assert last["frames"] >= 6000
    assert last["mean"] > 60


@pytest.mark.parametrize("agent", AGENTS)
def test_the_printed_defaults_of_a_gymnasium_environment_are_all_there_are(agent: str) -> None:
    own = parse_arguments(["--game", "CartPole-v1", "--agent", agent])
    printed = gymnasium_defaults(own).partition("own: ")[2].split()
    assert parse_arguments(["--agent", agent, *printed]) == replace(own, game=DEFAULT.game)
    assert not own.method.clip_rewards
    assert own.threads == 1
    assert own.train_noops == 0
    assert own.frames < DEFAULT.frames
    assert own.replay_capacity < DEFAULT.replay_capacity


def test_typed_settings_win_over_the_defaults_of_gymnasium_environments() -> None:
    typed = flat(parse_arguments([]))
    own = flat(parse_arguments(["--game=CartPole-v1"]))
    different = {name: typed[name] for name in own if own[name] != typed[name]}
    del different["game"]
    flags = flags_of(different, own)
    for args in (["--game=CartPole-v1", *flags], [*flags, "--game", "CartPole-v1"]):
        config = parse_arguments(args)
        assert config == replace(DEFAULT, game="CartPole-v1")
        assert "--" not in gymnasium_defaults(config)


@pytest.mark.parametrize("game", ["pong", "CartPole-v1"])
def test_the_preset_paper_is_the_same_for_every_game(game: str) -> None:
    assert parse_arguments(["--preset", "paper", "--game", game]) == replace(PAPER, game=game)


def test_make_trains_a_game_for_its_default_frames_unless_told() -> None:
    def made(*variables: str) -> list[str]:
        words = ["make", "-n", "train", "GAME=CartPole-v1", *variables]
        printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        return next(x for x in printed.stdout.splitlines() if "train.py" in x).split()[2:]

    assert parse_arguments(made()).frames == parse_arguments(["--game", "CartPole-v1"]).frames
    assert parse_arguments(made("FRAMES=700")).frames == 700


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("updates_per_step", ["0.25", None])
def test_priorities_are_corrected_in_full_before_a_million_frames(
    preset: str, updates_per_step: str | None
) -> None:
    flags = ["--agent", "prioritized", "--preset", preset]
    if updates_per_step is not None:
        flags += ["--updates-per-step", updates_per_step]
    short, long = (
        parse_arguments([*flags, "--frames", frames]) for frames in ("1000000", "50000000")
    )
    assert short.method == long.method
    updates = (1_000_000 / 4 - short.loop.learning_starts) * short.loop.updates_per_step
    assert short.method.importance_updates < updates


def test_an_agent_has_flags_of_its_own_and_presets_fit_it() -> None:
    config = parse_arguments(["--agent", "dqn", "--preset=paper"])
    assert config.agent == "dqn"
    assert config.method == AGENTS[config.agent]
    assert config.loop.learning_starts == 50_000


@pytest.mark.parametrize(("args", "ends"), [([], True), (["False"], False), (["True"], True)])
def test_whether_a_lost_life_ends_a_segment_can_be_chosen(
    tmp_path: Path, args: list[str], ends: bool
) -> None:
    trainer = build(tmp_path, *[f"--life-loss-ends-segment={value}" for value in args])
    assert trainer.life_loss_ends_segment is ends
    trainer.close()


def test_a_flag_overrides_its_preset_wherever_it_stands() -> None:
    for args in (["--preset", "paper", "--num-envs", "3"], ["--num-envs=3", "--preset=paper"]):
        config = parse_arguments(args)
        assert config.num_envs == 3
        assert config.learner.optimizer == "rmsprop"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--game pogn", "did you mean pong"),
        ("--agent eb", "did you mean ebu"),
        ("--beta 1.5", "--beta must"),
        ("--beta nan", "--beta must"),
        ("--frames 0", "--frames must be positive"),
        ("--frames -4", "--frames must be positive"),
        ("--frames many", "--frames"),
        ("--num-envs 3 --frames 8", "--num-envs 3"),
        ("--mix-segments 5", "must divide"),
        ("--preset papers", "did you mean paper"),
        ("--protocol atari", "paper, machado"),
        ("--replay-capacity 1000000000", "lower --replay-capacity"),
        ("--replay-capacity 3", "raise --replay-capacity"),
        ("--network resnet", "nature, dueling"),
        ("--checkpoint-minutes 0", "--checkpoint-minutes must be positive"),
        ("--threads -1", "--threads must be at least 0"),
        ("--no-such-flag", "--no-such-flag"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(
    flags: str, complaint: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(UsageError) as refusal:
        build_trainer(parse_arguments([*flags.split(), "--run-dir", str(run_dir)]))
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not run_dir.exists()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    build(tmp_path).close()
    for flags, words in (
        (["--beta", "0.7"], r"beta was 0\.5, is 0\.7"),
        (["--threads", "2"], "threads was 1, is 2"),
        (["--frames", "2000"], "may only grow"),
    ):
        with pytest.raises(UsageError, match=words):
            build(tmp_path, *flags)
    build(tmp_path, "--frames", "5000", "--checkpoint-minutes", "1").close()


@pytest.mark.slow
def test_a_run_moves_to_a_smaller_machine_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    automatic = ("--threads", "0", "--device", "auto")
    run(tmp_path, *automatic, "--frames", "1600", until=1600)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["automatic"] == ["device", "threads"]
    # As a machine with a GPU and more cores would have left it.
    config["settings"] |= {"device": "cuda", "threads": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    capsys.readouterr()
    run(tmp_path, *automatic)
    said = capsys.readouterr().err
    assert "warning: device was cuda, is cpu" in said
    assert "warning: threads was 1000, is " in said
    run(tmp_path, *automatic)
    assert "was" not in capsys.readouterr().err.split()
    with pytest.raises(UsageError, match="precision was float32, is bfloat16"):
        build(tmp_path, *automatic, "--precision", "bfloat16")


def test_only_one_process_trains_in_a_directory(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    with pytest.raises(UsageError, match="another process"):
        build(tmp_path)
    trainer.close()
    build(tmp_path).close()


def test_a_directory_without_a_checkpoint_starts_again_with_clean_logs(tmp_path: Path) -> None:
    # What a run leaves that was killed before its first checkpoint.
    run(tmp_path, until=1600)
    shutil.rmtree(tmp_path / "checkpoints")
    assert metrics(tmp_path)
    trainer = build(tmp_path)
    assert trainer.frames == 0
    assert metrics(tmp_path) == []
    assert not (tmp_path / "best").exists()
    trainer.close()


def flip_one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    run(whole)
    damaged = tmp_path / "damaged"
    run(damaged, until=1600)
    trainer = build(damaged)
    trainer.run(2400)
    trainer.close()
    newest = max((damaged / "checkpoints").iterdir())
    flip_one_bit(newest / "state.safetensors")
    run(damaged)
    assert newest.name in capsys.readouterr().err
    assert (whole / "metrics.jsonl").read_bytes() == (damaged / "metrics.jsonl").read_bytes()

    for checkpoint in (damaged / "checkpoints").iterdir():
        flip_one_bit(checkpoint / "frames.zst")
    with pytest.raises(EbuError) as failure:
        build(damaged)
    assert not isinstance(failure.value, UsageError)
    assert "\n" not in str(failure.value)


def test_a_signal_saves_and_the_same_command_resumes(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(whole)
    flags = [*CARTPOLE, "--frames", "1000000", "--run-dir", str(stopped)]
    process = subprocess.Popen(
        [sys.executable, "train.py", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (stopped / "metrics.jsonl").exists() or len(metrics(stopped)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "resume with: " in stderr
    assert "Traceback" not in stderr
    checkpoint = load_latest(stopped / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state["frames"] >= 1000
    trainer = build(stopped, "--frames", "1000000")
    trainer.run(max(3000, trainer.frames + 500))
    trainer.close()
    one, other = metrics(whole), metrics(stopped)
    assert one == other[: len(one)]


def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(tmp_path: Path) -> None:
    run(tmp_path, until=1600)
    saved = load_latest(tmp_path / "checkpoints")
    assert saved is not None

    def small_files_only() -> None:
        # The weights alone are larger: the next checkpoint fails in the middle, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    ended = subprocess.run(
        [sys.executable, "train.py", *CARTPOLE, "--run-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=small_files_only,
        timeout=120,
    )
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ended.stderr
    left = load_latest(tmp_path / "checkpoints")
    assert left is not None
    assert left.name == saved.name
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [saved.name]
    run(tmp_path)


@pytest.mark.slow
def test_many_environments_and_a_small_memory_train(tmp_path: Path) -> None:
    # 31 steps in each stream's ring: every segment of these long games is a cut one.
    flags = "--num-envs 64 --replay-capacity 2000 --frames 33000 --learning-starts 2048 "
    flags += "--updates-per-step 0.01 --log-every-frames 4000"
    trainer = build_trainer(
        parse_arguments(["--game", "freeway", *flags.split(), "--run-dir", str(tmp_path)])
    )
    assert trainer.run(33_000)
    assert trainer.replay.statistics()["fill"] > 0.9
    assert trainer.updates == int((trainer.agent_steps - 64 - 2048) * 0.01)
    assert trainer.replay.num_segments > 64
    trainer.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("agent", ["ebu", "dqn"])
def test_a_run_on_a_gpu_trains_and_goes_on(agent: str, tmp_path: Path) -> None:
    flags = ["--game", "breakout", "--device", "cuda", "--agent", agent, "--frames", "16000"]
    run(tmp_path, *flags, until=8_000)
    run(tmp_path, *flags, until=16_000)
    frames = [line["frames"] // 500 for line in metrics(tmp_path)]
    assert frames == list(range(1, 33))
    assert metrics(tmp_path)[-1]["train/updates"] > 500
