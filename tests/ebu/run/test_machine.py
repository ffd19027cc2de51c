"""Device, threads and precision: chosen once, kept where the next machine has them."""

from typing import Any

import pytest
import torch

from ebu.errors import UsageError
from ebu.run.machine import Machine, choose_machine, has_bfloat16

AUTO = ("auto", 0, "auto")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make this machine one with these cores, with or without a GPU and bfloat16."""

    def be(cores: int, *, cuda: bool = False, bfloat16: bool = False) -> None:
        monkeypatch.setattr("ebu.run.machine.all_cores", lambda: cores)
        monkeypatch.setattr("ebu.run.machine.has_bfloat16", lambda device: bfloat16)
        monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)

    return be


def config_of(machine: Machine) -> dict[str, Any]:
    return {"settings": machine.settings(), "automatic": machine.automatic, "environment": {}}


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", None])
def test_the_processor_says_whether_it_has_bfloat16(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    capabilities = {} if name is None else {name: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bfloat16(torch.device("cpu")) == (name is not None)


def test_a_new_run_takes_what_the_machine_has(here: Any) -> None:
    here(8, cuda=True, bfloat16=True)
    machine = choose_machine(*AUTO, None)
    assert machine.settings() == {"device": "cuda", "threads": 8, "precision": "bfloat16"}
    assert sorted(machine.automatic) == ["device", "precision", "threads"]
    asked = choose_machine("cpu", 2, "float32", None)
    assert asked.settings() == {"device": "cpu", "threads": 2, "precision": "float32"}
    assert asked.automatic == asked.warnings == machine.warnings == []


@pytest.mark.parametrize("started", [AUTO, ("cpu", 4, "float32")])
def test_a_larger_machine_keeps_what_was_recorded(started: tuple[str, int, str], here: Any) -> None:
    here(4)
    before = config_of(choose_machine(*started, None))
    here(16, cuda=True, bfloat16=True)
    again = choose_machine(*AUTO, before)
    assert config_of(again) == before
    assert again.warnings == []


def test_a_smaller_machine_changes_what_was_automatic_and_warns(here: Any) -> None:
    here(16, cuda=True, bfloat16=True)
    before = config_of(choose_machine(*AUTO, None))
    here(4)
    machine = choose_machine(*AUTO, before)
    assert machine.settings() == {"device": "cpu", "threads": 4, "precision": "bfloat16"}
    assert [line.partition(":")[0] for line in machine.warnings] == [
        "no bfloat16 instructions here",
        "device was cuda, is cpu here",
        "threads was 16, is 4 here",
    ]
    # Nothing more is said when it is resumed here.
    again = choose_machine(*AUTO, config_of(machine))
    assert again.settings() == machine.settings()
    assert not any("was" in line.split() for line in again.warnings)


def test_what_was_automatic_may_be_asked_for_later(here: Any) -> None:
    here(4, bfloat16=True)
    before = config_of(choose_machine(*AUTO, None))
    machine = choose_machine("cpu", 2, "float32", before)
    assert machine.settings() == {"device": "cpu", "threads": 2, "precision": "float32"}
    assert sorted(machine.automatic) == ["device", "precision", "threads"]
    assert len(machine.warnings) == 2


def test_threads_that_were_asked_for_stay_on_a_machine_with_fewer_cores(here: Any) -> None:
    here(16)
    before = config_of(choose_machine("cpu", 16, "float32", None))
    here(4)
    assert choose_machine(*AUTO, before).settings() == before["settings"]


def test_runs_that_do_not_say_what_was_automatic_move_too(here: Any) -> None:
    here(16, cuda=True)
    before = config_of(choose_machine("auto", 0, "float32", None))
    del before["automatic"]
    here(4)
    machine = choose_machine(*AUTO, before)
    assert machine.settings() == {"device": "cpu", "threads": 4, "precision": "float32"}
    assert machine.automatic == ["device", "threads"]


def test_a_device_that_is_asked_for_must_be_there(here: Any) -> None:
    here(16, cuda=True)
    before = config_of(choose_machine(*AUTO, None))
    here(16)
    with pytest.raises(UsageError, match="no CUDA device"):
        choose_machine("cuda", 0, "auto", before)
