"""Make a run directory of a policy from elsewhere: the command is `ebu.commands.importing`."""

from ebu.commands.importing import command

if __name__ == "__main__":
    command()
