"""Episodic Backward Update: targets, replay memory, samplers, training loop and evaluation."""

__version__ = "0.1.0"
