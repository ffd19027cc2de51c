"""Run the study of the chain: `python -m studies.chain --help`."""

import json
import sys

from ebu.run.cli import parse, run_command
from ebu.run.files import write_whole
from studies.chain.report import draw, record, table
from studies.chain.study import CHAINS, Settings, measure


def main() -> None:
    """Measure, write the files and print the table."""
    settings = parse(
        Settings,
        sys.argv[1:],
        prog="python -m studies.chain",
        description="Probability of having learnt a chain's optimal path, against updates.",
    )
    chains = {num_states: measure(settings, num_states) for num_states in CHAINS}
    content = json.dumps(record(settings, chains)) + "\n"
    write_whole(settings.out / "chain.json", content.encode())
    draw(chains, settings.out / "chain.png")
    print(table(chains))


if __name__ == "__main__":
    run_command(main)
