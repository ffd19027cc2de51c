"""Export a trained agent to ONNX: the command is `ebu.commands.export`."""

from ebu.commands.export import command

if __name__ == "__main__":
    command()
