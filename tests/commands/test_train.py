"""The main job from its command line: what it makes, how it resumes, what it refuses."""

import json
import shlex
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
from ebu.commands.presets import DEFAULT, FEW_FRAMES, PAPER, PRESETS, with_network
from ebu.commands.train_arguments import flags_of, gymnasium_defaults, parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.errors import EbuError, UsageError
from ebu.run.profiling import PROFILED_STEPS
from ebu.run.settings import flat
from ebu.training import Trainer

ROOT = Path(__file__).parents[2]
CARTPOLE = [
    *("--game", "CartPole-v1", "--frames", "3000", "--num-envs", "2", "--threads", "1"),
    *("--replay-capacity", "2000", "--learning-starts", "200", "--log-every-frames", "500"),
    *("--eval-every-frames", "1000", "--eval-episodes", "2", "--device", "cpu"),
    *("--updates-per-step", "0.1", "--batch-size", "16"),
]


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=300
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
    flags += ["--network", "net3", "--threads", "1", "--eval-episodes", "2"]
    ended = command("train.py", *flags, "--run-dir", str(run_dir))
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    made = {"config", "metrics", "evaluations", "events", "checkpoints", "lock"}
    assert {path.name.split(".")[0] for path in run_dir.iterdir()} == made
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
    again = command("train.py", *flags, "--run-dir", str(run_dir))
    assert again.returncode == 0
    assert "already at" in again.stderr
    assert metrics(run_dir) == lines
    assert (run_dir / "evaluations.jsonl").read_bytes() == evaluations


@pytest.mark.slow
def test_a_profile_shows_the_stages_and_changes_nothing(tmp_path: Path) -> None:
    flags = ("--updates-per-step", "0.5", "--frames", "1000")
    run(tmp_path / "without", *flags, until=1000)
    run(tmp_path / "with", *flags, "--profile", until=1000)
    trace = json.loads((tmp_path / "with" / "profile" / "steps.pt.trace.json").read_text())
    counts = Counter(event["name"] for event in trace["traceEvents"])
    stages = {"acting", "sending", "learning", "emulator_wait", "storing"}
    assert {counts[name] for name in stages} == {PROFILED_STEPS}
    assert counts["target_passes"] > 0
    assert counts["update"] > 0
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without") != []


@pytest.mark.parametrize("agent", ["ebu", pytest.param("dqn", marks=pytest.mark.slow)])
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
    printed = gymnasium_defaults(own, (4,)).partition("own: ")[2].split()
    # No-ops are for Atari.
    printed += ["--train-noops=0"]
    run = replace(with_network(own, (4,)), game=DEFAULT.game)
    assert parse_arguments(["--agent", agent, *printed]) == run
    assert not own.method.clip_rewards
    assert own.threads == 1
    assert own.train_noops == 0
    assert own.frames < DEFAULT.frames
    assert own.replay_capacity < DEFAULT.replay_capacity


def test_typed_settings_win_over_the_defaults_of_gymnasium_environments() -> None:
    typed = flat(parse_arguments([]))
    own = flat(parse_arguments(["--game=CartPole-v1"]))
    different = {name: typed[name] for name in own if own[name] != typed[name]}
    # These games have no no-ops: they are refused.
    del different["game"], different["train_noops"]
    flags = flags_of(different, own)
    for args in (["--game=CartPole-v1", *flags], [*flags, "--game", "CartPole-v1"]):
        config = parse_arguments(args)
        assert config == replace(DEFAULT, game="CartPole-v1", train_noops=0)
        assert "--" not in gymnasium_defaults(config, (4,))
    assert "after the first 7" in gymnasium_defaults(
        parse_arguments(["--game=CartPole-v1", "--random-start-actions=7"]), (4,)
    )


def test_the_preset_paper_is_the_same_for_every_game() -> None:
    for game in ("pong", "CartPole-v1"):
        assert parse_arguments(["--preset", "paper", "--game", game]) == replace(PAPER, game=game)


def test_the_preset_few_frames_has_an_agent_of_its_own_and_serves_the_others() -> None:
    own = parse_arguments(["--preset", "few_frames"])
    assert own == parse_arguments(["--agent", FEW_FRAMES.agent, "--preset=few_frames"])
    assert own == FEW_FRAMES
    dqn = parse_arguments(["--preset", "few_frames", "--agent", "dqn"])
    assert (dqn.learner, dqn.loop) == (own.learner, own.loop)
    assert dqn.method == replace(AGENTS["dqn"], shift_pixels=own.method.shift_pixels)


def test_make_trains_a_game_for_its_default_frames_unless_told() -> None:
    def made(*variables: str) -> list[str]:
        words = ["make", "-n", "train", "GAME=CartPole-v1", *variables]
        printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        lines = printed.stdout.replace("\\\n", " ").splitlines()
        return shlex.split(next(line for line in lines if "train.py" in line))[2:]

    assert parse_arguments(made()).frames == parse_arguments(["--game", "CartPole-v1"]).frames
    assert parse_arguments(made("FRAMES=700")).frames == 700


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("flags", [["--updates-per-step", "0.25"], []])
def test_priorities_are_corrected_in_full_before_a_million_frames(
    preset: str, flags: list[str]
) -> None:
    flags = ["--agent", "prioritized", "--preset", preset, *flags]
    short, long = (
        parse_arguments([*flags, "--frames", frames]) for frames in ("1000000", "50000000")
    )
    assert short.method == long.method
    updates = (1_000_000 / 4 - short.loop.learning_starts) * short.loop.updates_per_step
    assert short.method.importance_updates < updates


@pytest.mark.parametrize(("args", "ends"), [([], True), (["False"], False), (["True"], True)])
def test_whether_a_lost_life_ends_a_segment_can_be_chosen(
    tmp_path: Path, args: list[str], ends: bool
) -> None:
    flags = [f"--life-loss-ends-segment={value}" for value in args]
    trainer = build(tmp_path, "--game=pong", *flags)
    assert trainer.life_loss_ends_segment is ends
    trainer.close()


def test_a_flag_overrides_its_preset_wherever_it_is() -> None:
    for args in (["--preset", "paper", "--num-envs", "3"], ["--num-envs=3", "--preset=paper"]):
        config = parse_arguments([*args, "--agent", "dqn"])
        assert config.num_envs == 3
        assert config.learner.optimizer == "rmsprop"
        assert config.method == AGENTS["dqn"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--game pogn", "did you mean pong"),
        ("--agent eb", "did you mean ebu"),
        ("--beta 1.5", "--beta must"),
        ("--frames 0", "--frames must be positive"),
        ("--num-envs 3 --frames 8", "--num-envs 3"),
        ("--mix-segments 5", "must divide"),
        ("--optimizer rmsprop --weight-decay 0.1", "--optimizer adam"),
        ("--weight-decay 1e4", "--weight-decay 10000.0 leaves nothing"),
        ("--average-acts --average-updates 0", "add --average-updates 2000"),
        ("--average-acts --noisy", "leave it out, or --noisy"),
        ("--average-acts --agent adaptive_ebu", "--average-acts is not for adaptive_ebu"),
        ("--resume=", "--resume is empty"),
        ("--preset papers", "did you mean paper"),
        ("--preset=", "choose one of default"),
        ("--agent=", "choose one of ebu"),
        ("--optimizer-epsilon 1e-320", "--optimizer-epsilon must be at least"),
        ("--preset few_frames --game CartPole-v1", "leave it out for CartPole-v1"),
        ("--protocol atari", "paper, machado"),
        ("--replay-capacity 1000000000", "lower --replay-capacity"),
        ("--replay-capacity 3", "raise --replay-capacity"),
        ("--network resnet", "nature, dueling"),
        ("--checkpoint-minutes 0", "--checkpoint-minutes must be positive"),
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
        (["--num-envs", "3"], "num_envs was 2, is 3"),
        (["--frames", "2000"], "may only grow"),
    ):
        with pytest.raises(UsageError, match=words):
            build(tmp_path, *flags)
    build(tmp_path, "--frames", "5000", "--checkpoint-minutes", "1").close()


def test_fewer_frames_for_a_run_to_resume_are_refused_by_their_flag(tmp_path: Path) -> None:
    build(tmp_path).close()
    asked = json.loads((tmp_path / "config.json").read_text())["settings"]["frames"]
    with pytest.raises(UsageError, match=f"--frames {asked - 1}: .* leave --frames out"):
        parse_arguments(["--resume", str(tmp_path), "--frames", str(asked - 1)])
    assert parse_arguments(["--resume", str(tmp_path), "--frames", str(asked)]).frames == asked


def test_another_python_is_told_what_it_lacks(tmp_path: Path) -> None:
    # -S leaves out what is installed, as the system's own Python has nothing of it.
    train = Path(__file__).parents[2] / "train.py"
    ran = subprocess.run([sys.executable, "-S", train], capture_output=True, text=True)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ")
    assert ".venv/bin/python" in line


def test_environments_left_to_the_program_are_those_of_the_device_or_of_the_run(
    tmp_path: Path,
) -> None:
    for asked, number in (("0", 8), ("2", 2)):
        for again in (asked, "0"):
            trainer = build(tmp_path / asked, "--num-envs", again)
            trainer.close()
            assert trainer.env.num_envs == number
        config = json.loads((tmp_path / asked / "config.json").read_text())
        assert config["settings"]["num_envs"] == number


def test_a_directory_without_a_checkpoint_starts_again_with_clean_logs(tmp_path: Path) -> None:
    # What a run leaves that was killed before its first checkpoint.
    run(tmp_path, until=1600)
    for name in ("checkpoints", "best", "evaluations"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    (tmp_path / "evaluations.jsonl").unlink()
    (tmp_path / "checkpoints").mkdir()
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
    assert "Traceback" not in stderr
    assert stderr.index("Ctrl-C") < stderr.index("resume with: ")
    python, program, *args = shlex.split(stderr.rpartition(" with: ")[2])
    assert (ROOT / python).samefile(sys.executable)
    assert program == "train.py"
    assert parse_arguments(args).frames == 1_000_000
    trainer = build(stopped, "--frames", "1000000")
    assert trainer.frames >= 1000
    trainer.run(max(3000, trainer.frames + 500))
    trainer.close()
    one, other = metrics(whole), metrics(stopped)
    assert one == other[: len(one)]


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(tmp_path: Path) -> None:
    run(tmp_path, until=1600)
    saved = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert saved
    # The weights alone are larger: the next checkpoint fails in the middle, as on a full disk.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    start = "import runpy; runpy.run_path('train.py', run_name='__main__')"
    ended = command("-c", limit + start, *CARTPOLE, "--run-dir", str(tmp_path))
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ended.stderr
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == saved
    run(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("agent", ["ebu", "dqn"])
def test_a_run_on_a_gpu_trains_and_goes_on(agent: str, tmp_path: Path) -> None:
    flags = ["--game", "breakout", "--device", "cuda", "--agent", agent, "--frames", "16000"]
    run(tmp_path, *flags, until=8_000)
    run(tmp_path, *flags, until=16_000)
    frames = [line["frames"] // 500 for line in metrics(tmp_path)]
    assert frames == list(range(1, 33))
    assert metrics(tmp_path)[-1]["train/updates"] > 500
