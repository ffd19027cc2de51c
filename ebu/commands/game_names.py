"""What commands say of a game's name."""

from ebu.run.hints import program_command
from envs import NoSimilarGameError


def about_game(error: ValueError) -> str:
    """An error about a game's name, with the command that lists names if none is similar."""
    if not isinstance(error, NoSimilarGameError):
        return str(error)
    return f"{error} ({program_command('train.py', '--list-games')} lists the Atari games)"
