"""What is recorded of a machine."""

import os
import sys

import pytest

from ebu.run.hardware import graphics_card, hardware


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows drivers as files")
def test_without_a_driver_there_is_no_card_and_nothing_to_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert graphics_card() is None
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidiactl")
    with pytest.raises(ImportError):
        graphics_card()


def test_hardware_names_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebu.run.hardware.all_cores", lambda: 3)
    assert ", 3 cores, " in hardware()
