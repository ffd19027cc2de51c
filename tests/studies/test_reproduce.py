"""A cell of results played once more: chosen, played and compared."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebu.commands.train_arguments import parse_arguments
from ebu.errors import EbuError, UsageError
from ebu.run.settings import flat
from ebu.statistics import prediction_interval
from studies.reproduce import Settings, cells_in, chosen, main, verdict
from tests.run_directories import write_run

SETTINGS = flat(
    parse_arguments(
        [
            *("--game=CartPole-v1", "--agent=dqn", "--frames=1000", "--network=8-8-8/8"),
            *("--num-envs=2", "--replay-capacity=1000", "--learning-starts=100"),
            *("--eval-every-frames=0", "--threads=1"),
        ]
    )
)


def cell(root: Path, name: str, seeds: int, **changes: Any) -> None:
    own = {**SETTINGS, **changes}
    frames, game, agent = own.pop("frames"), own.pop("game"), own.pop("agent")
    del own["seed"], own["run_dir"], own["shift_pixels"]  # an earlier version had no shifts
    for seed in range(seeds):
        run_dir = write_run(
            root, game, agent, seed, 20.0 + seed, name=f"{name}-seed{seed}", played=frames, **own
        )
        config = json.loads((run_dir / "config.json").read_text())
        config["settings"] |= {"frames": frames, "device": "cpu"}
        del config["settings"]["beta"]
        (run_dir / "config.json").write_text(json.dumps(config))
        record = json.loads((run_dir / "evaluation.json").read_text())
        (run_dir / "evaluation.json").write_text(json.dumps({**record, "games": 3}))


def test_of_scores_that_are_normal_the_interval_holds_its_share_of_new_ones() -> None:
    rng = np.random.default_rng(0)
    trials = 4_000
    inside = 0
    for scores in rng.normal(size=(trials, 6)):
        low, high = prediction_interval(scores[:5]) or (0.0, 0.0)
        inside += low <= scores[5] <= high
    # Of right intervals fewer or more lie this far off once in 10,000 seeds.
    assert abs(inside / trials - 0.95) < 3.9 * (0.95 * 0.05 / trials) ** 0.5


def test_the_verdict_by_hand() -> None:
    # Mean 2, deviation √2.5, t(4) = 2.776: 2 ± 2.776 · √2.5 · √1.2 = 2 ± 4.81
    scores = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert "inside of [-2.8, 6.8]" in verdict(scores, 6.7)
    assert "OUTSIDE of [-2.8, 6.8]" in verdict(scores, 6.9)


def test_the_cell_with_most_seeds_is_chosen_or_the_one_that_is_named(tmp_path: Path) -> None:
    cell(tmp_path, "few", 2)
    with pytest.raises(
        UsageError, match=r"some cell needs 5 seeds; cells and their seeds: few \(2\)"
    ):
        chosen(Settings(tmp_path))
    cell(tmp_path, "many", 5)
    assert chosen(Settings(tmp_path))[0] == "many"
    assert [run.seed for run in chosen(Settings(tmp_path, cell="few"))[1]] == [0, 1]
    with pytest.raises(UsageError, match="other needs 2 seeds"):
        chosen(Settings(tmp_path, cell="other"))
    write_run(tmp_path, "pong", "dqn", 7, 1.0, name="many-seed7")
    with pytest.raises(UsageError, match="several methods"):
        chosen(Settings(tmp_path))


def test_a_setting_that_an_earlier_version_lacked_counts_as_off(tmp_path: Path) -> None:
    cell(tmp_path, "pole", 5)
    path = tmp_path / "pole-seed1" / "config.json"
    config = json.loads(path.read_text())
    off: dict[str, Any] = {
        "init_from": None,
        "noisy": False,
        "weight_decay": 0.0,
        "env_wrappers": [],
    }
    config["settings"] |= off
    path.write_text(json.dumps(config))
    for name in off:
        del config["settings"][name]
    config["settings"]["seed"] = 2
    (tmp_path / "pole-seed2" / "config.json").write_text(json.dumps(config))
    assert len(cells_in(tmp_path)["pole"]) == 5
    config["settings"]["noisy"] = True
    (tmp_path / "pole-seed2" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="several methods"):
        cells_in(tmp_path)


def test_scores_of_one_kind_alone_make_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell(tmp_path, "pole", 5)
    # Evaluated in training alone.
    run_dir = tmp_path / "pole-seed4"
    (run_dir / "evaluation.json").unlink()
    line = {"frames": 1_000, "mean": 500.0, "games": 3, "interval_95": None}
    (run_dir / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    assert [run.seed for run in cells_in(tmp_path)["pole"]] == [0, 1, 2, 3]
    monkeypatch.setattr(sys, "argv", ["reproduce", "--results", str(tmp_path)])
    with pytest.raises(UsageError, match=r"seeds: pole \(4\)"):
        main()
    path = tmp_path / "pole-seed3" / "evaluation.json"
    record = json.loads(path.read_text())
    for other, words in (
        ({"games": 30}, "in 3 games under paper and in 30 games under paper"),
        ({"protocol": "machado"}, "in 3 games under machado and in 3 games under paper"),
    ):
        path.write_text(json.dumps({**record, **other}))
        with pytest.raises(UsageError, match=f"pole is scored {words}"):
            cells_in(tmp_path)


def test_a_cell_is_played_and_scored_as_its_results_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell(tmp_path, "pole", 2, precision="bfloat16")
    for run_dir in tmp_path.glob("pole-*"):
        config = json.loads((run_dir / "config.json").read_text())
        (run_dir / "config.json").write_text(json.dumps({**config, "automatic": ["precision"]}))
        record = json.loads((run_dir / "evaluation.json").read_text())
        changed = json.dumps({**record, "protocol": "machado"})
        (run_dir / "evaluation.json").write_text(changed)
    words: list[list[str]] = []

    def run_nothing(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        words.append([*argv])
        return subprocess.CompletedProcess(argv, int("evaluate.py" in " ".join(argv)))

    monkeypatch.setattr(subprocess, "run", run_nothing)
    typed = ["reproduce", "--results", str(tmp_path), "--cell", "pole", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", typed)
    with pytest.raises(EbuError, match=r"evaluate\.py failed"):
        main()
    training, scoring = words
    flags = training[next(at for at, word in enumerate(training) if word.startswith("--")) :]
    assert parse_arguments(flags).precision == "bfloat16"
    assert scoring[scoring.index("--protocol") + 1] == "machado"
    assert scoring[scoring.index("--episodes") + 1] == "3"


def test_the_committed_results_are_of_one_method_each() -> None:
    results = Path(__file__).parents[2] / "docs/results/environments"
    assert len(cells_in(results)["LunarLander-v3-ebu"]) == 3


def test_modules_that_results_name_are_imported_only_if_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell(tmp_path, "own", 5, game="of_a_stranger:Own-v0", env_wrappers=["of_a_stranger:Wrapper"])
    words: list[tuple[str, ...]] = []

    def run_nothing(argv: list[str]) -> subprocess.CompletedProcess[str]:
        words.append(tuple(argv))
        return subprocess.CompletedProcess(argv, int("evaluate.py" in " ".join(argv)))

    monkeypatch.setattr(subprocess, "run", run_nothing)
    monkeypatch.setattr(sys, "path", list(sys.path))
    typed = ["reproduce", "--results", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", typed)
    with pytest.raises(UsageError, match=r"names of_a_stranger:Own-v0, .*--trust-env"):
        main()
    assert not words
    monkeypatch.setattr(sys, "argv", [*typed, "--trust-env"])
    with pytest.raises(EbuError, match=r"evaluate\.py failed"):
        main()
    training, scoring = words
    assert "--game=of_a_stranger:Own-v0" in training
    assert "--trust-env" in scoring


@pytest.mark.slow
def test_a_cell_is_played_with_a_new_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell(tmp_path / "results", "pole", 5)
    words = ["--results", tmp_path / "results", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, words)])
    main()
    assert capsys.readouterr().out.startswith("pole, seed 5: ")
    evaluations = (tmp_path / "out/pole-seed5/evaluations").glob("*.json")
    (record,) = (json.loads(path.read_text()) for path in evaluations)
    assert record["games"] == 3
    config = json.loads((tmp_path / "out/pole-seed5/config.json").read_text())
    assert config["settings"]["seed"] == 5
    assert config["settings"]["learning_starts"] == 100

    monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, words), "--seed", "3"])
    with pytest.raises(UsageError, match="--seed 3"):
        main()
