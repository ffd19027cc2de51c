"""Episodic Backward Update: what happens to an episode once it has been played."""

__version__ = "0.1.0"
