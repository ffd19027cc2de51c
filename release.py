"""Release a trained agent in a folder for a model hub: the command is `ebu.commands.release`."""

from ebu.commands.release import command

if __name__ == "__main__":
    command()
