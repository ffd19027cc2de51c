"""Several teachers as one: whose policy it is, what it is blind to, who may be a member."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.distillation import pipeline as pipelines
from agents.distillation.collect import collect
from agents.distillation.experimental import ensembles
from agents.distillation.experimental.ensembles import (
    MeanPolicy,
    check,
    check_members,
    join_teachers,
    learners_of,
)
from agents.distillation.pipeline import rng_of
from agents.distillation.settings import StudentSpec
from agents.distillation.teachers import Teacher, load_teachers, median_gap
from agents.distillation.training import train_student
from agents.trained import load_agent
from ebu.errors import UsageError
from ebu.run.checkpoint import load_latest, save_checkpoint
from ebu.run.directory import write_config
from tests.agents.distillation.small_pipelines import (
    SIDE,
    STACK,
    config_with,
    pipeline_in,
    teacher_of,
)
from tests.made_up import CPU


class Fixed(nn.Module):
    """A member with the same outputs in every state."""

    def __init__(self, outputs: list[float]) -> None:
        super().__init__()
        self.outputs = torch.tensor(outputs)

    def forward(self, states: Tensor) -> Tensor:
        return self.outputs.expand(len(states), -1)


STATES = torch.zeros(2, STACK, SIDE, SIDE, dtype=torch.uint8)


def test_the_mean_of_policies_by_hand() -> None:
    # Softened by 2 and by 10: odds of 1 : 3 and of 9 : 1, whatever is added to a member's values.
    members = [[100.0, 100 + 2 * math.log(3)], [10 * math.log(9), 0.0]]
    outputs = MeanPolicy([Fixed(member) for member in members], [2.0, 10.0])(STATES)
    expected = torch.tensor([(0.25 + 0.9) / 2, (0.75 + 0.1) / 2]).expand(2, 2)
    torch.testing.assert_close(torch.softmax(outputs, dim=1), expected, atol=1e-5, rtol=0)
    # What no member would do has a logarithm, too.
    outputs = MeanPolicy([Fixed([0.0, 1.0]), Fixed([0.0, 2.0])], [1e-3, 1e-3])(STATES)
    assert outputs.isfinite().all()


# --- the pipeline --------------------------------------------------------------------------


def test_each_member_has_the_temperature_of_its_own_play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensembles, "PROBE_STATES", 80)
    members = [Teacher(teacher_of(seed), tmp_path / str(seed)) for seed in range(2)]
    pipeline = pipeline_in(tmp_path / "out", members[0].agent)
    joined = join_teachers(pipeline, members)
    teacher = joined.teacher
    assert (teacher.outputs, joined.config.temperature, teacher.frames) == ("logits", "auto", 200)
    record = json.loads((tmp_path / "out" / "ensemble.json").read_text())["members"]
    assert [member["member"] for member in record] == [str(member.run_dir) for member in members]
    temperatures = [member["temperature"] for member in record]
    for number, member in enumerate(members):
        rng = rng_of(pipeline.config.seed, ensembles.PROBE, number)
        env = pipeline.evaluator.new_env(ensembles.PROBE_GAMES, int(rng.integers(2**31)))
        own = collect(env, member.agent.outputs_of, count=80, rng=rng)
        assert own is not None
        assert temperatures[number] == record[number]["gap"] == median_gap(own.outputs)
    states = joined.collect_states(StudentSpec("2-2-2/4", {"kl": 1.0}, 0))
    described = joined.describe_teacher(states, joined.baselines())
    assert described["run_dir"] == ", ".join(member.name for member in members)
    assert described["network"] == "2 × 3-3-3/6"
    # Labels are the mean policy at temperature 1.
    supervision = joined.supervise(states, {"kl": 1.0})
    assert supervision.temperature == 1.0
    stacks = states.stacks(torch.arange(5))
    policies = [
        torch.softmax(member.agent.outputs_of(stacks) / tau, dim=1)
        for member, tau in zip(members, temperatures, strict=True)
    ]
    torch.testing.assert_close(
        torch.softmax(states.outputs[:5], dim=1), torch.stack(policies).mean(dim=0)
    )

    # A temperature that is set is each member's.
    rusu = replace(pipeline, config=replace(pipeline.config, temperature="rusu", out=tmp_path))
    network = join_teachers(rusu, members).teacher.network
    assert isinstance(network, MeanPolicy)
    assert network.temperatures.tolist() == pytest.approx([0.01] * 2)

    # In a second call nothing is played again; and a student can be trained and scored.
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr(pipelines, "collect", refuse)
    again = join_teachers(pipeline, members)
    assert torch.equal(again.teacher.outputs_of(stacks), joined.teacher.outputs_of(stacks))
    spec = StudentSpec("2-2-2/4", {"kl": 1.0}, 0)
    record_of = train_student(again, spec, supervision)
    assert record_of["held_out"]["states"] == len(states.held_out)
    assert load_agent(again.directory(spec)).outputs == "logits"


# --- members --------------------------------------------------------------------------------


def adaptive_run(run_dir: Path, **settings: Any) -> Path:
    """A run of adaptive EBU: three learners, of which the second plays."""
    singles = [dict(teacher_of(seed).network.state_dict()) for seed in range(3)]
    stacked = {f"networks.{name}": torch.stack([s[name] for s in singles]) for name in singles[0]}
    state = {"agent": {"learner": {"online": stacked}, "best": 1}, "frames": 100}
    save_checkpoint(run_dir / "checkpoints", "frames-000000000100", state)
    config = teacher_of(0, agent="adaptive_ebu", **{"learners": 3, **settings}).config
    write_config(run_dir, config)
    return run_dir


def games_of(run_dirs: list[Path], *, all_learners: bool = True) -> dict[str, list[Teacher]]:
    config = replace(config_with(all_learners=all_learners), run_dirs=tuple(run_dirs))
    return load_teachers(config, CPU, lambda run_dir: load_agent(run_dir, device=CPU))


def test_the_learners_of_adaptive_ebu_are_members(tmp_path: Path) -> None:
    run_dir = adaptive_run(tmp_path / "run")
    members = learners_of(run_dir, "final", CPU)
    assert [member.name for member in members] == [f"{run_dir} learner {k}" for k in range(3)]
    assert [m.name for m in games_of([run_dir])["pictures"]] == [m.name for m in members]
    stacks = torch.randint(256, (4, STACK, SIDE, SIDE), dtype=torch.uint8)
    for seed, member in enumerate(members):
        assert torch.equal(member.agent.outputs_of(stacks), teacher_of(seed).outputs_of(stacks))
    assert torch.equal(load_agent(run_dir).outputs_of(stacks), members[1].agent.outputs_of(stacks))


def test_runs_of_one_game_are_together_and_no_run_is_named_twice(tmp_path: Path) -> None:
    runs = [adaptive_run(tmp_path / name) for name in ("one", "other")]
    runs.append(adaptive_run(tmp_path / "third", game="pong"))
    games = games_of(runs, all_learners=False)
    assert {game: [m.run_dir for m in members] for game, members in games.items()} == {
        "pictures": runs[:2],
        "pong": runs[2:],
    }
    with pytest.raises(UsageError, match="name each run once"):
        games_of([runs[0], tmp_path / "third" / ".." / "one"])


@pytest.mark.parametrize("settings", [{"learners": 1}, {"agent": "ebu"}])
def test_an_ensemble_of_one_learner_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    adaptive_run(tmp_path / "run")
    config = teacher_of(0).config
    config["settings"] |= {"agent": "adaptive_ebu", **settings}
    if settings.get("agent") == "ebu":
        checkpoint = load_latest(tmp_path / "run" / "checkpoints")
        assert checkpoint is not None
        state = {"agent": {"learner": {"online": dict(teacher_of(0).network.state_dict())}}}
        save_checkpoint(tmp_path / "run" / "checkpoints", checkpoint.name, {**state, "frames": 100})
    write_config(tmp_path / "run", config)
    with pytest.raises(UsageError, match=r"^--all-learners: .* has one learner: name a run"):
        learners_of(tmp_path / "run", "final", CPU)


def test_members_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    first = Teacher(teacher_of(0), tmp_path / "first")
    for part, key, value in (
        ("settings", "protocol", "machado"),
        ("settings", "game", "pong"),
        ("environment", "num_actions", 6),
        ("environment", "frame_shape", [84, 84]),
    ):
        agent = teacher_of(1)
        agent.config[part][key] = value
        with pytest.raises(
            UsageError, match=f"^{key} of .*first is .* of .*other .*: members of an ensemble"
        ):
            check_members([first, Teacher(agent, tmp_path / "other")])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hint_dense": 0.1}, "hint_dense compares layers .*: leave --hint-dense out"),
        ({"students": ("net2", "teacher@half")}, "--students teacher@half starts .* an ensemble"),
        ({"loss": "regression"}, "an ensemble is a policy, which has no values"),
        ({"loss": "hinton", "outputs": "values"}, "an ensemble is a policy, which has no values"),
    ],
)
def test_what_an_ensemble_cannot_teach_is_refused(
    changes: dict[str, Any], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    good = config_with(students=("net2", "teacher"))
    check(good, good.plan())
    config = replace(good, **changes)
    with pytest.raises(UsageError, match=f"^{complaint}"):
        check(config, config.plan())
