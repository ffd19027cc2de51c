"""Device, threads and precision: chosen once, kept where the next machine has them."""

import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch

from ebu.errors import UsageError
from ebu.run.machine import (
    Machine,
    arithmetic,
    choose_machine,
    choose_num_envs,
    has_bfloat16,
    prepare_torch,
)

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
    # On a GPU the emulators have all cores; torch only launches, unless threads are asked for.
    assert machine.torch_threads == 1
    assert choose_machine("cuda", 4, "auto", None).torch_threads == 4
    # On the CPU one is left to other programs.
    assert choose_machine("cpu", 0, "auto", None).torch_threads == 7
    assert choose_machine("cpu", 0, "auto", None, processes=2).torch_threads == 3
    assert choose_machine("cpu", 0, "auto", None, processes=9).torch_threads == 1
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


def test_a_run_that_took_all_cores_keeps_them(here: Any) -> None:
    here(4)
    before = config_of(choose_machine("cpu", 0, "float32", None))
    before["settings"]["threads"] = 4  # As earlier versions chose.
    again = choose_machine(*AUTO, before)
    assert again.threads == 4
    assert again.warnings == []


def test_a_smaller_machine_changes_what_was_automatic_and_warns(here: Any) -> None:
    here(16, cuda=True, bfloat16=True)
    before = config_of(choose_machine(*AUTO, None))
    here(4)
    machine = choose_machine(*AUTO, before)
    assert machine.settings() == {"device": "cpu", "threads": 3, "precision": "bfloat16"}
    assert [line.partition(":")[0] for line in machine.warnings] == [
        "no bfloat16 instructions here",
        "device was cuda, is cpu here",
        "threads was 16, is 3 here",
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
    assert machine.settings() == {"device": "cpu", "threads": 3, "precision": "float32"}
    assert machine.automatic == ["device", "threads"]


def test_the_environments_of_a_run_are_asked_for_recorded_or_those_of_its_device() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [choose_num_envs(0, device, None) for device in (cpu, cuda)] == [8, 64]
    before = {"settings": {"num_envs": 16}}
    assert choose_num_envs(0, cuda, before) == 16
    assert choose_num_envs(5, cuda, before) == 5


def test_tf32_is_for_gpus_that_have_it(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    capability = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    here(4, cuda=True)
    before = config_of(choose_machine("auto", 0, "tf32", None))
    assert before["settings"]["precision"] == "tf32"
    capability[0] = (7, 5)
    for device in ("cuda", "cpu"):
        with pytest.raises(UsageError, match="tf32: only GPUs"):
            choose_machine(device, 0, "tf32", None)
    # A run that was started with it continues in float32.
    here(4)
    again = choose_machine("auto", 0, "tf32", before)
    assert again.precision == "tf32"
    assert any("no tf32" in line for line in again.warnings)


def test_products_of_float32_are_those_asked_for() -> None:
    def allowed() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = allowed()
    cpu, cuda, threads = torch.device("cpu"), torch.device("cuda"), torch.get_num_threads()
    try:
        prepare_torch(cpu, threads)
        assert allowed() == before
        prepare_torch(cuda, threads)
        assert allowed() == (False, False)
        with arithmetic(cuda, "tf32"):
            assert allowed() == (True, True)
            with arithmetic(cuda, "bfloat16"), arithmetic(cpu, "tf32"):
                assert allowed() == (False, False)
            assert allowed() == (True, True)
        assert allowed() == (False, False)
        prepare_torch(cuda, threads, precision="tf32")
        assert allowed() == (True, True)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("threads", [1, 2])
def test_no_thread_steps_with_subnormal_numbers(threads: int) -> None:
    """Adam takes ten times as long with them, and units that no longer fire leave them."""
    code = f"""
        import sys
        import torch
        from agents.optimizers import Adam
        from ebu.run.machine import prepare_torch
        prepare_torch(torch.device("cpu"), {threads})
        # Enough elements for every thread.
        weight = torch.ones(1 << 20, requires_grad=True)
        optimizer = Adam([weight], learning_rate=1e-3)
        average = optimizer.state[weight]["exp_avg"]
        average[::2] = 1.2e-38
        average[1::2] = 2e-38
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        # The oldest instructions subtract a tenth, which is flushed itself: nothing shrinks.
        oldest = torch.backends.cpu.get_cpu_capability() == "DEFAULT"
        assert average.view(-1, 2).count_nonzero(0).tolist() == [oldest << 19, 1 << 19]
        # Everything else computes as ever.
        assert sys.float_info.min / 2 > 0
        assert torch.tensor(1e-38) * 0.5 > 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_device_that_is_asked_for_must_be_there(here: Any) -> None:
    here(16, cuda=True)
    before = config_of(choose_machine(*AUTO, None))
    here(16)
    with pytest.raises(UsageError, match="no CUDA device"):
        choose_machine("cuda", 0, "auto", before)
