"""What is said on the command line of a policy from elsewhere; imports no torch."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ebu.errors import UsageError


@dataclass(frozen=True)
class PolicyFlags:
    """What a policy from elsewhere may not say of itself."""

    game: str | None = None
    """Game of a teacher from elsewhere: a Stable-Baselines3 zip, CleanRL's weights, an ONNX file,
    or a function (module:function)."""
    protocol: str | None = None
    """Protocol of a teacher from elsewhere [default: its file's, else paper]."""
    action_set: Literal["minimal", "full"] | None = None
    """Atari actions of a teacher from elsewhere: those that the game uses, or all 18 [default: as
    many as it has outputs]."""
    policy_outputs: Literal["values", "logits"] | None = None
    """What a function or an ONNX file gives for each action: action values or logits."""
    unit_pixels: bool = False
    """An ONNX file takes pixels from 0 to 1, not from 0 to 255."""

    def check_unused(self, run_dir: Path) -> None:
        """Raise `UsageError` for a flag that says of a run what its config.json says."""
        for entry in fields(self):
            if getattr(self, entry.name) not in (None, False):
                raise UsageError(
                    f"--{entry.name.replace('_', '-')} is for policies from elsewhere, and "
                    f"{run_dir} is a run directory, which has its own: leave it out"
                )
