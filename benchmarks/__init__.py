"""Benchmarks, each a module: `python -m benchmarks.train_speed --help`."""
