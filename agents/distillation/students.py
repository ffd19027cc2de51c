"""Students: the networks that a teacher is distilled into, and their run directories."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from agents.architectures import TEACHER, check_student, whole_architecture
from agents.distillation.records import Sizes
from agents.distillation.settings import load_experimental
from agents.foreign.policy import Called
from agents.networks import PlainHead, QNetwork, build_network
from agents.trained import STUDENT, WEIGHTS, Outputs, TrainedAgent, load_agent
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import save_checkpoint
from ebu.run.directory import CONFIG, differences, identity_of, read_config, write_config
from ebu.run.files import is_there

# The teacher's settings that matter for playing; the others were about its training.
PLAYING = (
    *("game", "protocol", "action_set", "epsilon_end", "random_start_actions"),
    *("env_args", "env_wrappers", "eval_max_steps"),
)


class Student(nn.Module):
    """A Q-network in distillation, and what its outputs are.

    | attribute | meaning |
    | --- | --- |
    | name | of the network: `build` rebuilds it |
    | outputs | "logits" of a policy, or action "values" |
    | network | the network itself |
    """

    def __init__(self, name: str, network: QNetwork, outputs: Outputs) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.outputs = outputs

    def forward(self, states: Tensor) -> Tensor:
        """Outputs (B, A) float32 of states (B, stack, *frame_shape), uint8 or float32."""
        outputs: Tensor = self.network(states)
        return outputs.float()


def build(
    name: str,
    num_actions: int,
    *,
    outputs: Outputs = "logits",
    stack: int = 4,
    frame_shape: tuple[int, ...] = (84, 84),
    generator: torch.Generator | None = None,
) -> Student:
    """A student with new weights, initialised as a Q-network that is trained on games.

    Without a generator the weights are the same in every call.

    Raises `UsageError`, one line, for an unknown name.
    """
    network = build_network(
        name,
        stack=stack,
        frame_shape=frame_shape,
        num_actions=num_actions,
        generator=generator or torch.Generator(),
    )
    return Student(name, network, outputs)


def student_of(
    teacher: TrainedAgent,
    name: str,
    *,
    outputs: Outputs = "logits",
    temperature: float = 1.0,
    generator: torch.Generator,
) -> Student:
    """A student for a teacher's game: with new weights, or the teacher's network factorised.

    | argument | meaning |
    | --- | --- |
    | name | of a network; `teacher` is the teacher's; after an `@` its ranks |
    | temperature | divides the teacher's outputs to give a factorised policy's first logits |
    | generator | draws new weights |

    Raises `UsageError`, one line, for a name that stands for no student of this teacher.
    """
    check_student(name)
    own = str(teacher.config["settings"]["network"])
    base, factorised, ranks = name.partition("@")
    if (base == TEACHER or factorised) and not isinstance(teacher.network, QNetwork):
        raise UsageError(
            f"student '{name}': the teacher ({own}) has no network of its own here: name one, for "
            "instance net2"
        )
    if not factorised:
        environment = teacher.config["environment"]
        return build(
            own if base == TEACHER else base,
            teacher.num_actions,
            outputs=outputs,
            stack=environment["stack"],
            frame_shape=tuple(environment["frame_shape"]),
            generator=generator,
        )
    if base != TEACHER and whole_architecture(base) != whole_architecture(own):
        raise UsageError(
            f"student '{name}': only the teacher's own network, here {own}, can be factorised: "
            f"write {TEACHER}@{ranks}"
        )
    built, network = load_experimental("factorised").factorise(teacher, ranks)
    student = Student(built, network, outputs)
    if outputs == "logits":
        with torch.no_grad():
            for head in student.modules():
                if isinstance(head, PlainHead):
                    for weight in head[-1].parameters():
                        weight.div_(temperature)
    return student


def num_parameters(network: nn.Module) -> int:
    """Number of weights and biases of a network."""
    return sum(weight.numel() for weight in network.parameters())


def digest_of(network: nn.Module) -> str:
    """SHA-256 of a network's weights and their names."""
    digest = sha256()
    for name, weight in network.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def multiply_adds(
    network: nn.Module, *, stack: int = 4, frame_shape: tuple[int, ...] = (84, 84)
) -> int:
    """Multiply-adds of one state, without biases: half of what torch's counter reports.

    The first convolution works on blocks of pixels, with the same products in another order:
    2 · 2 · (stack · stride²) for each output are the kernel's stack · (2 · stride)². So this is the
    count of the published network.
    """
    device = next(network.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, stack, *frame_shape, device=device))
    return int(counter.get_total_flops()) // 2


def network_sizes(network: nn.Module, environment: Mapping[str, Any]) -> Sizes:
    """The sizes of a network that plays in this environment, as config.json describes it.

    They are 0, for unknown, of what is not wholly computed by torch, such as an ensemble with an
    ONNX file.
    """
    if any(isinstance(module, Called) for module in network.modules()):
        return {"parameters": 0, "multiply_adds": 0}
    return {
        "parameters": num_parameters(network),
        "multiply_adds": multiply_adds(
            network, stack=environment["stack"], frame_shape=tuple(environment["frame_shape"])
        ),
    }


def save_student(
    directory: Path,
    student: Student,
    *,
    teacher: TrainedAgent,
    teacher_dir: Path,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    temperature: float | None = None,
) -> None:
    """Write a student's run directory, whole or not at all: it loads and is scored like a run's.

    config.json is written last: until then it is no run directory. A student saved again with the
    same settings replaces the earlier one.

    | argument | meaning |
    | --- | --- |
    | teacher, teacher_dir | whose game and rules of play it has, and whose frames it counts |
    | settings | further entries of its config.json, JSON values: how it was distilled |
    | temperature | τ where it changes from save to save: it is in the checkpoint |

    Raises `UsageError` where `directory` holds another student or a run, `EbuError` where the disk
    is full or fails; the directory is then unchanged.
    """
    of_teacher = teacher.config["settings"]
    config = {
        "settings": {
            **(settings or {}),
            **{name: of_teacher[name] for name in PLAYING if of_teacher.get(name) is not None},
            "agent": STUDENT,
            "network": student.name,
            "outputs": student.outputs,
            "seed": seed,
            "teacher": str(teacher_dir),
        },
        "environment": teacher.config["environment"],
    }
    known = is_there(directory / CONFIG)
    if known:
        _check_same(directory, config)
    state = {
        "agent": {"learner": {"online": dict(student.network.state_dict())}},
        "frames": teacher.frames,
        **({} if temperature is None else {"temperature": temperature}),
    }
    name = f"frames-{teacher.frames:012d}"
    save_checkpoint(directory / WEIGHTS["final"], name, state, run=identity_of(config), keep=1)
    if not known:
        write_config(directory, config)


def load_student(directory: Path, device: torch.device) -> TrainedAgent:
    """Load a student that `save_student` wrote.

    Raises `EbuError` where it is damaged or lost: without its directory it is trained again, with
    the same result.
    """
    try:
        return load_agent(directory, device=device)
    except EbuError as error:
        raise EbuError(
            f"the student in {directory} is damaged, or a file of it is lost: put back a copy, or "
            "delete that directory and run the same command again to train it again"
        ) from error


def _check_same(directory: Path, config: Mapping[str, Any]) -> None:
    before = read_config(directory)
    differing = differences(
        {**before["settings"], **before["environment"]},
        {**config["settings"], **config["environment"]},
        # A path that may be relative: it differs between working directories.
        may_change={"teacher"},
    )
    if differing:
        raise UsageError(
            f"{directory} holds another agent: {'; '.join(differing)}. Choose another directory"
        )
