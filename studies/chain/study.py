"""How many updates until the optimal path of a chain is learnt, for four orders of updates.

    python studies/chain/study.py --out docs/results/chain

One episode with one wrong turn is stored: s1 → s2 → s3 → s2 → s3 → … → goal. Every method starts
from Q = 0 and updates one stored transition at a time, with step size 1. A run has learnt the
optimal path once right is worth more than left in every state on it; a tie does not count.

Four states give the episode of five transitions of the paper's motivating example, five states
the chain `ebu/Chain-v0`. Writes chain.json, a function of the settings, and chain.png.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import matplotlib
import numpy as np
import scipy.stats

ROOT = Path(__file__).resolve().parents[2]
# The packages need not be installed.
sys.path.insert(0, str(ROOT))

from ebu.errors import EbuError, UsageError  # noqa: E402
from ebu.run.cli import parse, run_command  # noqa: E402
from ebu.tabular import (  # noqa: E402
    Transitions,
    backward_q_learning,
    prioritized_q_learning,
    uniform_q_learning,
)
from envs.chain import LEFT, RIGHT  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

Learner = Callable[[np.ndarray, Transitions, np.random.Generator], Iterator[np.ndarray]]

CHAINS = (4, 5)
GAMMA = 0.9
CONFIDENCE = 0.95
# The probabilities whose updates are tabulated; 1 means that every run has learnt.
LEVELS = (0.5, 0.95, 1.0)
METHODS: dict[str, Learner] = {
    "backward": lambda q, episode, rng: backward_q_learning(q, episode, gamma=GAMMA),
    "uniform": lambda q, episode, rng: uniform_q_learning(q, episode, gamma=GAMMA, rng=rng),
    "prioritized, stored errors": lambda q, episode, rng: prioritized_q_learning(
        q, episode, gamma=GAMMA, rng=rng, current_errors=False
    ),
    "prioritized, current errors": lambda q, episode, rng: prioritized_q_learning(
        q, episode, gamma=GAMMA, rng=rng, current_errors=True
    ),
}


@dataclass(frozen=True)
class Settings:
    """What is measured and where it is written."""

    out: Path
    """Folder for chain.json and chain.png; made if it is not there."""
    runs: int = 10_000
    """Runs of each method that draws; backward sweeps draw nothing, so one run tells all."""
    updates: int = 120
    """Updates of each run, one transition each."""
    seed: int = 0
    """Seed of all draws; every method of every chain has its own stream."""


class Needed(NamedTuple):
    """Updates until a probability is reached; None where it is not."""

    updates: int | None
    earliest: int | None
    """By the high ends of the intervals."""
    latest: int | None
    """By their low ends, which never reach 1."""


@dataclass(frozen=True)
class Curve:
    """How many of `runs` runs had learnt after 0, 1, 2, … updates."""

    learnt: np.ndarray
    runs: int
    drawn: bool
    """Whether the method draws; if not, all runs are alike and the probability is exact."""

    @property
    def probability(self) -> np.ndarray:
        """Share of the runs that had learnt, (updates + 1,)."""
        return self.learnt / self.runs

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high end of each probability's interval (Clopper and Pearson 1934)."""
        if not self.drawn:
            return self.probability, self.probability
        tail, missing = (1 - CONFIDENCE) / 2, self.runs - self.learnt
        # The distribution knows no parameter 0: nobody's low end is 0, everybody's high end 1.
        low = scipy.stats.beta.ppf(tail, self.learnt, missing + 1)
        high = scipy.stats.beta.isf(tail, self.learnt + 1, missing)
        return np.where(self.learnt == 0, 0.0, low), np.where(missing == 0, 1.0, high)

    def updates_needed(self, level: float) -> Needed:
        """First update with at least this probability."""
        low, high = self.interval
        return Needed(
            *(
                int((values >= level).argmax()) if (values >= level).any() else None
                for values in (self.probability, high, low)
            )
        )


def stored_episode(num_states: int) -> Transitions:
    """Play right, right, left, then right up to the goal, in the environment."""
    env = gymnasium.make("ebu/Chain-v0", num_states=num_states)
    state, _ = env.reset(seed=0)
    steps = []
    for action in (RIGHT, RIGHT, LEFT, *[RIGHT] * (num_states - 2)):
        next_state, reward, terminated, _, _ = env.step(np.int64(action))
        steps.append((state, action, float(reward), next_state, terminated))
        state = next_state
    env.close()
    return Transitions(*(np.array(field) for field in zip(*steps, strict=True)))


def has_learnt(q: np.ndarray) -> np.ndarray:
    """Whether right is worth more than left in all states before the goal: (…, S, 2) → (…)."""
    return np.asarray((q[..., :-1, RIGHT] > q[..., :-1, LEFT]).all(-1))


def measure(settings: Settings, num_states: int) -> dict[str, Curve]:
    """The curve of every method on one chain."""
    episode = stored_episode(num_states)
    streams = np.random.SeedSequence([settings.seed, num_states]).spawn(len(METHODS))
    curves = {}
    for (method, learner), stream in zip(METHODS.items(), streams, strict=True):
        drawn = method != "backward"
        runs = settings.runs if drawn else 1
        q = np.zeros((runs, num_states, 2))
        tables = learner(q, episode, np.random.default_rng(stream))
        learnt = [has_learnt(table).sum() for table in (q, *islice(tables, settings.updates))]
        curves[method] = Curve(np.array(learnt), runs, drawn)
    return curves


def describe(curve: Curve) -> dict[str, Any]:
    """A curve in JSON values."""
    needed = {f"{level:.0%}": curve.updates_needed(level) for level in LEVELS}
    return {
        "runs": curve.runs,
        "learnt_runs": curve.learnt.tolist(),
        "interval_95": [end.round(6).tolist() for end in curve.interval],
        "updates_needed": {
            level: {"updates": each.updates, "interval_95": [each.earliest, each.latest]}
            for level, each in needed.items()
        },
    }


def report(settings: Settings, chains: dict[int, dict[str, Curve]]) -> dict[str, Any]:
    """All that was measured and all it depends on, in JSON values."""
    return {
        "settings": {
            "runs": settings.runs,
            "updates": settings.updates,
            "seed": settings.seed,
            "gamma": GAMMA,
        },
        "chains": {
            str(num_states): {
                "episode": visited(num_states),
                "methods": {method: describe(curve) for method, curve in curves.items()},
            }
            for num_states, curves in chains.items()
        },
    }


def visited(num_states: int) -> str:
    """The states of the stored episode in order, `s1 s2 s3 s2 s3 s4`."""
    episode = stored_episode(num_states)
    states = [*episode.states, episode.next_states[-1]]
    return " ".join(f"s{state + 1}" for state in states)


def table(chains: dict[int, dict[str, Curve]]) -> str:
    """Updates needed, as a Markdown table."""
    lines = [
        "| states | method | " + " | ".join(f"{level:.0%}" for level in LEVELS) + " |",
        "| --- | --- |" + " --- |" * len(LEVELS),
    ]
    for num_states, curves in chains.items():
        for method, curve in curves.items():
            cells = []
            for level in LEVELS:
                needed = curve.updates_needed(level)
                cells.append("–" if needed.updates is None else str(needed.updates))
                if curve.drawn and needed.latest is not None:
                    cells[-1] += f" [{needed.earliest}, {needed.latest}]"
            lines.append(f"| {num_states} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(chains: dict[int, dict[str, Curve]], path: Path) -> None:
    """Probability against updates, a panel for each chain."""
    figure, panels = plt.subplots(
        len(chains), 1, figsize=(8, 7), sharex=True, sharey=True, constrained_layout=True
    )
    for panel, (num_states, curves) in zip(panels, chains.items(), strict=True):
        for method, curve in curves.items():
            updates = np.arange(len(curve.learnt))
            (line,) = panel.step(updates, curve.probability, where="post", label=method)
            panel.fill_between(
                updates, *curve.interval, step="post", color=line.get_color(), alpha=0.3
            )
        panel.set_title(f"{num_states} states, stored episode {visited(num_states)}")
        panel.set_ylabel("P(optimal path learnt), 95 % interval")
        panel.grid(alpha=0.3)
    ticks = [1, 2, 5, 10, 20, 50, 100]
    panels[-1].set_xscale("log")
    panels[-1].set_xticks(ticks, map(str, ticks))
    panels[-1].set_xlabel("updates (one transition each)")
    panels[-1].legend(loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def check(settings: Settings) -> None:
    """Refuse what cannot be measured. Raises `UsageError`."""
    for name, least in (("runs", 1), ("updates", 1), ("seed", 0)):
        if getattr(settings, name) < least:
            raise UsageError(f"--{name} is {getattr(settings, name)}; give {least} or more")


def main() -> None:
    """Measure, write the files and print the table."""
    settings = parse(
        Settings,
        sys.argv[1:],
        prog="chain.py",
        description="Probability of having learnt a chain's optimal path, against updates.",
    )
    check(settings)
    chains = {num_states: measure(settings, num_states) for num_states in CHAINS}
    text = json.dumps(report(settings, chains)) + "\n"
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "chain.json").write_text(text, encoding="utf-8")
        draw(chains, settings.out / "chain.png")
    except OSError as error:
        raise EbuError(f"cannot write to --out {settings.out}: {error}; name another") from None
    print(table(chains))


if __name__ == "__main__":
    run_command(main)
