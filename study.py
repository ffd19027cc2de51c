"""Play a table of games, agents and seeds: the command is `ebu.commands.study`."""

from ebu.commands.study import command

if __name__ == "__main__":
    command()
