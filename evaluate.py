"""Score a trained agent: the command is `ebu.commands.evaluate`."""

from ebu.commands.evaluate import command

if __name__ == "__main__":
    command()
