"""Run the maze study: `python -m studies.maze --out docs/results/maze`, longer with `--full`."""

import sys
from collections.abc import Sequence

from ebu.errors import UsageError
from ebu.run.cli import parse, run_command
from ebu.run.files import write_whole
from studies.maze.report import draw, tables
from studies.maze.settings import StudyConfig, settings_of
from studies.maze.study import read_result, run_settings


def main(args: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write `tables.md` and `relative_length.png`."""
    config = parse(
        StudyConfig,
        sys.argv[1:] if args is None else args,
        prog="python -m studies.maze",
        description="The paper's maze study: relative lengths of the paths of six methods.",
    )
    settings = settings_of(config)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {config.out}: {error.strerror}; choose another") from None
    missing = [setting for setting in settings if read_result(config.out, setting) is None]
    run_settings(missing, config.out, config.processes)
    results = [result for setting in settings if (result := read_result(config.out, setting))]
    text = tables(results)
    write_whole(config.out / "tables.md", text.encode())
    draw(results, config.out / "relative_length.png")
    print(text)


if __name__ == "__main__":
    run_command(main)
