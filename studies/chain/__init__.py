"""How fast a reward travels along a chain."""
