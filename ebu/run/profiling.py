"""A profile of some steps of a run, for TensorBoard or Perfetto."""

from pathlib import Path

import torch

SKIPPED_STEPS = 20
"""Vector steps with updates before the profile: graphs are captured and kernels chosen in them."""
PROFILED_STEPS = 20


class Profile:
    """Records vector steps of a run once it learns, into one file of a directory.

    Idle until the first update; then it skips `SKIPPED_STEPS` vector steps and records
    `PROFILED_STEPS`. It changes nothing in the run.
    """

    def __init__(self, directory: Path) -> None:
        self.outcome = "no profile was written: too few steps with updates were made"
        """What became of it, in one line."""
        self._directory = directory
        self._steps = 0
        self._profiler: torch.profiler.profile | None = None

    def step(self, learning: bool) -> None:
        """To be called after every vector step; `learning`: updates were made in it."""
        if learning or self._steps:
            self._steps += 1
            if self._steps == SKIPPED_STEPS:
                self._profiler = torch.profiler.profile()
                self._profiler.start()
            elif self._steps == SKIPPED_STEPS + PROFILED_STEPS:
                self.finish()

    def finish(self) -> None:
        """Write what has been recorded, if anything has; where that fails, the outcome says so."""
        if self._profiler is None:
            return
        self._profiler.stop()
        # The ending by which TensorBoard's plugin knows a trace.
        path = self._directory / "steps.pt.trace.json"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(path))
            self.outcome = f"profile: {path}: open it in TensorBoard or on ui.perfetto.dev"
        except (OSError, RuntimeError) as error:
            self.outcome = f"warning: {path} cannot be written ({error}): there is no profile"
        self._profiler = None
