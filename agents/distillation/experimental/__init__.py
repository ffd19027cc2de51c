"""What is offered although nothing speaks for it yet, and the line that says so."""

EXPERIMENTAL = {
    "kegnet": "experimental: states from KegNet's generators; students of them are selected on "
    "generated states, and only their games show what they are worth",
    "adversarial": "experimental: no gain of an adversarial loss has been published on Atari",
}
"""By the name of a source of states or of a loss, what is to be said where it is used."""
