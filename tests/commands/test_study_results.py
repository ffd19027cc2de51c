"""Committed results: what they hold, that a study takes them as done, and one precision in each."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ebu.commands import report, study
from ebu.commands.presets import DEFAULT
from ebu.commands.reporting.runs import learning_curve, read_run, settings_digest
from ebu.commands.table.committed import MOST_LINES, result_differences, write_result
from ebu.commands.table.jobs import Task
from ebu.commands.table.plan import PlannedRun, StudyConfig, plan
from ebu.commands.table.provenance import provenance_of
from ebu.commands.train_arguments import parse_arguments
from ebu.errors import UsageError
from ebu.run import machine as machine_module
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
    first = run_study(monkeypatch, args)
    assert [task.name for task in first] == [run.name for run in runs[4:]]
    before = (tmp_path / "results" / "results.csv").read_text()
    shutil.rmtree(tmp_path / "out")
    shutil.move(tmp_path / "results", tmp_path / "elsewhere")
    args, runs = study_in(
        tmp_path, variants=VARIANTS, seeds=2, out=tmp_path / "new", results=tmp_path / "elsewhere"
    )
    again = run_study(monkeypatch, args)
    assert [task.name for task in again] == [run.name for run in runs[4:]]
    assert (tmp_path / "elsewhere" / "results.csv").read_text() == before
    assert len(before.splitlines()) == 1 + 4
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "elsewhere")])
    report.main()
    assert "| pong | ebu" in capsys.readouterr().out


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
    ("other", "complaint"),
    [
        ({"beta": 0.7}, "beta was 0.7, is 0.5"),
        ({"frames": 2 * FRAMES, "played": 2 * FRAMES}, f"frames was {2 * FRAMES}, is {FRAMES}"),
        ({"seed": 3}, "seed was 3, is 0"),
        ({"precision": "bfloat16"}, "precision was bfloat16, is float32"),
        ({"distances": 4}, "distances was 4, is None"),
        ({"train_noops": None}, "train_noops was None, is 30"),
    ],
)
def test_a_result_of_other_settings_is_refused_in_one_line_before_anything_is_played(
    other: dict[str, Any], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, (run,) = study_in(tmp_path)
    assert run.result_dir is not None
    run_dir = write_planned(run, 1.0, **other)
    write_result(run_dir, run.result_dir, run.games)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UsageError) as refusal:
        run_study(monkeypatch, args)
    assert complaint in str(refusal.value)
    assert str(run.result_dir) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_changes_no_result_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args, (run,) = study_in(tmp_path)
    assert run.result_dir is not None
    machine = {"threads": 7, "device": "cuda", "checkpoint_minutes": 1.0, "eval_every_frames": 3}
    write_result(write_planned(run, 1.0, **machine), run.result_dir, run.games)
    shutil.rmtree(tmp_path / "out")
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
    later |= {"importance_exponent", "importance_updates"}
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


def test_half_a_result_is_none_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, (run,) = study_in(tmp_path)
    assert run.result_dir is not None
    write_result(write_planned(run), run.result_dir, run.games)
    (run.result_dir / "config.json").unlink()
    assert run_study(monkeypatch, args) == []
    assert run.is_done()


def test_runs_trained_without_a_study_are_collected_by_their_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    args, runs = study_in(
        *(tmp_path,), variants=VARIANTS, collect=(elsewhere,), collect_commit="abc", jobs=0
    )
    for name, run, score, other in (
        ("one", runs[1], 5.0, {}),
        ("two", runs[2], None, {}),
        ("three", runs[0], 1.0, {"beta": 0.3}),
    ):
        write_run(elsewhere, score=score, name=name, **as_recorded(run, **other))
    monitor = Monitor(elsewhere / "one")
    monitor.close()
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


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this machine one with or without instructions for bfloat16."""

    def make(has_bfloat16: bool) -> None:
        monkeypatch.setattr(machine_module, "has_bfloat16", lambda device: has_bfloat16)

    return make


@pytest.mark.parametrize("has", [False, True])
def test_auto_is_settled_once_for_the_whole_table(
    has: bool, machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(has)
    args, _ = study_in(tmp_path, "--precision", "auto", seeds=2)
    for task in run_study(monkeypatch, args):
        assert parse_arguments(task.train[2:]).precision == ("bfloat16" if has else "float32")


@pytest.mark.parametrize("results", [False, True])
@pytest.mark.parametrize("was", ["float32", "bfloat16"])
def test_a_table_goes_on_in_its_precision_or_asks(
    was: str, results: bool, machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, runs = study_in(tmp_path, "--precision", "auto", seeds=2)
    write_planned(runs[0], 1.0 if results else None, precision=was)
    if results:
        machine(was == "bfloat16")
        run_study(monkeypatch, args)
        shutil.rmtree(tmp_path / "out")
    other = {"float32": "bfloat16", "bfloat16": "float32"}[was]
    for same in (True, False):
        machine(same == (was == "bfloat16"))
        if same:
            tasks = run_study(monkeypatch, args)
            assert {parse_arguments(task.train[2:]).precision for task in tasks} == {was}
        else:
            with pytest.raises(UsageError, match=f"is in {was}.*add -- --precision {was}"):
                run_study(monkeypatch, args)
        # To name it is to confirm it.
        named, _ = study_in(tmp_path, "--precision", was, seeds=2)
        tasks = run_study(monkeypatch, named)
        assert {parse_arguments(task.train[2:]).precision for task in tasks} == {was}
        named, _ = study_in(tmp_path, "--precision", other, seeds=2)
        with pytest.raises(UsageError, match=f"precision was {was}, is {other}"):
            run_study(monkeypatch, named)
        named, _ = study_in(tmp_path, "--precision", other, seed_list=(5,))
        with pytest.raises(UsageError, match=f"is in {was}"):
            run_study(monkeypatch, named)


def test_variants_do_not_mix_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args, _ = study_in(tmp_path, variants=("base:", "half: --precision bfloat16"))
    with pytest.raises(UsageError, match="a table has one"):
        run_study(monkeypatch, args)
