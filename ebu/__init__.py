"""Episodic Backward Update: what happens to an episode once it has been played."""
