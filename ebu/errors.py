"""What a command reports in one line instead of a traceback."""


class EbuError(Exception):
    """A failure the user can act on; the command prints the message and exits with 1.

    The message is one line that says what is wrong and what to do.
    """


class UsageError(EbuError):
    """A request that cannot be carried out as asked; the command exits with 2."""
