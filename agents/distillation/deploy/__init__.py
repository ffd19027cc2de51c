"""Trained agents as files to play by: exported, checked, quantised, scored and timed."""
