"""Committed results: what they hold, that a study takes them as done, and one precision in each."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ebu.commands import report, study
from ebu.commands.presets import DEFAULT
from ebu.commands.reporting.runs import learning_curve, read_run, settings_digest
from ebu.commands.studying import provenance
from ebu.commands.studying.committed import MOST_LINES, result_differences, write_result
from ebu.commands.studying.plan import PlannedRun, StudyConfig, plan
from ebu.commands.studying.player import Task
from ebu.commands.studying.provenance import code_version, provenance_of
from ebu.commands.studying.results import COLUMNS
from ebu.commands.train_arguments import parse_arguments
from ebu.errors import EbuError, UsageError
from ebu.run import machine as machine_module
from ebu.run.directory import acquire_lock
from ebu.run.logs import Monitor
from ebu.run.settings import flat
from tests.run_directories import FRAMES, as_recorded, evaluation, write_run

VARIANTS = ("base:", "beta1: --beta 1", "slow: --updates-per-step 0.125 --learning-rate 1e-5")


def study_in(root: Path, *passed_on: str, **options: Any) -> tuple[list[object], list[PlannedRun]]:
    """The arguments of a study with results, and what it plans."""
    given: dict[str, Any] = {
        "games": ("pong",),
        "agents": ("ebu",),
        "frames": FRAMES,
        "out": root / "out",
        "results": root / "results",
        **options,
    }
    arguments: list[object] = []
    for name, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        arguments += [f"--{name.replace('_', '-')}", *values]
    passed_on = ("--device", "cpu", *passed_on)
    return [*arguments, "--", *passed_on], plan(StudyConfig(**given), passed_on)


def run_study(monkeypatch: pytest.MonkeyPatch, args: Sequence[object]) -> list[Task]:
    """What a study would play, without playing it."""
    played: list[Task] = []

    def run_tasks(tasks: Sequence[Task], *_: Any, **__: Any) -> tuple[list[str], None]:
        played.extend(tasks)
        return [], None

    monkeypatch.setattr(study, "run_tasks", run_tasks)
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, args)])
    assert study.main() == 0
    return played


def write_planned(run: PlannedRun, score: float | None = 1.0, **other: Any) -> Path:
    """The run directory of a planned run, finished."""
    settings = as_recorded(run, run_dir=str(run.run_dir))
    return write_run(run.run_dir.parent, score=score, name=run.name, **{**settings, **other})


def test_variants_are_played_by_every_agent_game_and_seed() -> None:
    runs = plan(
        StudyConfig(games=("pong", "breakout"), agents=("ebu",), seeds=2, variants=VARIANTS),
        ["--network", "net2"],
    )
    assert len({run.name for run in runs}) == len(runs) == 2 * 2 * 3
    assert runs[1].name == "pong-ebu-beta1-seed0"
    for run in runs:
        assert parse_arguments(run.flags) == run.config
        assert run.config.learner.network == "net2"
    usual = flat(DEFAULT)["updates_per_step"]
    assert [flat(run.config)["updates_per_step"] for run in runs[:3]] == [usual, usual, 0.125]


def test_a_finished_run_is_copied_and_then_taken_as_done_where_no_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args, runs = study_in(tmp_path, variants=VARIANTS, seeds=2)
    for number, run in enumerate(runs[:4]):
        write_planned(run, float(number))
    # A broken table is written again.
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.csv").write_text(",".join(COLUMNS) + "\npong,ebu,0,pap")
    first = run_study(monkeypatch, args)
    assert [task.name for task in first] == [run.name for run in runs[4:]]
    assert "6 runs, 4 of them scored" in capsys.readouterr().err
    before = (tmp_path / "results" / "results.csv").read_text()
    rows = list(csv.DictReader(before.splitlines()))
    assert (rows[0]["score"], rows[0]["run_dir"]) == ("0.0", runs[0].name)
    assert len(rows) == 4
    shutil.rmtree(tmp_path / "out")
    elsewhere = (tmp_path / "results").rename(tmp_path / "elsewhere")
    args, _ = study_in(
        tmp_path, variants=VARIANTS, seeds=2, out=tmp_path / "new", results=elsewhere
    )
    assert [task.name for task in run_study(monkeypatch, args)] == [task.name for task in first]
    assert (elsewhere / "results.csv").read_text() == before
    monkeypatch.setattr(sys, "argv", ["report.py", str(elsewhere)])
    report.main()
    assert "| pong | ebu" in capsys.readouterr().out


def test_what_is_missing_is_listed_also_where_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args, runs = study_in(tmp_path, seeds=2, jobs=0)
    write_planned(runs[0])
    assert run_study(monkeypatch, args) == []
    assert f"missing: {runs[1].name}" in capsys.readouterr().err
    write_planned(runs[1])
    assert run_study(monkeypatch, args) == []
    assert "missing: " not in capsys.readouterr().err


def test_a_result_is_small_and_holds_every_game_and_no_place(tmp_path: Path) -> None:
    _, (run,) = study_in(tmp_path)
    run_dir = write_planned(run, -5.7)
    (run_dir / "checkpoints").mkdir()
    (run_dir / "events.out.tfevents.1").write_bytes(b"")
    line = {"frames": 0, "train/return_last_100_games": 1.25, "filling": 600 * "x"}
    lines = [json.dumps({**line, "frames": frames}) + "\n" for frames in range(1_000)]
    (run_dir / "metrics.jsonl").write_text("".join(lines) + '{"frames": 1')
    assert run.result_dir is not None
    write_result(run_dir, run.result_dir, run.games)
    files = list(run.result_dir.iterdir())
    assert len(files) == 5
    assert sum(path.stat().st_size for path in files) < 64_000
    assert not any(str(tmp_path) in path.read_text() for path in files)
    record = json.loads((run.result_dir / "evaluation.json").read_text())
    assert len(record["returns"]) == record["games"]
    frames, _ = learning_curve(run.result_dir)
    assert MOST_LINES / 2 < len(frames) <= MOST_LINES
    assert frames[-1] == 999
    assert len(set(frames[1:] - frames[:-1])) == 1
    original, copied = read_run(run_dir), read_run(run.result_dir)
    assert copied.score == original.score
    assert not run.differences_of(copied)


@pytest.mark.parametrize(
    ("other", "complaint", "copied"),
    [
        ({"beta": 0.7}, "beta was 0.7, is 0.5", False),
        ({"frames": 2 * FRAMES}, f"frames was {2 * FRAMES}, is {FRAMES} (may only grow)", False),
        ({"beta": 0.7}, "beta was 0.7, is 0.5", True),
        ({"frames": 2 * FRAMES, "played": 2 * FRAMES}, f"was {2 * FRAMES}, is {FRAMES}", True),
        ({"seed": 3}, "seed was 3, is 0", True),
        ({"precision": "bfloat16"}, "precision was bfloat16, is float32", True),
        ({"distances": 4}, "distances was 4, is None", True),
        ({"train_noops": None}, "train_noops was None, is 30", True),
    ],
)
def test_runs_and_results_of_other_settings_are_refused_before_anything_is_played(
    other: dict[str, Any],
    complaint: str,
    copied: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args, (run,) = study_in(tmp_path)
    assert run.result_dir is not None
    named = write_planned(run, 1.0, **other)
    if copied:
        write_result(named, run.result_dir, run.games)
        shutil.rmtree(tmp_path / "out")
        named = run.result_dir
    else:
        args = [x for x in args if x not in ("--results", tmp_path / "results")]
    with pytest.raises(UsageError) as refusal:
        run_study(monkeypatch, args)
    assert complaint in str(refusal.value)
    assert str(named) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_changes_no_result_may_differ_and_half_a_result_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, (run,) = study_in(tmp_path)
    assert run.result_dir is not None
    machine = {"threads": 7, "device": "cpu", "num_envs": 8, "checkpoint_minutes": 1.0}
    write_result(write_planned(run, 1.0, **machine), run.result_dir, run.games)
    (run.result_dir / "config.json").unlink()
    assert run_study(monkeypatch, args) == []
    assert run.is_done()
    shutil.rmtree(tmp_path / "out")
    config = json.loads((run.result_dir / "config.json").read_text())
    config["settings"] |= {"device": "cuda", "eval_every_frames": 3, "cuda_graphs": False}
    config["settings"] |= {"fresh_games": True, "distill": ["net2"]}
    (run.result_dir / "config.json").write_text(json.dumps(config))
    assert run_study(monkeypatch, args) == []


def test_a_setting_that_one_side_lacks_counts_as_off() -> None:
    planned = flat(parse_arguments([]))
    for off in (0, 0.0, False, None, ""):
        assert result_differences({**planned, "new": off}, planned) == []
        assert result_differences(planned, {**planned, "new": off}) == []
    for on in (1, 0.5, True, "yes"):
        assert result_differences({**planned, "new": on}, planned)
        assert result_differences(planned, {**planned, "new": on})
    # Where both have it, nothing is not off.
    assert result_differences({**planned, "beta": None}, {**planned, "beta": 0.0})


@pytest.mark.parametrize(
    ("agent", "recorded"),
    [
        ("ebu", set()),
        ("double_dqn", set()),
        ("nstep", {"n_step"}),
        ("prioritized", {"priority_exponent", "importance_exponent", "importance_updates"}),
    ],
)
def test_a_result_from_before_agents_could_be_combined_is_of_the_same_method(
    agent: str, recorded: set[str]
) -> None:
    planned = flat(parse_arguments(["--agent", agent]))
    later = {"prioritized", "double", "n_step", "priority_exponent"}
    later |= {"importance_exponent", "importance_updates", "shift_pixels", "intensity"}
    later |= {"quantiles", "target_average", "reset_updates", "weight_decay", "average_acts"}
    later |= {"gamma_start", "n_step_start", "beta_start", "anneal_updates", "noisy", "cuda_graphs"}
    old = {name: value for name, value in planned.items() if name not in later - recorded}
    assert result_differences(old, planned) == []
    assert settings_digest(old) == settings_digest(planned)
    other = {**planned, "prioritized": not planned["prioritized"]}
    assert result_differences(old, other)


def test_a_result_is_scored_in_the_games_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, (run,) = study_in(tmp_path, episodes=5)
    run_dir = write_planned(run, 1.0)
    (task,) = run_study(monkeypatch, args)
    assert task.evaluate[-2:] == ("--episodes", "5")
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation(2.0, games=5)))
    assert run_study(monkeypatch, args) == []
    shutil.rmtree(tmp_path / "out")
    assert run_study(monkeypatch, args) == []
    args, _ = study_in(tmp_path)
    with pytest.raises(UsageError, match="games were 5, are 30"):
        run_study(monkeypatch, args)


def test_runs_trained_without_a_study_are_collected_by_their_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    args, runs = study_in(
        *(tmp_path,), variants=VARIANTS, collect=(elsewhere,), collect_commit="abc", jobs=0
    )
    write_run(elsewhere, score=5.0, name="one", **as_recorded(runs[1]))
    write_run(elsewhere, score=None, name="two", **as_recorded(runs[2]))
    write_run(elsewhere, score=1.0, name="three", **as_recorded(runs[0], beta=0.3))
    Monitor(elsewhere / "one").close()
    assert run_study(monkeypatch, args) == []
    said = capsys.readouterr().err
    assert f"{elsewhere / 'one'}: collected as {runs[1].result_dir}" in said
    assert f"{elsewhere / 'two'}: not collected, it has no score" in said
    assert f"{elsewhere / 'three'}: not collected" in said
    assert "beta was 0.3, is 0.5" in said
    assert f"missing: {runs[0].name}, {runs[2].name}" in said
    assert [run.is_done() for run in runs] == [False, True, False]
    assert runs[1].result_dir is not None
    provenance = provenance_of(runs[1].result_dir)
    assert provenance["commit"] == "abc"
    assert provenance["hardware"]
    assert provenance["train_seconds"] is not None
    # Collected once.
    assert run_study(monkeypatch, args) == []
    assert "collected as" not in capsys.readouterr().err


def test_of_two_runs_of_one_cell_the_second_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    args, (run,) = study_in(tmp_path, collect=(elsewhere,), jobs=0)
    for name in ("one", "two"):
        write_run(elsewhere, score=5.0, name=name, **as_recorded(run))
    one, two = elsewhere / "one", elsewhere / "two"
    run_study(monkeypatch, args)
    said = capsys.readouterr().err
    assert f"{one}: collected as {run.result_dir}" in said
    assert f"{two}: not collected, {one} is collected as {run.result_dir}" in said
    run_study(monkeypatch, args)
    said = capsys.readouterr().err
    for path in (one, two):
        assert f"{path}: not collected, {run.result_dir} is there already" in said


def test_a_run_without_a_score_names_the_command_that_scores_it(tmp_path: Path) -> None:
    for game, end in (("pong", ""), ("a_module:Own-v0", " --trust-env")):
        run_dir = write_run(tmp_path, game, "ebu", 0, None, name="run" + end[:3])
        with pytest.raises(EbuError, match=rf"evaluate\.py \S+/run.*{end}$") as error:
            write_result(run_dir, tmp_path / "result", 30)
        assert ("--trust-env" in str(error.value)) == bool(end)


@pytest.mark.parametrize("earlier", ["collected", "played", "committed", "nothing"])
def test_runs_of_several_precisions_are_not_collected(
    earlier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    options: dict[str, Any] = {"seeds": 3, "collect": (elsewhere,), "jobs": 0}
    args, runs = study_in(tmp_path, "--precision", "auto", **options)
    half = as_recorded(runs[1], precision="bfloat16")
    write_run(elsewhere, score=6.0, name="half", **half)
    single = as_recorded(runs[0], precision="float32")
    if earlier == "collected":
        write_run(elsewhere, score=5.0, name="also", **single)
    elif earlier == "played":
        write_planned(runs[0], 5.0, precision="float32")
    elif earlier == "committed":
        assert runs[0].result_dir is not None
        write_result(write_run(tmp_path, score=5.0, **single), runs[0].result_dir, 30)
    before = sorted(path for path in tmp_path.rglob("*") if path.name == "config.json")
    if earlier != "nothing":
        with pytest.raises(UsageError, match=r"(half|also) in .*: add -- --precision "):
            run_study(monkeypatch, args)
        assert before == sorted(path for path in tmp_path.rglob("*") if path.name == "config.json")
        assert not (tmp_path / "results" / "results.csv").exists()
        # Named, it leaves out what is in another.
        args, runs = study_in(tmp_path, "--precision", "float32", **options)
    run_study(monkeypatch, args)
    assert [run.is_done() for run in runs] == [earlier != "nothing", earlier == "nothing", False]


def test_a_table_of_two_precisions_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, runs = study_in(tmp_path, "--precision", "auto", seeds=3, jobs=0)
    for run, precision in zip(runs, ("float32", "bfloat16"), strict=False):
        write_planned(run, 5.0, precision=precision)
    with pytest.raises(UsageError, match=r"has runs in bfloat16 and float32: .* move those of one"):
        run_study(monkeypatch, args)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["lock"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this machine one with or without instructions for bfloat16."""

    def make(has_bfloat16: bool) -> None:
        monkeypatch.setattr(machine_module, "has_bfloat16", lambda device: has_bfloat16)

    return make


def precisions(tasks: Sequence[Task]) -> set[str]:
    return {parse_arguments(task.train[2:]).precision for task in tasks}


def test_one_study_at_a_time_fills_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag in ("out", "results"):
        args, _ = study_in(tmp_path)
        with (
            acquire_lock(tmp_path / flag, f"--{flag}", "busy"),
            pytest.raises(UsageError, match=rf"another study .*/{flag}: .* another --{flag}$"),
        ):
            run_study(monkeypatch, args)
    # Results may lie next to the runs.
    same, _ = study_in(tmp_path, results=tmp_path / "out" / ".." / "out")
    assert len(run_study(monkeypatch, same)) == 1


def test_results_that_a_study_writes_do_not_make_its_code_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, program = tmp_path / "docs" / "results" / "results.csv", tmp_path / "train.py"
    table.parent.mkdir(parents=True)
    table.write_text("first")
    program.write_text("first")
    author = ("-c", "user.name=name", "-c", "user.email=name@example.org")
    for args in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", tmp_path, *args], check=True)
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    commit = code_version()["commit"]
    assert commit
    table.write_text("second")
    assert code_version()["commit"] == commit
    program.write_text("second")
    assert code_version()["commit"] == f"{commit}-dirty"


@pytest.mark.parametrize("results", [False, True])
@pytest.mark.parametrize(("was", "other"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_table_continues_in_its_precision_or_asks(
    was: str,
    other: str,
    results: bool,
    machine: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(was == "bfloat16")
    args, runs = study_in(tmp_path, "--precision", "auto", seeds=2)
    assert precisions(run_study(monkeypatch, args)) == {was}
    write_planned(runs[0], 1.0 if results else None, precision=was)
    assert precisions(run_study(monkeypatch, args)) == {was}
    if results:
        shutil.rmtree(tmp_path / "out")
    machine(was != "bfloat16")
    with pytest.raises(UsageError, match=f"is in {was}.*add -- --precision {was}"):
        run_study(monkeypatch, args)
    # To name it is to confirm it.
    named, _ = study_in(tmp_path, "--precision", was, seeds=2)
    assert precisions(run_study(monkeypatch, named)) == {was}
    for options, words in (({"seeds": 2}, f"was {was}, is {other}"), ({"seed_list": (5,)}, was)):
        named, _ = study_in(tmp_path, "--precision", other, **options)
        with pytest.raises(UsageError, match=words):
            run_study(monkeypatch, named)


def test_variants_do_not_mix_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args, _ = study_in(tmp_path, variants=("base:", "half: --precision bfloat16"))
    with pytest.raises(UsageError, match="a table has one"):
        run_study(monkeypatch, args)
