"""Students: the networks that a teacher is distilled into, and the directories they are kept in."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from agents.architectures import ARCHITECTURES, unknown, whole_architecture
from agents.distillation.experimental.factorised import check_ranks, factorise
from agents.networks import Features, PlainHead, QNetwork, build_network
from agents.trained import STUDENT, WEIGHTS, Outputs, TrainedAgent
from ebu.errors import EbuError, UsageError
from ebu.run.checkpoint import save_checkpoint
from ebu.run.directory import CONFIG, differences, read_config, write_config

TEACHER = "teacher"
"""The name of the teacher's own architecture: a born-again student, or what is factorised."""

# What playing games takes from the teacher's settings; the rest was about its training.
PLAYING = ("game", "protocol", "epsilon_end", "random_start_actions")


class Student(nn.Module):
    """A Q-network that is taught, and what its outputs are.

    | attribute | meaning |
    | --- | --- |
    | name | of the network: `build` makes it again |
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

    def features(self, states: Tensor) -> Features:
        """The outputs with all that led to them; see `QNetwork.features`."""
        return self.network.features(states)


def check_name(name: str) -> None:
    """Raise `UsageError`, one line, for a name of which no student can be made.

    What depends on the teacher, such as whether ranks fit its layers, `student_of` finds.
    """
    base, factorised, ranks = name.partition("@")
    if base != TEACHER and whole_architecture(base) is None:
        raise UsageError(
            unknown(
                "student",
                name,
                [*ARCHITECTURES, TEACHER],
                "widths such as 16-32-32/256, or the teacher factorised: teacher@half, "
                "teacher@energy=0.9, teacher@vbmf, teacher@tucker=16,32,32,32,svd=64",
            )
        )
    if factorised:
        check_ranks(ranks)


def build(
    name: str,
    num_actions: int,
    *,
    outputs: Outputs = "logits",
    stack: int = 4,
    frame_shape: tuple[int, ...] = (84, 84),
    generator: torch.Generator | None = None,
) -> Student:
    """A student with new weights, drawn as those of a Q-network that learns from games.

    Without a generator the weights are the same in every call.

    Raises `UsageError`, one line, for a name that stands for no network.
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
    | name | of a network; `teacher` is the teacher's; after an `@` how it is factorised |
    | temperature | by which a factorised policy's logits start as the teacher's outputs divided |
    | generator | draws new weights |

    Raises `UsageError`, one line, for a name of which no student of this teacher can be made.
    """
    check_name(name)
    own = str(teacher.config["settings"]["network"])
    base, factorised, ranks = name.partition("@")
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
            f"student '{name}': what is factorised is the teacher's own network, here {own}: "
            f"write {TEACHER}@{ranks}"
        )
    student = Student(*factorise(teacher, ranks), outputs)
    if outputs == "logits":
        with torch.no_grad():
            for head in student.modules():
                if isinstance(head, PlainHead):
                    for weight in head[-1].parameters():
                        weight.div_(temperature)
    return student


def num_parameters(network: nn.Module) -> int:
    """How many weights and biases a network has."""
    return sum(weight.numel() for weight in network.parameters())


def multiply_adds(
    network: nn.Module, *, stack: int = 4, frame_shape: tuple[int, ...] = (84, 84)
) -> int:
    """Multiplications, each with its addition, that one state takes; biases are not counted.

    Half of what torch's counter reports, which counts both. It sees the operations as they are
    carried out. The first convolution is carried out over blocks of pixels, another order of the
    very same products: 2 · 2 · (stack · stride²) for each output are the kernel's stack · (2 ·
    stride)². So the count is that of the published network.
    """
    device = next(network.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, stack, *frame_shape, device=device))
    return int(counter.get_total_flops()) // 2


def save_student(
    directory: Path,
    student: Student,
    *,
    teacher: TrainedAgent,
    teacher_dir: Path,
    seed: int,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a student's directory, whole or not at all: one that loads and is scored like a run's.

    config.json is written last: until then it is no run directory. Saved again with the same
    settings, the student takes the place of the one before, which is there until then.

    | argument | meaning |
    | --- | --- |
    | teacher, teacher_dir | whose game and setting it plays; frames it has seen |
    | seed | of the student |
    | settings | more of them for its config.json: JSON values, how it was distilled |

    Raises `UsageError` where `directory` holds another student or a run, `EbuError` where the disk
    is full or fails; what is in the directory is then as it was.
    """
    of_teacher = teacher.config["settings"]
    config = {
        "settings": {
            **(settings or {}),
            **{name: of_teacher[name] for name in PLAYING if name in of_teacher},
            "agent": STUDENT,
            "network": student.name,
            "outputs": student.outputs,
            "seed": seed,
            "teacher": str(teacher_dir),
        },
        "environment": teacher.config["environment"],
    }
    known = os.path.exists(directory / CONFIG)
    if known:
        _check_same(directory, config)
    state = {
        "agent": {"learner": {"online": dict(student.network.state_dict())}},
        "frames": teacher.frames,
    }
    name = f"frames-{teacher.frames:012d}"
    save_checkpoint(directory / WEIGHTS["final"], name, state, keep=1)
    if known:
        return
    try:
        write_config(directory, config)
    except OSError as error:
        raise EbuError(
            f"{directory / CONFIG} cannot be written: {error.strerror or error}; free space or "
            "choose another directory"
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
