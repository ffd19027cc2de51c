"""`distill.py` on real teachers: what it leaves, what it finds again, what it refuses."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ebu.commands.distilling.from_scratch
from agents.distillation import training
from agents.distillation.dataset import load_states
from agents.distillation.deploy.rounded import RoundedStudent
from agents.distillation.experimental.synthetic import noise
from agents.distillation.settings import require_export
from agents.distillation.students import Student
from ebu.commands import distill, evaluation
from ebu.commands.distilling.from_scratch import plan_runs
from ebu.commands.evaluate_arguments import EvaluateConfig
from ebu.commands.studying.player import Task
from ebu.commands.train_arguments import parse_arguments
from ebu.commands.trainer import build_trainer
from ebu.errors import UsageError
from ebu.run.cli import parse
from ebu.run.directory import read_config
from ebu.run.settings import flat
from tests.distillations import FLAGS, NUMBERS, config_of, copy_as_other_run, distilled, train

ROOT = Path(__file__).parents[2]


def command(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["distill.py", *map(str, args)])
    return distill.main()


# --- one command ----------------------------------------------------------------------------


def test_the_exit_code_says_whether_enough_is_retained(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = distilled(teacher, tmp_path)
    mean, interval = 0.4, [0.2, 0.6]
    monkeypatch.setattr(distill, "retention", lambda *_: mean)
    monkeypatch.setattr(distill, "retention_interval", lambda *_: interval)

    def code(*flags: object) -> int:
        config = config_of(teacher, tmp_path, *flags)
        return distill.verdict(*outcome._replace(config=config))

    assert code() == 0
    codes = [code("--min-retention", least) for least in (0.1, 0.3, 0.5)]
    assert codes == [0, 1, 1]
    on_request = ("--retention-test", "mean")
    codes = [code("--min-retention", least, *on_request) for least in (0.1, 0.3, 0.5)]
    assert codes == [0, 0, 1]
    # Where the teacher itself gains nothing, nothing is retained.
    monkeypatch.setattr(distill, "retention", lambda *_: None)
    monkeypatch.setattr(distill, "retention_interval", lambda *_: None)
    assert [code("--min-retention", 0, *flags) for flags in ((), on_request)] == [1, 1]


def test_the_smallest_is_the_last_of_a_row_that_all_retain_enough(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shares = {"a": 0.99, "b": 0.97, "c": 0.5, "d": 0.98}
    best: list[Any] = [
        {"student": name, "parameters": 40 - 10 * k} for k, name in enumerate(shares)
    ]
    monkeypatch.setattr(distill, "tested_retention", lambda c, t, s: shares[s["student"]])
    config, of = config_of(teacher, Path("out"), "--smallest"), {"parameters": 100}
    # d is smaller, but c before it did not retain enough.
    assert distill.announce_smallest(config, of, best[::-1]) == 0  # type: ignore[arg-type]
    assert "smallest: b, 30 parameters, 30.0% of the teacher's" in capsys.readouterr().out
    shares["a"] = float("nan")
    assert distill.announce_smallest(config, of, best) == 1  # type: ignore[arg-type]


def test_the_smallest_of_students_that_were_trained_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    named = "--game CartPole-v1 --policy-outputs values --students 8-8-8/16 1-1-1/1"
    few = "--games 5 --states 2000 --num-envs 4 --rounds 1 --seeds 1 --baselines --no-export"
    trained = "--updates 400 --batch-size 64 --learning-rate 0.01 --threads 1 --device cpu"
    words = ("tests.commands.test_policies:balance", *f"{named} {few} {trained}".split())
    out = ("--out", tmp_path / "out")
    code = command(monkeypatch, *words, *out, "--smallest")
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    low = {row["name"]: row["retention_95"][0] for row in rows if row["kind"] == "student"}
    # The teacher balances to the end of each game, and so does a network of this size.
    assert low["8-8-8/16"] > 0.95
    found = "1-1-1/1" if low["1-1-1/1"] >= 0.95 else "8-8-8/16"
    assert (code, f"smallest: {found}, " in printed) == (0, True)
    # Nothing is trained again to ask for more than a share can be.
    asked = ("--smallest", "--min-retention", 1.01)
    assert command(monkeypatch, *words, *out, *asked) == 1
    assert "not even the largest student retains 101%" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["noise", "mixed", "replay"])
def test_states_that_were_not_played_for_it(
    source: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.distillation.experimental.synthetic.MIXED_FROM", 100)
    methods = ("regression", "kl+hint=0.1", "kl+distance=1")
    flags = ("--states-from", source, "--seeds", 1, "--baselines", *methods)
    outcome = distilled(teacher, tmp_path, *flags)
    assert [(s["method"], s["outputs"]) for s in outcome.students] == [
        ("kl", "logits"),
        ("regression", "values"),
        ("kl+hint0.1", "logits"),
        ("kl+distance1", "logits"),
    ]
    states = outcome.teacher["states"]
    assert states["source"] == source
    assert states["train"] + states["held_out"] == 90
    assert outcome.students[0]["held_out"]["states"] == states["held_out"]


def test_states_of_another_distillation(teacher: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    distilled(teacher, one, "--baselines", "--seeds", 1)
    flags = ("--baselines", "--seeds", 1, "--states-from", one / "states")
    outcome = distilled(teacher, other, *flags)
    assert outcome.teacher["states"]["source"] == str(one / "states")
    rounds = [load_states(one / "states" / f"round-{number}") for number in range(2)]
    found = load_states(other / "states" / "round-0")
    assert torch.equal(found.frames, torch.cat([part.frames for part in rounds]))
    assert torch.equal(found.held_out_episodes, torch.cat([s.held_out_episodes for s in rounds]))
    torch.testing.assert_close(found.outputs, torch.cat([part.outputs for part in rounds]))


def test_generated_states_are_held_out_and_recorded_as_such(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked = {}

    def generate(agent: Any, **how: Any) -> Any:
        asked.update(how)
        rng, shape = np.random.default_rng(0), (84, 84)
        return noise(how["count"], frame_shape=shape, stack=4, label=agent.outputs_of, rng=rng)

    monkeypatch.setattr("agents.distillation.experimental.kegnet.generate", generate)
    flags = ("--states-from", "kegnet", "--baselines", "--seeds", 1, "--kegnet-samples", 65)
    outcome = distilled(teacher, tmp_path, *flags)
    assert outcome.teacher["states"]["source"] == "kegnet"
    assert (asked["count"], asked["seed"], asked["directory"]) == (90, 0, tmp_path / "kegnet")
    # Two minibatches of 64.
    assert asked["config"].updates == 2
    assert "experimental" in capsys.readouterr().err


def test_students_that_learn_through_the_rounding_of_their_int8_files(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same weights and minibatches for both methods: nothing else than rounding differs.
    monkeypatch.setattr(training, "rng_of_student", lambda spec: np.random.default_rng(spec.seed))

    def losses(out: Path) -> list[float]:
        flags = ("--int8-aware", "--baselines", "kl", "--seeds", 1)
        students = distilled(teacher, out, *flags).students
        assert [student["method"] for student in students] == ["kl-int8", "kl"]
        return [student["held_out"]["loss"] for student in students]

    rounded, plain = losses(tmp_path / "rounded")
    assert rounded != plain
    monkeypatch.setattr(RoundedStudent, "forward", Student.forward)
    assert losses(tmp_path / "exact") == [plain, plain]


def test_int8_files_of_students_with_and_without_the_rounding_are_scored(
    teacher: Path, tmp_path: Path
) -> None:
    methods = ("--int8-aware", "--baselines", "kl", "hard", "--baseline-seeds", 2)
    outcome = distilled(teacher, tmp_path, *methods, "--export")
    report = json.loads((tmp_path / "report.json").read_text())
    rows = [row for row in report["rows"] if row["kind"] == "int8" and row["name"] != "teacher"]
    assert [row["method"] for row in rows] == ["kl-int8", "kl"]
    assert all(row["evaluation"]["games"] == 2 and row["chosen"] for row in rows)
    # What is asked of the students is still asked of those of the main method alone.
    assert [each["method"] for each in outcome.config.best_of(outcome.students)] == ["kl-int8"]


# --- training on games alone ----------------------------------------------------------------


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands of train.py and evaluate.py, carried out here; what was trained."""
    trained = []

    def run_tasks(
        tasks: list[Task], at_a_time: int, *, engine: Any, scored: Callable[[Task], str]
    ) -> tuple[list[str], None]:
        for task in tasks:
            trained.append(task.name)
            assert task.train[1].endswith("train.py")
            assert task.evaluate[1].endswith("evaluate.py")
            trainer = build_trainer(parse_arguments(task.train[2:]))
            try:
                assert trainer.run(task.frames)
            finally:
                trainer.close()
            evaluation.run(parse(EvaluateConfig, task.evaluate[2:], prog="", description=""))
            scored(task)
        return [], None

    monkeypatch.setattr(ebu.commands.distilling.from_scratch, "run_tasks", run_tasks)
    return trained


def test_a_students_network_trained_on_games_alone(
    teacher: Path, tmp_path: Path, in_this_process: list[str]
) -> None:
    flags = ("--baselines", "--seeds", 1)
    distilled(teacher, tmp_path, *flags)
    # It may be asked for later, and for longer.
    for frames in (100, 100, 160):
        outcome = distilled(teacher, tmp_path, *flags, "--from-scratch", frames)
    name = "2-2-2_4-from-scratch-seed0"
    assert in_this_process == [name] * 2
    record = outcome.students[-1]
    assert (record["method"], record["network"], record["outputs"]) == (
        *("from-scratch", "2-2-2/4"),
        "values",
    )
    assert record["states"] == 160
    assert record["held_out"]["states"] == outcome.teacher["states"]["held_out"]
    for key in ("games", "epsilon", "protocol", "seed"):
        assert record["evaluation"][key] == outcome.teacher["evaluation"][key]
    # As the teacher was trained, but for what is the run's own.
    own = read_config(tmp_path / "students" / name)["settings"]
    teachers = read_config(teacher)["settings"]
    differing = {key for key in own if own[key] != teachers.get(key)}
    assert differing == {"run_dir", "network", "frames"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert ("baseline", "from-scratch") in {(row["kind"], row["method"]) for row in report["rows"]}


def test_a_baseline_starts_from_nothing_and_has_no_students(tmp_path: Path) -> None:
    flags = f"--game CartPole-v1 --beta 0.5 --init-from {tmp_path} --distill net3 --fresh-games"
    settings = flat(parse_arguments(flags.split()))
    config = config_of(tmp_path, tmp_path / "out", "--from-scratch", 100)
    (planned,) = plan_runs(config, {"2-2-2/4": "2-2-2/4"}, settings)
    trained = flat(parse_arguments(planned.flags))
    own = ("init_from", "distill", "fresh_games")
    assert [trained[name] for name in own] == [None, None, False]
    assert trained["beta"] == 0.5


def test_a_teacher_that_learnt_from_no_games_cannot_be_trained_alike(
    teacher: Path, tmp_path: Path
) -> None:
    distilled(teacher, tmp_path / "one", "--baselines", "--seeds", 1)
    student = tmp_path / "one" / "students" / "2-2-2_4-kl-seed0"
    with pytest.raises(UsageError, match=r"^--from-scratch trains as the teacher was trained"):
        distilled(student, tmp_path / "two", "--from-scratch", 100)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--students nett2", "unknown student 'nett2'.*net2"),
        ("--students net2 net2", "--students net2 net2: name each once"),
        ("--loss ql", "--loss ql: choose one of .*did you mean kl"),
        ("--baselines kl+hnt=1", "--baselines kl.hnt=1: hnt: choose one of .*did you mean hint"),
        ("--baselines kl+hint", "hint has no weight: write for instance kl.hint=0.1"),
        ("--baselines kl+hint=-1", "the weight of hint must be positive"),
        ("--baselines hard hard", "--baselines hard hard: name each once"),
        ("--baseline-seeds 0", "--baseline-seeds must be positive"),
        ("--states-from noize", "--states-from noize: choose one of .*did you mean noise"),
        ("--batch-size 1e12", "--batch-size must be at most"),
        ("--seeds 1e12", "--seeds must be at most"),
        ("--games 1e30", "--games: 1e30 is too large"),
        ("--states 5", "--states 5: 2 rounds in 3 games need at least 6"),
        ("--states-from noise --loss hinton --outputs values", "needs games that were played"),
        ("--states 900000000", r"--states 900000000 takes .* GB of memory"),
        ("--unshifted-labels", "says how to label shifted states: add --refine-labels"),
        ("--temperature cold", "--temperature cold: choose auto"),
        ("--device tpu", "--device tpu: choose one of"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    flags: str, said: str, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=said) as error:
        distilled(teacher, out, *flags.split())
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_another_setting_in_the_same_directory_is_named(
    teacher: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    said = "started with other settings: temperature was auto, is 0.5. .* choose another --out"
    with pytest.raises(UsageError, match=said):
        distilled(teacher, out, "--temperature", 0.5)
    with pytest.raises(UsageError, match=r"holds files that are not a run's: .*another directory"):
        distilled(teacher, whole / "scores")


def test_missing_packages_are_told_before_anything_is_played(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install .*\[export\]', or .* --no-export"):
        distilled(teacher, tmp_path / "out", "--export")
    assert not (tmp_path / "out").exists()
    # What has no such flag does not name it.
    with pytest.raises(UsageError, match=r"pip install .*\[export\]'$"):
        require_export()


@pytest.mark.parametrize(
    ("settings", "environment", "said"),
    [
        ({"game": "Breakout"}, {}, "trained on 3 actions, its game has here 4"),
        ({}, {"frame_dtype": "float32"}, "pixels of the type"),
        ({"game": "tests.envs.tiny:Nothing-v0"}, {}, "was trained on tests.envs.tiny:Nothing-v0: "),
    ],
)
def test_a_teacher_of_another_game_is_one_line(
    settings: dict[str, Any],
    environment: dict[str, Any],
    said: str,
    teacher: Path,
    tmp_path: Path,
) -> None:
    other = copy_as_other_run(
        teacher, tmp_path / "other", settings=settings, environment=environment
    )
    with pytest.raises(UsageError, match=said) as error:
        distilled(other, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_saved_states_must_be_of_the_teachers_game(
    teacher: Path, whole: Path, tmp_path: Path
) -> None:
    game = {"game": "tests.envs.tiny:TinyColour-v0"}
    other = copy_as_other_run(teacher, tmp_path / "other", settings=game)
    for directory, said in (
        (whole / "states", "are of tests.envs.tiny:TinyGrey-v0, the agent in .* name states of"),
        (tmp_path, "holds no states: name a directory that they were saved in"),
    ):
        with pytest.raises(UsageError, match=said) as error:
            distilled(other, tmp_path / "out", "--states-from", directory)
        assert "\n" not in str(error.value)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    # Found before anything is played.
    with pytest.raises(UsageError, match="holds no states"):
        distilled(other, tmp_path / "out", "--states-from", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_numbers_is_distilled(tmp_path: Path) -> None:
    run_dir = train(tmp_path / "numbers", f"--game {NUMBERS} --frames 60")
    outcome = distilled(run_dir, tmp_path / "out", "--baselines", "regression", "--seeds", 1)
    assert [student["method"] for student in outcome.students] == ["kl", "regression"]
    assert outcome.students[0]["parameters"] < (outcome.teacher["parameters"] or 0)
    with pytest.raises(UsageError, match="attention compares layers"):
        distilled(run_dir, tmp_path / "other", "--attention", 1)


def test_a_policy_has_no_values_to_teach(teacher: Path, whole: Path, tmp_path: Path) -> None:
    student = whole / "students" / "2-2-2_4-kl-seed0"
    with pytest.raises(UsageError, match="is a policy, which has no values to teach"):
        distilled(student, tmp_path / "out", "--loss", "regression")


def test_the_command_prints_the_chosen_and_where_the_report_is(
    teacher: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert command(monkeypatch, teacher, "--out", whole, *FLAGS) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("chosen: 2-2-2/4, kl, seed ")
    assert f"report: {whole / 'report.md'}" in printed.err
    assert f"--logdir {whole}" in printed.err
