"""Score a trained agent under a named protocol, film its best game, show it live."""

import sys
from functools import partial
from typing import Any

from ebu.commands.evaluate_arguments import parse_arguments
from ebu.run.cli import run_command


def main() -> int:
    """Read the command line, run the command, and return its exit code."""
    config = parse_arguments(sys.argv[1:])
    # Imported when the settings are known to be right: they load torch.
    from ebu.commands.evaluation import run
    from ebu.commands.evaluation_record import as_table

    scored: list[dict[str, Any]] = []

    def announce(record: dict[str, Any]) -> None:
        print(as_table(record), flush=True)
        scored.append(record)

    try:
        run(config, announce)
    except KeyboardInterrupt:
        if not scored or config.video is not None:
            what = f"{config.video} is not written" if scored else "no result"
            print(f"interrupted: {what}", file=sys.stderr)
        return 130
    return 0


command = partial(run_command, main)

if __name__ == "__main__":
    command()
