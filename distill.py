"""Compress a trained agent: the command is `ebu.commands.distill`."""

from ebu.commands.distill import command

if __name__ == "__main__":
    command()
