"""Programs of a copy's `.venv/bin` that run what the docs print, shortened by a table.

`python docs/stand_ins.py NAME ARGS...` runs `python`, `pip`, `tensorboard` or `lint-imports` with
these arguments.
What cannot run here says why and ends with 0; the check then counts it as skipped.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from importlib import util
from typing import NoReturn

Table = Mapping[str, Mapping[str, int | str]]

SHORT: Table = {
    "train.py": {"--frames": 1_000, "--eval-episodes": 1},
    "evaluate.py": {"--episodes": 2},
    "study.py": {"--games": "breakout", "--seeds": 1, "--frames": 1_000, "--episodes": 2},
    "study.py --": {"--eval-episodes": 1},
    "report.py": {},
    "release.py": {"--episodes": 2},
    "distill.py": {
        "--states": 400,
        "--rounds": 1,
        "--num-envs": 4,
        "--updates": 20,
        "--games": 2,
        "--seeds": 1,
        "--baseline-seeds": 1,
        "--from-scratch": 2_000,
        "--kegnet-samples": 64,
    },
    "export.py": {"--states": 400, "--num-envs": 4, "--games": 2},
    "studies.chain": {"--runs": 200},
    "studies.maze": {"--steps": 500, "--mazes": 2, "--densities": 30},
    "benchmarks.train_speed": {"--window": 400, "--pairs": 1},
    "benchmarks.replay_speed": {
        "--num-envs": 8,
        "--replay-capacity": 20_000,
        "--repetitions": 20,
    },
    "benchmarks.target_speed": {"--steps": 128, "--repetitions": 1},
    "benchmarks.env_speed": {"--steps": 50},
    "benchmarks.update_speed": {"--repetitions": 2},
    "benchmarks.ingredient_speed": {"--rounds": 1, "--updates": 2},
    "benchmarks.host_speed": {
        "--num-envs": 8,
        "--steps": 100,
        "--repetitions": 2,
        "--rounds": 1,
    },
    "benchmarks.operations": {},
    "benchmarks.gpu": {},
    "benchmarks.call_stack": {},
    "tests.fuzz": {"--inputs": 200, "--commands": 20},
    "tests.faults": {"--kills": 1, "--parts": "kills", "--only": "paper"},
    "docs.results.distillation_pages": {},
    "docs.results.variants": {},
    "docs.results.million": {},
    "docs.results.plot": {},
    "examples/play_agent.py": {},
    "examples/play_onnx.py": {},
}
"""The largest values of the flags of each program; what is not here is refused.

`PROGRAM --` has those of the flags that follow ` -- `, for the runs that it starts.

A larger number becomes this value and a ten-thousandth of itself, so that a run that grows still
grows. A missing flag is added. Of names the first is taken, and the value here for a set of games.
"""
GAME_FRAMES = 400
"""The longest game that counts for a score: an agent that has learnt nothing may never lose."""
ONLY_IF_GIVEN = {("study.py", "--games"), ("distill.py", "--from-scratch")}
# Results of studies that their pages only list, which are of the sizes that they name.
COMMITTED = {"docs/results/settings", "docs/results/few_frames"}
SETS = ("paper49", "atari5", "all57", "atari100k", "atari100k-5")
RUN_AS, SKIPPED = "run as: ", "skipped: "
SERVER_SECONDS = 60
# What part of a game's name tells of a package that is not always there, and the package.
GAMES_OF = {
    "MinAtar/": "minatar",
    "minigrid:": "minigrid",
    "Lander-": "Box2D",
    "CarRacing-": "Box2D",
}

# The packages that engines of study.py need.
ENGINES = {"ray": "ray", "slurm": "submitit"}


def shorten(args: Sequence[str], table: Table = SHORT) -> list[str]:
    """A program and its arguments by the table. Raises `LookupError` for one not in it."""
    program, rest = os.path.normpath(args[0]), list(args[1:])
    if program not in table:
        raise LookupError(f"{program}: docs/stand_ins.py does not say how it is shortened")
    of_runs: list[str] = []
    if f"{program} --" in table:
        at = rest.index("--") if "--" in rest else len(rest)
        of_runs = ["--", *_shorten(f"{program} --", rest[at + 1 :], table)]
        rest = rest[:at]
    return [args[0], *_shorten(program, rest, table), *of_runs]


def _shorten(entry: str, args: Sequence[str], table: Table) -> list[str]:
    """Arguments by an entry of the table, those that were missing first."""
    added, rest = list[str](), list(args)
    for flag, most in table[entry].items():
        found, rest = _replace(flag, most, rest)
        if not found and (entry, flag) not in ONLY_IF_GIVEN and "--resume" not in rest:
            added += [flag, str(most)]
    return [*added, *rest]


def shorten_games(protocols: str) -> str:
    """The source of `envs/protocols.py` with games of `GAME_FRAMES` frames."""
    short, count = re.subn(r"(?<=eval_max_frames=)[\d_]+", str(GAME_FRAMES), protocols)
    if not count:
        raise LookupError("envs/protocols.py names no eval_max_frames")
    return short


def _replace(flag: str, most: int | str, args: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether a flag is among arguments, and these with its values shortened."""
    found, result, at = False, list[str](), 0
    while at < len(args):
        name, joined, value = args[at].partition("=")
        at += 1
        if name != flag:
            result.append(args[at - 1])
            continue
        found, values = True, [value] if joined else []
        while not joined and at < len(args) and not args[at].startswith("-"):
            values.append(args[at])
            at += 1
        if isinstance(most, str):
            values = [most if not values or values[0] in SETS else values[0]]
        else:
            values = [_short_number(most, given) for given in values]
        result += [flag, *values]
    return found, result


def _short_number(most: int, given: str) -> str:
    number = re.fullmatch(r"([\d_]+(?:\.\d+)?(?:e\d+)?)([kM]?)", given)
    if not number:
        return given  # for the program to refuse
    value = float(number[1].replace("_", "")) * {"": 1, "k": 1_000, "M": 1_000_000}[number[2]]
    short = most + int(value // 10_000)
    return str(short) if value > short else given


def run_python(args: list[str]) -> NoReturn:
    """Shorten, or say why that cannot run here, and run."""
    if args[:1] == ["-m"] and args[1] in ("pytest", "ruff", "mypy", "docs.check"):
        skip("checks are run by themselves")
    if args[:2] == ["-m", "studies.reproduce"]:
        skip("it trains as long as the runs that it reproduces")
    if "--smallest" in args:
        skip("no small network retains enough of an agent of so few frames: it ends with 1")
    if args[:2] == ["-m", "tests.soak"]:
        skip("half an hour: memory is not level earlier")
    module = args[:1] == ["-m"] and args[1].startswith(("studies.", "benchmarks.", "tests."))
    if module or (args and args[0].endswith(".py")):
        try:
            if not COMMITTED & set(args):
                args = ["-m"] * module + shorten(args[module:])
        except LookupError as error:
            sys.exit(f"error: {error}")
        if "benchmarks.gpu" in args and not shutil.which("nvidia-smi"):
            skip("there is no GPU here")
        if "kegnet" in args:
            skip("five minutes, and no flag for the updates of the generators")
        if {"sb3", "benchmarks.env_speed"} & set(args) and not _has_benchmarks():
            skip("Stable-Baselines3 and OpenCV are not installed here")
        for engine, package in ENGINES.items():
            if engine in args and not util.find_spec(package):
                skip(f"{package} is not installed here")
        for part, package in GAMES_OF.items():
            if any(part in arg for arg in args) and not util.find_spec(package):
                skip(f"{package} is not installed here")
        if "--render" in args and "DISPLAY" not in os.environ:
            if not (shutil.which("xvfb-run") and util.find_spec("_tkinter")):
                skip("there is no display here, or no xvfb-run and Tk to do without")
            os.execvp("xvfb-run", ["xvfb-run", "-a", sys.executable, *args])
        print(f"{RUN_AS}{shlex.join(args)}", file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, *args])


def run_pip(args: list[str]) -> NoReturn:
    """Install from what is here: nothing is downloaded."""
    if args[:1] == ["download"]:
        skip("a download of everything, PyTorch too")
    if "--no-index" in args:
        skip("it takes the files of a download that is skipped")
    if any("[bench]" in arg for arg in args) and not _has_benchmarks():
        skip("a download that only the comparison with Stable-Baselines3 needs")
    if any("[environments]" in arg for arg in args) and not all(
        map(util.find_spec, GAMES_OF.values())
    ):
        skip("a download that only some environments need")
    for extra, package in (("[cluster]", "ray"), ("[slurm]", "submitit")):
        if any(extra in arg for arg in args) and not util.find_spec(package):
            skip("a download that only studies on clusters need")
    os.environ["PIP_NO_BUILD_ISOLATION"] = "0"
    os.execv(sys.executable, [sys.executable, "-m", "pip", *args])


def run_tensorboard(args: list[str]) -> NoReturn:
    """Start the server, open its page, stop it."""
    logs = args[args.index("--logdir") + 1]
    if not os.path.isdir(logs):
        sys.exit(f"error: there is no directory {logs}")
    command = ["timeout", str(SERVER_SECONDS), sys.executable, "-m", "tensorboard.main", *args]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            print(line, end="")
            if address := re.search(r"http://\S+", line):
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opener.open(address[0], timeout=SERVER_SECONDS) as answer:
                    print(f"{address[0]} answers {answer.status}")
                sys.exit(0)
        sys.exit("error: TensorBoard ended, or did not answer")
    finally:
        server.terminate()
        server.wait()


def _has_benchmarks() -> bool:
    return all(map(util.find_spec, ("stable_baselines3", "cv2")))


def skip(reason: str) -> NoReturn:
    """End as if all were well, and leave the reason."""
    print(f"{SKIPPED}{reason}", file=sys.stderr)
    sys.exit(0)


def run_lint_imports(args: list[str]) -> NoReturn:
    """Say that it is one of the checks."""
    skip("checks are run by themselves")


STAND_INS = {
    "python": run_python,
    "pip": run_pip,
    "tensorboard": run_tensorboard,
    "lint-imports": run_lint_imports,
}

if __name__ == "__main__":
    STAND_INS[sys.argv[1]](sys.argv[2:])
