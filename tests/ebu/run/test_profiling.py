"""A profile is optional: where it cannot be written the run continues."""

from pathlib import Path

import pytest

from ebu.run.profiling import PROFILED_STEPS, SKIPPED_STEPS, Profile


def test_a_profile_that_cannot_be_written_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("a file")
    profile = Profile(tmp_path / "run/profile")
    for _ in range(SKIPPED_STEPS + PROFILED_STEPS + 1):
        profile.step(learning=True)
    profile.finish()
    assert capsys.readouterr().err.count("there is no profile") == 1
