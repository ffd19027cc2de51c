"""Score a trained agent under a named protocol, film its best game, show it live."""

import os
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from agents import Precision, TrainedAgent, load_agent
from ebu.commands.table.scores import as_json, write_evaluation
from ebu.errors import EbuError, UsageError
from ebu.evaluation import Act, Evaluation, evaluate, summarise
from ebu.run.cli import (
    all_cores,
    at_most,
    device_named,
    has_bfloat16,
    one_of,
    parse,
    run_command,
    shares,
)
from ebu.run.directory import read_config
from ebu.run.video import check_video_path, write_video
from envs import (
    UnknownGameError,
    VectorEnvironment,
    make_vector,
    random_and_human,
)
from envs.film import Camera, CannotFilmError, film
from envs.protocols import PROTOCOLS, Protocol

MOST_ENVIRONMENTS = 16
# Agents act 15 times a second; every second picture at 15 a second plays twice as fast.
VIDEO_FPS = 15
VIDEO_EVERY = 2
VIDEO_SECONDS = 120
LIVE_FPS = 15
# Far from the children 0, 1, … of a training seed: an evaluation never plays training games.
EVALUATION_STREAM = int.from_bytes(b"eval")


@dataclass(frozen=True)
class EvaluateConfig:
    """What is scored, and under which rules."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Directory of the run whose agent is scored. The result goes to RUN_DIR/evaluations."""
    episodes: int | None = None
    """Games to play [default: the protocol's, 30 under paper, 100 under machado]."""
    epsilon: float | None = None
    """Share of random actions [default: the protocol's, 0.05 under paper, the run's final one under
    machado]. With another number the score is none of the protocol."""
    protocol: str | None = None
    """paper or machado [default: the one the run was trained under]."""
    weights: Literal["final", "best"] = "final"
    """final: of the newest checkpoint; best: of the best evaluation in training."""
    random: bool = False
    """Play uniformly random actions in the very same setting instead: the baseline."""
    seed: int = 0
    """Seed of the evaluation. Its games are never those of a training seed."""
    num_envs: int = 0
    """Games played side by side; 0 chooses. Another number plays other games."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    threads: int = 0
    """Threads of torch and of the emulators; 0 takes one for each processor core."""
    video: Path | None = None
    """Write the best game here, as .gif or .mp4, at twice its speed."""
    render: bool = False
    """Show the games in a window while they are played, one after another in real time."""
    json: Path | None = None
    """Write the result here too, with the score of every game."""


def main() -> int:
    config = parse(
        EvaluateConfig,
        sys.argv[1:],
        prog="evaluate.py",
        description="Score a trained agent under a named protocol.",
    )
    try:
        record = run(config)
    except KeyboardInterrupt:
        print("interrupted: no result", file=sys.stderr)
        return 130
    print(as_table(record))
    return 0


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate as configured, write what was asked for, and return the result.

    Raises `UsageError` for a request that cannot be met, before anything is played, and `EbuError`
    for a run without whole weights.
    """
    settings = read_config(config.run_dir)["settings"]
    protocol = _protocol(config, settings)
    episodes = protocol.eval_episodes if config.episodes is None else config.episodes
    game = str(_setting(settings, "game"))
    protocol_epsilon, epsilon = _epsilons(config, settings, game, protocol)
    num_envs = _num_envs(config, episodes)
    device = device_named(config.device)
    for path in (config.video, config.json):
        if path is not None:
            _check_output(path)
    if config.video is not None:
        check_video_path(config.video)
    threads = config.threads or all_cores()
    torch.set_num_threads(threads)
    # As in training: float32 means float32, on a GPU too.
    torch.backends.cudnn.allow_tf32 = False

    precision = None if config.random else _precision(config, settings, device)
    agent = None if precision is None else _load(config, device, precision)
    env_seed, acting = seeds_of(config.seed)
    try:
        env = make_vector(
            game,
            num_envs,
            seed=env_seed,
            protocol=protocol,
            training=False,
            num_threads=min(threads, num_envs),
        )
    except (UnknownGameError, ValueError) as error:
        raise UsageError(f"{config.run_dir} was trained on {game}: {error}") from error
    try:
        if agent is not None:
            _check_fits(agent, env, config, settings, protocol)
        _check_pictures(config, env)
        watch = Window(env, game).watch if config.render else None
        with tqdm(total=episodes, unit=" games", file=sys.stderr, dynamic_ncols=True) as bar:
            played = evaluate(
                random_play(env.num_actions) if agent is None else agent.choose,
                env,
                episodes=episodes,
                epsilon=epsilon,
                rng=np.random.default_rng(acting),
                random_start_actions=int(_setting(settings, "random_start_actions")),
                device=device,
                progress=lambda finished: bar.update(finished - bar.n),
                watch=watch,
            )
        assert played is not None
        record = describe(played, game, protocol, epsilon=1.0 if agent is None else epsilon)
        record |= {
            "policy": "random" if agent is None else "agent",
            "protocol_epsilon": protocol_epsilon,
            "protocol_games": protocol.eval_episodes,
            "precision": precision,
            "weights": None if agent is None else config.weights,
            "trained_frames": None if agent is None else agent.frames,
            "teacher": None if agent is None else settings.get("teacher"),
            "run_dir": str(config.run_dir),
            "seed": config.seed,
            "num_envs": num_envs,
            "returns": played.returns.tolist(),
            "lengths_frames": played.lengths_frames.tolist(),
        }
        if config.video is not None:
            _film_best(config.video, env, played)
    finally:
        env.close()
    try:
        write_evaluation(config.run_dir, record)
    except EbuError as error:
        print(f"warning: the result is not in {config.run_dir}: {error}", file=sys.stderr)
    if config.json is not None:
        try:
            config.json.write_bytes(as_json(record))
        except OSError as error:
            raise EbuError(f"{config.json} cannot be written: {error.strerror}") from error
    return record


def random_play(num_actions: int) -> Act:
    """Uniformly random actions, whatever is seen."""

    def act(
        stacks: Tensor,
        *,
        epsilon: float,
        rng: np.random.Generator,
        forced_random: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        actions = rng.integers(num_actions, size=len(stacks))
        return actions, np.full(len(stacks), 1 / num_actions, dtype=np.float32)

    return act


def describe(
    played: Evaluation, game: str, protocol: Protocol, *, epsilon: float
) -> dict[str, Any]:
    """The summary of an evaluation, with its protocol and the reference scores."""
    random, human = random_and_human(game, protocol.human_table)
    return {
        "game": game,
        "protocol": protocol.name,
        # Machado et al. (2018) score training games; games played afterwards are another thing.
        "separate_evaluation": protocol.name == "machado",
        "epsilon": epsilon,
        **summarise(
            played, random_score=random, human_score=human, human_table=protocol.human_table
        ),
        "random_score": random,
        "human_score": human,
    }


def as_table(record: dict[str, Any]) -> str:
    """The result for people, one line for each thing."""
    if record["policy"] == "random":
        player = "none: uniformly random actions"
    else:
        player = f"{record['weights']}, after {record['trained_frames']:,} frames of training"
        if record["teacher"] is not None:
            player = (
                f"distilled from {record['teacher']} after its {record['trained_frames']:,} frames "
                "of training"
            )
    mean = f"{record['mean']:,.2f}"
    if record["interval_95"] is not None:
        low, high = record["interval_95"]
        half = (high - low) / 2
        mean += f" ± {half:,.2f}  (95 % interval {low:,.2f} to {high:,.2f}, Student's t)"
    rows = {
        "game": record["game"],
        "protocol": record["protocol"]
        + (" (separate evaluation)" if record["separate_evaluation"] else ""),
        "weights": player,
        "epsilon": f"{record['epsilon']:g}" + _aside(record, "epsilon", record["protocol_epsilon"]),
        "games": f"{record['games']}"
        + _aside(record, "games", record["protocol_games"])
        + f", {record['capped_games']} of them ended by the time limit",
        "raw mean": mean,
        "median": f"{record['median']:,.2f}",
    }
    if record["precision"] is not None:
        rows["precision"] = record["precision"]
    if record["deviation"] is not None:
        rows["deviation"] = f"{record['deviation']:,.2f}"
    if record["human_normalised"] is not None:
        rows["human-normalised"] = (
            f"{record['human_normalised']:.1%}  (human table {record['human_table']}: "
            f"human {record['human_score']:,g}, random {record['random_score']:,g})"
        )
    else:
        rows["human-normalised"] = "the protocol's table has no human score of this game"
    rows["frames played"] = (
        f"{record['frames_played']:,}, {record['mean_length_frames']:,.0f} in a game on average"
    )
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _aside(record: dict[str, Any], name: str, of_protocol: float) -> str:
    if (record["policy"] == "random" and name == "epsilon") or record[name] == of_protocol:
        return ""
    return f" (not the protocol's {of_protocol:g})"


class Window:
    """Shows environment 0 while it plays; closing it does not end the evaluation."""

    def __init__(self, env: VectorEnvironment, title: str) -> None:
        import matplotlib.pyplot as plt

        self._plt = plt
        self._camera = Camera(env, 0)
        self._figure, axes = plt.subplots(num=title)
        axes.set_axis_off()
        self._image = axes.imshow(self._camera.picture())
        self._figure.tight_layout()
        plt.show(block=False)
        self._shown_at = monotonic()

    def watch(self, actions: np.ndarray) -> None:
        """Follow environment 0 by one step of all, actions (N,)."""
        if not self._plt.fignum_exists(self._figure.number):
            return
        self._camera.step(int(actions[0]))
        self._image.set_data(self._camera.picture())
        # Also lets the window answer; a step of zero seconds would not.
        self._plt.pause(max(0.001, self._shown_at + 1 / LIVE_FPS - monotonic()))
        self._shown_at = monotonic()


def _film_best(path: Path, env: VectorEnvironment, played: Evaluation) -> None:
    best = played.best_game
    shown = -(-int(played.stops[best] - played.starts[best] + 1) // VIDEO_EVERY)
    most = VIDEO_SECONDS * VIDEO_FPS
    pictures = islice(film(env, *played.course(best)), 0, None, VIDEO_EVERY)
    write_video(path, islice(pictures, most), fps=VIDEO_FPS)
    cut = f"; its first {most / shown:.0%}, the rest is left out" if shown > most else ""
    print(f"{path}: the best game, {played.returns[best]:,g} points{cut}", file=sys.stderr)


def _protocol(config: EvaluateConfig, settings: dict[str, Any]) -> Protocol:
    name = str(_setting(settings, "protocol")) if config.protocol is None else config.protocol
    one_of("--protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def _setting(settings: dict[str, Any], name: str) -> Any:
    if name not in settings:
        raise EbuError(f"the run's config.json lacks '{name}': restore it")
    return settings[name]


def _epsilons(
    config: EvaluateConfig, settings: dict[str, Any], game: str, protocol: Protocol
) -> tuple[float, float]:
    """The protocol's share of random actions in this game, and the one to play with."""
    of_protocol = protocol.evaluation_epsilon(game, float(_setting(settings, "epsilon_end")))
    if config.epsilon is None:
        return of_protocol, of_protocol
    if config.random:
        raise UsageError("--epsilon says nothing with --random: leave one of them out")
    shares({"--epsilon": config.epsilon})
    return of_protocol, config.epsilon


def _precision(config: EvaluateConfig, settings: dict[str, Any], device: torch.device) -> Precision:
    """The arithmetic that the run was trained in; runs of earlier versions know float32 alone."""
    precision = settings.get("precision", "float32")
    if precision not in get_args(Precision):
        raise EbuError(f"{config.run_dir}'s config.json says precision {precision!r}: restore it")
    if precision == "bfloat16" and not has_bfloat16(device):
        print(
            f"warning: {config.run_dir} was trained in bfloat16, which is emulated here: slower, "
            "and its last bits may differ",
            file=sys.stderr,
        )
    found: Precision = precision
    return found


def _load(config: EvaluateConfig, device: torch.device, precision: Precision) -> TrainedAgent:
    agent = load_agent(config.run_dir, config.weights, device, precision)
    for line in agent.warnings:
        print(f"warning: {line}", file=sys.stderr)
    return agent


def _num_envs(config: EvaluateConfig, episodes: int) -> int:
    for flag, value, least in (
        ("--episodes", episodes, 1),
        ("--num-envs", config.num_envs, 0),
        ("--threads", config.threads, 0),
        ("--seed", config.seed, 0),
    ):
        if value < least:
            raise UsageError(f"{flag} must be at least {least}, not {value}")
    at_most({"--episodes": (episodes, 1_000_000), "--threads": (config.threads, 10_000)})
    if config.num_envs > episodes:
        raise UsageError(
            f"--num-envs {config.num_envs}: each environment needs a game, and --episodes is "
            f"{episodes}"
        )
    if config.num_envs:
        return config.num_envs
    if config.render:
        return 1
    return environments_for(episodes)


def environments_for(episodes: int) -> int:
    """Games played side by side where nothing else is asked for.

    As few as play them in the same number of rounds: 15 for 30 games, not 16.
    """
    rounds = -(-episodes // MOST_ENVIRONMENTS)
    return -(-episodes // rounds)


def seeds_of(seed: int) -> tuple[int, np.random.SeedSequence]:
    """The environments' seed in an evaluation of this seed, and that of its exploration."""
    games, acting = np.random.SeedSequence(seed, spawn_key=(EVALUATION_STREAM,)).spawn(2)
    return int(np.random.default_rng(games).integers(2**31)), acting


def _check_output(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a directory: name a file")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path} is not writable: choose another place")


def _check_fits(
    agent: TrainedAgent,
    env: VectorEnvironment,
    config: EvaluateConfig,
    settings: dict[str, Any],
    protocol: Protocol,
) -> None:
    if env.num_actions != agent.num_actions:
        raise UsageError(
            f"--protocol {protocol.name} plays {env.num_actions} actions, the agent in "
            f"{config.run_dir} knows {agent.num_actions}: evaluate it under --protocol "
            f"{settings['protocol']}, as it was trained"
        )
    trained = agent.config["environment"]
    if list(env.frame_shape) != list(trained["frame_shape"]) or env.stack != trained["stack"]:
        raise UsageError(
            f"{settings['game']} shows frames {list(env.frame_shape)} here, the agent in "
            f"{config.run_dir} was trained on {list(trained['frame_shape'])}"
        )


def _check_pictures(config: EvaluateConfig, env: VectorEnvironment) -> None:
    """Raise `UsageError` before playing if there will be nothing to film or to show it in."""
    try:
        if config.video is not None or config.render:
            next(film(env, 0, np.empty(0, dtype=np.int64), 0, 0))
    except CannotFilmError as error:
        raise UsageError(f"no pictures for --video or --render: {error}") from error
    if config.render:
        _check_display()


def _check_display() -> None:
    from matplotlib import pyplot as plt
    from matplotlib.backends.registry import BackendFilter, backend_registry

    # Asking resolves the backend: one without windows is what is left where no display is found.
    windows = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    if plt.get_backend().lower() not in windows:
        raise UsageError(
            "--render: no display, or no window toolkit for matplotlib, was found; "
            "--video FILE.gif writes the best game instead"
        )


def command() -> None:
    """Run the command with the words of the command line, and exit."""
    run_command(main)


if __name__ == "__main__":
    command()
