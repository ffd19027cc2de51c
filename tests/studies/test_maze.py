"""The maze study: learners side by side, their targets by hand, the script end to end."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ebu.errors import EbuError, UsageError
from envs.maze import GOAL, ManyMazes, ManySteps, Maze, load_digits
from studies.maze.__main__ import main
from studies.maze.evaluation import best_length
from studies.maze.learners import METHODS, MazeLearners, MazeLearningConfig, Memory
from studies.maze.report import tables
from studies.maze.settings import Setting, StudyConfig, settings_of
from studies.maze.study import made_with, measure, read_result, run_setting, run_settings

STEPS = 1_100


def learners_of(
    methods: list[str], seeds: list[int], max_steps: int = 2_000, **settings: Any
) -> MazeLearners:
    return MazeLearners(
        dataclasses.replace(MazeLearningConfig(), **settings),
        [METHODS[method] for method in methods],
        seeds,
        images=load_digits().images.reshape(-1, 64),
        num_actions=4,
        max_steps=max_steps,
    )


def train(learners: MazeLearners, mazes: list[Maze], seeds: list[int], steps: int) -> None:
    env = ManyMazes(mazes, seeds, slip_probability=0.2)
    images = env.reset()
    for _ in range(steps):
        actions = learners.act(images)
        step = env.step(actions)
        learners.remember(images, actions, step)
        images = step.images


def with_one_episode(method: str, batch_size: int, *, terminated: bool) -> MazeLearners:
    """A learner whose target network says (1, 2, 5, 0) everywhere, and who knows one episode.

    Its actions are 0, 1, 3 and its rewards 0, −1, 10; γ is 0.5.
    """
    learners = learners_of([method], [0], batch_size=batch_size, gamma=0.5, reward_scale=1.0)
    with torch.no_grad():
        for weight in learners.target.parameters():
            weight.zero_()
        learners.target.biases[-1].copy_(torch.tensor([1.0, 2.0, 5.0, 0.0]))
    image = np.zeros((1, 2), dtype=np.int64)
    for step, (action, reward) in enumerate([(0, 0.0), (1, -1.0), (3, 10.0)]):
        over = np.array([step == 2])
        ended = (over & terminated, over & (not terminated))
        learners.remember(
            image, np.array([action]), ManySteps(np.array([reward]), *ended, image, image)
        )
    return learners


@pytest.mark.parametrize(
    ("terminated", "method", "targets"),
    [
        # y_3 = 10 always. y_2 = −1 + ½ max(5, β 10), y_1 = ½ max(5, β y_2 + (1 − β) 2).
        (True, "ebu-1", [2.5, 4.0, 10.0]),
        (True, "ebu-0.75", [2.5, 2.75, 10.0]),
        (True, "ebu-0.5", [2.5, 1.5, 10.0]),
        (True, "ebu-0", [2.5, 1.5, 10.0]),
        # The discounted return: ½ (−1 + ½ 10), −1 + ½ 10, 10.
        (True, "n-step", [2.0, 4.0, 10.0]),
        # A truncated episode bootstraps: y_3 = 10 + ½ 5.
        (False, "ebu-1", [2.625, 5.25, 12.5]),
        (False, "ebu-0.75", [2.5, 3.6875, 12.5]),
        (False, "n-step", [2.625, 5.25, 12.5]),
    ],
)
def test_an_episode_by_hand(terminated: bool, method: str, targets: list[float]) -> None:
    steps, drawn = with_one_episode(method, 3, terminated=terminated).draw_minibatches()
    assert steps.tolist() == [[0, 1, 2]]
    assert drawn.tolist() == [targets]


@pytest.mark.parametrize("method", ["n-step", "ebu-0", "ebu-0.5", "ebu-0.75", "ebu-1"])
@pytest.mark.parametrize("terminated", [True, False])
def test_an_episode_that_does_not_fit_is_continued(method: str, terminated: bool) -> None:
    _, whole = with_one_episode(method, 3, terminated=terminated).draw_minibatches()
    for size in (1, 2, 4, 5):
        learners = with_one_episode(method, size, terminated=terminated)
        trained = np.zeros(3, dtype=int)
        for _ in range(3):
            steps, targets = learners.draw_minibatches()
            assert targets.tolist() == [[float(whole[0, step]) for step in steps[0]]]
            trained += np.bincount(steps[0], minlength=3)
        # Whole episodes, from the end backward.
        assert trained.sum() == 3 * size
        assert sorted(trained, reverse=True)[0] - min(trained) <= 1
        assert (np.diff(trained) >= 0).all()


def test_learners_side_by_side_learn_what_each_learns_alone() -> None:
    mazes = [Maze.draw(0.2, index) for index in range(3)]
    methods, seeds, steps = ["one-step", "n-step", "ebu-0.5"], [1, 2, 3], 1_300
    together = learners_of(methods, seeds)
    train(together, mazes, seeds, steps)
    assert together.updates == 7
    for i, method in enumerate(methods):
        alone = learners_of([method], seeds[i : i + 1])
        start = [weight.detach().clone() for weight in alone.online.parameters()]
        train(alone, mazes[i : i + 1], seeds[i : i + 1], steps)
        for first, ours, its in zip(
            start, together.online.parameters(), alone.online.parameters(), strict=True
        ):
            assert (its - first).abs().max() > 1e-3
            torch.testing.assert_close(ours[i], its[0], rtol=1e-4, atol=1e-5)


def test_weights_are_copied_to_the_target_networks_on_time() -> None:
    maze = [Maze.draw(0.2, 0)]
    learners = learners_of(["ebu-1"], [0], target_sync_steps=1_100)
    for steps, same in ((1_099, False), (1, True)):
        train(learners, maze, [0], steps)
        online, target = learners.online.weights[0], learners.target.weights[0]
        assert bool((online == target).all()) is same


def test_memory_draws_from_its_newest_transitions_only() -> None:
    memory = Memory(max_steps=61, num_learners=1, size=30)
    image, none = np.zeros((1, 2)), np.array([False])
    for step in range(61):
        over = np.array([step % 5 == 4])
        ended = (over & (step % 2 == 0), over & (step % 2 == 1))
        memory.append(image, none, ManySteps(none, *ended, image, image), 1.0)
    rng = np.random.default_rng(0)
    assert set(memory.draw_transitions(rng, 2_000).tolist()) == set(range(31, 61))
    drawn = {memory.draw_episode(0, rng) for _ in range(500)}
    assert drawn == {(start, 5) for start in range(35, 60, 5)}


def test_the_best_policy_needs_the_shortest_path_or_what_slips_cost() -> None:
    for seed in range(3):
        maze = Maze.draw(0.4, seed)
        assert best_length(maze, 0.0, 0.0) == pytest.approx(maze.shortest_path)
        for slip, epsilon in ((0.2, 0.0), (0.0, 0.25), (0.2, 0.25)):
            # Value iteration, cell by cell.
            steps = np.zeros(100)
            for _ in range(2_000):
                straight = steps[maze.next_cells]
                turned = straight[:, [1, 2, 3, 0]] + straight[:, [3, 0, 1, 2]]
                moves = 1 + (1 - slip) * straight + slip / 2 * turned
                steps = (1 - epsilon) * moves.min(axis=1) + epsilon * moves.mean(axis=1)
                steps[GOAL] = 0.0
            assert best_length(maze, slip, epsilon) == pytest.approx(steps[0], rel=1e-6)


@pytest.mark.slow
def test_a_study_resumes_and_ends_with_tables_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = StudyConfig(tmp_path, steps=STEPS, mazes=2, densities=(30,))
    deterministic, stochastic = settings_of(config)
    # As after a study that was interrupted in its second setting, which it then does in a process
    # of its own.
    run_setting(deterministic, tmp_path)
    kept = (tmp_path / f"{deterministic.name}.json").stat().st_mtime_ns
    main(f"--out {tmp_path} --steps {STEPS} --mazes 2 --densities 30 --processes 1".split())
    assert (tmp_path / f"{deterministic.name}.json").stat().st_mtime_ns == kept
    assert {path.name for path in tmp_path.iterdir()} == {
        "density-30-deterministic.json",
        "density-30-stochastic.json",
        "tables.md",
        "relative_length.png",
    }
    text = (tmp_path / "tables.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    rows = [line for line in text.splitlines() if line.startswith("| 30 %")]
    assert [row.split(" | ")[1] for row in rows[:2]] == ["deterministic", "stochastic"]
    results = [read_result(tmp_path, setting) for setting in (deterministic, stochastic)]
    first, second = results
    assert first is not None
    assert second is not None
    assert first["shortest_paths"] == second["shortest_paths"]
    for result in (first, second):
        (evaluation,) = result["evaluations"]
        assert evaluation["agent_steps"] == STEPS
        assert evaluation["epsilon"] == pytest.approx((1 - STEPS / 200_000) ** 2)
        for kind in ("greedy", "exploring"):
            assert list(evaluation[kind]) == list(METHODS)
            assert all(len(lengths) == 2 for lengths in evaluation[kind].values())
    # The same in this process, or in another one.
    assert measure(stochastic)["evaluations"] == second["evaluations"]


def test_columns_are_named_in_whatever_order_a_result_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("studies.maze.report.RESAMPLES", 10)
    lengths = {name: [place, place + 2.0] for place, name in enumerate(METHODS, start=1)}
    evaluation = {"agent_steps": 1, "epsilon": 0.5, "best_exploring": [1.0, 1.0]}
    result = {
        "evaluations": [{**evaluation, "exploring": lengths, "greedy": lengths}],
        "shortest_paths": [1, 1],
        "best_greedy": [1.0, 1.0],
        "made_with": {"setting": {"density": 30, "stochastic": False}},
    }
    text = tables([result])
    lines = text.partition("### Exploring as in")[2].splitlines()
    header, _, row = ([cell.strip() for cell in line.split("|")] for line in lines[2:5])
    cells = dict(zip(header, row, strict=True))
    assert [cells[name].split(" ")[0] for name in METHODS] == [
        f"{place + 1:.2f}" for place, _ in enumerate(METHODS, start=1)
    ]
    turned = dict(reversed(lengths.items()))
    result["evaluations"] = [{**evaluation, "exploring": turned, "greedy": turned}]
    assert tables([result]) == text


def test_what_cannot_be_written_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"^--out .*file: .*; choose another"):
        main(["--out", str(tmp_path / "file")])
    monkeypatch.setattr("studies.maze.study.measure", lambda *_: {})
    with pytest.raises(EbuError, match=r"^cannot write .*file"):
        run_setting(Setting(30, True, 10, 2, 0), tmp_path / "file")


def test_a_setting_that_fails_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EbuError, match=r"ended with exit code 1.*run the same command again"):
        run_settings([Setting(99, False, 1, 2, 0)], tmp_path, processes=1)


def test_results_of_another_study_are_not_mixed_in(tmp_path: Path) -> None:
    setting = Setting(30, True, 10, 2, 0)
    path = tmp_path / "density-30-stochastic.json"
    path.write_text(json.dumps({"made_with": made_with(setting)}))
    other = dataclasses.replace(setting, agent_steps=20)
    with pytest.raises(UsageError, match="made with other settings: choose another --out"):
        read_result(tmp_path, other)
    path.write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        read_result(tmp_path, setting)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--full --steps 10", "--full is --steps 200000"),
        ("--steps 0", "--steps must be positive"),
        ("--mazes 1", "--mazes must be at least 2"),
        ("--densities 61", "--densities must be at most 60, not 61"),
        ("--densities 20 30 20", "none of them twice"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_one_line(flags: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as refused:
        main(["--out", "unused", *flags.split()])
    assert "\n" not in str(refused.value)
