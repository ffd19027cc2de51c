"""Train an agent: the command is `ebu.commands.train`."""

from ebu.commands.train import command

if __name__ == "__main__":
    command()
