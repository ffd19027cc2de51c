"""What ends a game from outside the method: an environment that fails, or does not answer."""


class EnvironmentFault(RuntimeError):
    """What an environment did that no training can use, in one line with its index and step."""


class EnvironmentHang(EnvironmentFault):
    """A call that did not return."""
