"""Policies from elsewhere: the outputs are their library's, and what is damaged is one line."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from agents.foreign.flags import PolicyFlags
from agents.foreign.formats import is_foreign, read_policy
from agents.foreign.layers import TOLERANCE, Layers, build, layers_in
from agents.networks import QNetwork
from ebu.errors import EbuError, UsageError
from tests.agents.foreign.files import (
    CleanDqn,
    CleanDqnAtari,
    CleanPpo,
    CleanPpoAtari,
    clean_rl,
    pickled,
    sb3,
    sb3_names,
)

SIDE = 36
NONE = PolicyFlags()
PIXELS = torch.randint(256, (5, 4, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).byte()
NUMBERS = torch.randn(5, 1, 3, generator=torch.Generator().manual_seed(1))

Agents = list[tuple[str, Callable[[], nn.Module], Tensor, str | None, str]]
AGENTS: Agents = [
    ("dqn_atari", lambda: CleanDqnAtari(6, SIDE), PIXELS, "nature", "values"),
    ("dqn", lambda: CleanDqn(3, 6), NUMBERS, "60-60-60/84", "values"),
    ("ppo_atari", lambda: CleanPpoAtari(6, SIDE), PIXELS, "nature", "logits"),
    ("ppo", lambda: CleanPpo(3, 6), NUMBERS, None, "logits"),
]


@pytest.mark.parametrize("library", ["cleanrl", "sb3"])
@pytest.mark.parametrize(("name", "make", "states", "network", "outputs"), AGENTS)
def test_the_outputs_are_the_librarys_own(
    library: str,
    name: str,
    make: Callable[[], nn.Module],
    states: Tensor,
    network: str | None,
    outputs: str,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    agent = make()
    path = tmp_path / f"{name}.file"
    if library == "sb3":
        sb3(path, agent, 6)
    else:
        clean_rl(path, agent)
    policy = read_policy(path, NONE)
    assert (policy.outputs, policy.num_actions) == (outputs, 6)
    assert policy.steps == (1_000 if library == "sb3" else 0)
    known, found = policy.network(states.shape[1], tuple(states.shape[2:]), 6)
    assert known == network
    assert isinstance(found, QNetwork) == (network is not None)
    with torch.no_grad():
        torch.testing.assert_close(found(states), agent(states), rtol=0, atol=TOLERANCE)


def test_what_a_file_says_of_its_network_counts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent = CleanDqnAtari(6, SIDE)
    raw = {"policy_kwargs": {"normalize_images": "False"}}
    _, found = read_policy(sb3(tmp_path / "raw.zip", agent, 6, **raw), NONE).network(
        4, (SIDE, SIDE), 6
    )
    expected = agent.network(PIXELS.float())
    # Of pixels up to 255 the outputs are large, and round accordingly.
    torch.testing.assert_close(found(PIXELS), expected, rtol=1e-5, atol=1e-5)
    tanh = {"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.ReLU'>"}}
    ppo = CleanPpo(3, 6)
    policy = read_policy(sb3(tmp_path / "ppo.zip", ppo, 6, **tanh), NONE)
    known, found = policy.network(1, (3,), 6)
    assert known == "32-32-32/64"
    first, _, second, _, last = ppo.actor
    with torch.no_grad():
        expected = last(second(first(NUMBERS.flatten(1)).relu()).relu())
        torch.testing.assert_close(found(NUMBERS), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("env_id", "game"),
    [
        ("BreakoutNoFrameskip-v4", "Breakout"),
        ("ALE/MsPacman-v5", "MsPacman"),
        ("CartPole-v1", "CartPole-v1"),
    ],
)
def test_cleanrls_arguments_name_the_game(env_id: str, game: str, tmp_path: Path) -> None:
    path = clean_rl(tmp_path / "it.cleanrl_model", CleanDqn(3, 6), env_id=env_id, seed=1)
    assert read_policy(path, NONE).game == game


def test_layers_that_do_not_fit_the_states_are_refused() -> None:
    layers = layers_in(CleanDqn(3, 6).state_dict(), "network.")
    with pytest.raises(UsageError, match=r"of 3 numbers, and the game shows 1 × \[4\]"):
        build(Layers((), tuple(layers), "ReLU"), 1, (4,))


# --- what is refused ------------------------------------------------------------------------


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/unpickled-by-ebu",)


def damaged(tmp_path: Path, kind: str) -> Path:
    agent, path = CleanDqn(3, 6), tmp_path / "it.zip"
    weights: dict[str, Any] = dict(agent.state_dict())
    if kind == "code":
        path.write_bytes(pickled({**weights, "evil": Evil()}))
    elif kind == "not finite":
        weights["network.0.bias"][0] = torch.nan
        path.write_bytes(pickled(weights))
    elif kind == "other names":
        path.write_bytes(pickled({f"x{name}": weight for name, weight in weights.items()}))
    elif kind == "more layers":
        path.write_bytes(pickled({**weights, "lstm.weight": torch.zeros(2, 2)}))
    elif kind == "no bias":
        del weights["network.2.bias"]
        path.write_bytes(pickled(weights))
    elif kind == "not following":
        weights["network.2.weight"] = torch.zeros(84, 119)
        path.write_bytes(pickled(weights))
    elif kind == "pretends to be large":
        weights["network.0.weight"] = torch.zeros(1).expand(1 << 20, 1 << 20)
        path.write_bytes(pickled(weights))
    elif kind == "cut":
        path.write_bytes(pickled(weights)[:-200])
    elif kind == "continuous":
        sb3(path, CleanPpo(3, 6), 6)
        add(path, "policy.pth", pickled({**sb3_names(CleanPpo(3, 6)), "log_std": torch.zeros(6)}))
    elif kind == "no data":
        sb3(path, agent, 6)
        add(path, "data", b"{")
    elif kind == "activation":
        sb3(path, agent, 6, policy_kwargs={"activation_fn": "<class 'torch.nn.ELU'>"})
    elif kind == "other actions":
        sb3(path, agent, 7)
    return path


def add(path: Path, name: str, content: bytes) -> None:
    """Replace a file of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()} | {name: content}
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in members.items():
            archive.writestr(each, data)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("code", "more than tensors and plain values"),
        ("not finite", "'network.0.bias' in it is not finite"),
        ("other names", "not named as those of CleanRL's dqn and ppo"),
        ("more layers", "not named as those of CleanRL's dqn and ppo"),
        ("no bias", "neither dense nor a convolution"),
        ("not following", "its layers do not follow each other"),
        ("pretends to be large", "'network.0.weight' in it is no weight"),
        ("cut", "no zip archive"),
        ("continuous", "its actions are continuous"),
        ("no data", "no JSON"),
        ("activation", "its activation is 'ELU'"),
        ("other actions", "its actions are not one discrete choice"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(
    kind: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(EbuError, match=said) as error:
        read_policy(damaged(tmp_path, kind), NONE)
    assert not isinstance(error.value, UsageError)
    assert str(error.value).isprintable()
    assert not Path("/tmp/unpickled-by-ebu").exists()


@pytest.mark.parametrize("kind", ["sb3", "cleanrl"])
def test_damage_anywhere_ends_in_weights_or_in_one_line(kind: str, tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "it.zip"
    content = sb3(path, CleanDqn(3, 6), 6) if kind == "sb3" else clean_rl(path, CleanDqn(3, 6))
    whole = np.frombuffer(content.read_bytes(), dtype=np.uint8)
    refused = 0
    for _ in range(60):
        broken = whole.copy()
        # Weights are most of the bytes: the others are hit as often.
        low = int(rng.choice([0, max(0, len(whole) - 2_000)]))
        places = low + rng.integers(min(2_000, len(whole) - low), size=3)
        broken[places] = rng.integers(256, size=3)
        path.write_bytes(broken.tobytes())
        refused += "\n" not in said_of(path)
    # The other flips have changed weights, or names that are not read.
    assert refused > 10


def said_of(path: Path) -> str:
    """Why a file is refused; a line break where it is not."""
    try:
        read_policy(path, NONE)
    except EbuError as error:
        return str(error)
    return "\n"


def test_only_files_and_functions_are_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("nothing")
    assert is_foreign(path)
    assert is_foreign(Path("tests.agents.foreign.test_formats:first_number"))
    assert not is_foreign(tmp_path)
    assert not is_foreign(tmp_path / "absent.zip")
    with pytest.raises(UsageError, match="is no run directory and none of"):
        read_policy(path, NONE)
    pipe = tmp_path / "pipe.zip"
    os.mkfifo(pipe)
    assert not is_foreign(pipe)


# --- functions ------------------------------------------------------------------------------


def first_number(stacks: np.ndarray) -> np.ndarray:
    return np.stack([-stacks[:, -1, 0], stacks[:, -1, 0]], axis=1)


def wrong_shape(stacks: np.ndarray) -> np.ndarray:
    return np.zeros(len(stacks))


def fails(stacks: np.ndarray) -> np.ndarray:
    raise RuntimeError("out of\nluck")


def test_a_function_gives_the_outputs() -> None:
    flags = PolicyFlags(policy_outputs="values")
    policy = read_policy(Path(f"{__name__}:first_number"), flags)
    _, network = policy.network(1, (3,), 2)
    found = network(NUMBERS)
    assert policy.outputs == "values"
    assert torch.equal(found[:, 1], NUMBERS[:, 0, 0])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong_shape", r"outputs of shape \(5,\) for 5 states, and not \(5, 2\)"),
        ("fails", "failed: RuntimeError: out of luck"),
    ],
)
def test_a_function_that_fails_is_one_line(name: str, said: str) -> None:
    policy = read_policy(Path(f"{__name__}:{name}"), NONE)
    _, network = policy.network(1, (3,), 2)
    with pytest.raises(EbuError, match=said) as error:
        network(NUMBERS)
    assert "\n" not in str(error.value)


def test_what_is_no_function_is_a_usage_error() -> None:
    for typed in ("no_such_module:act", f"{__name__}:absent", f"{__name__}:SIDE"):
        with pytest.raises(UsageError):
            read_policy(Path(typed), NONE)


# --- ONNX -----------------------------------------------------------------------------------


def onnx_file(
    path: Path,
    sizes: list[Any],
    *,
    kind: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("out",),
    about: dict[str, str] | None = None,
) -> Path:
    """A file that gives the first number of each state, times 1, 2, 3."""
    count = int(np.prod([size for size in sizes[1:] if isinstance(size, int)]))
    matrix = np.zeros((count, 3), np.float32)
    matrix[0] = 1, 2, 3
    nodes = [
        helper.make_node("Cast", ["in"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        *(helper.make_node("MatMul", ["flat", "matrix"], [name]) for name in outputs),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("in", kind, sizes)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [sizes[0], 3]) for name in outputs],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, about or {})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("sizes", "kind", "unit"),
    [
        (["b", 4, SIDE, SIDE], TensorProto.UINT8, False),
        (["b", SIDE, SIDE, 4], TensorProto.FLOAT, False),
        ([1, 4, SIDE, SIDE], TensorProto.FLOAT, True),
    ],
)
def test_an_onnx_file_takes_states_as_its_input_is_laid_out(
    sizes: list[Any], kind: int, unit: bool, tmp_path: Path
) -> None:
    path = onnx_file(tmp_path / "it.onnx", sizes, kind=kind)
    policy = read_policy(path, PolicyFlags(policy_outputs="logits", unit_pixels=unit))
    _, network = policy.network(4, (SIDE, SIDE), 3)
    first = PIXELS[:, 0, 0, 0].float() / (255 if unit else 1)
    torch.testing.assert_close(network(PIXELS), first[:, None] * torch.tensor([1.0, 2.0, 3.0]))


def test_an_onnx_file_of_vectors_says_what_it_is(tmp_path: Path) -> None:
    about = {"game": "CartPole-v1", "protocol": "paper", "outputs": "values"}
    path = onnx_file(tmp_path / "it.onnx", ["b", 3], outputs=("logits", "extra"), about=about)
    policy = read_policy(path, NONE)
    assert (policy.outputs, policy.game, policy.num_actions) == ("values", "CartPole-v1", 3)
    _, network = policy.network(1, (3,), 3)
    torch.testing.assert_close(network(NUMBERS)[:, 0], NUMBERS[:, 0, 0])


def test_onnx_files_that_are_no_policy_are_one_line(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "two.onnx", ["b", 3], outputs=("one", "other"))
    with pytest.raises(EbuError, match=r"outputs \(one, other\) not one has a number"):
        read_policy(path, NONE)
    path.write_bytes(b"nothing")
    with pytest.raises(EbuError, match="is no ONNX file that can be run"):
        read_policy(path, NONE)
    policy = read_policy(onnx_file(path, ["b", 5]), NONE)
    _, network = policy.network(1, (3,), 3)
    with pytest.raises(EbuError, match=r"takes states of \[5\], and the game shows \[1, 3\]"):
        network(NUMBERS)


def test_weights_outside_of_an_onnx_file_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = onnx_file(tmp_path / "it.onnx", ["b", 300])
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(EbuError, match="is no ONNX file that can be run"):
        read_policy(path, NONE)


def test_what_holds_no_json_object_is_refused(tmp_path: Path) -> None:
    path = sb3(tmp_path / "it.zip", CleanDqn(3, 6), 6)
    add(path, "data", json.dumps([1]).encode())
    with pytest.raises(EbuError, match="its data are no settings"):
        read_policy(path, NONE)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert "policy.pth" in archive.namelist()
