"""A profile is optional: where it cannot be written the run continues."""

from pathlib import Path

from ebu.run.profiling import PROFILED_STEPS, SKIPPED_STEPS, Profile


def test_a_profile_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    profile = Profile(tmp_path / "run/profile")
    for _ in range(SKIPPED_STEPS + PROFILED_STEPS + 1):
        profile.step(learning=True)
    profile.finish()
    assert profile.outcome.startswith("warning:")
    assert str(tmp_path / "run/profile") in profile.outcome


def test_a_profile_is_written_once_and_its_outcome_names_the_file(tmp_path: Path) -> None:
    profile = Profile(tmp_path)
    for _ in range(SKIPPED_STEPS + PROFILED_STEPS):
        profile.step(learning=True)
    (trace,) = tmp_path.iterdir()
    assert str(trace) in profile.outcome
    trace.unlink()
    for _ in range(SKIPPED_STEPS + PROFILED_STEPS):
        profile.step(learning=True)
    profile.finish()
    assert not list(tmp_path.iterdir())


def test_too_few_steps_are_said(tmp_path: Path) -> None:
    profile = Profile(tmp_path)
    profile.step(learning=True)
    profile.finish()
    assert "no profile was written" in profile.outcome
