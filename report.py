"""Report on runs: the command is `ebu.commands.report`."""

from ebu.commands.report import command

if __name__ == "__main__":
    command()
