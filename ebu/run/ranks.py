"""Ranks: the processes that share one run, and what they tell each other.

torchrun starts them: `torchrun --nproc-per-node 2 train.py …`. Each rank plays its part of the
environments into its part of the replay memory and trains on its part of each minibatch; all have
the same weights and take the same decisions at the same step.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ebu.errors import EbuError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

ValueT = TypeVar("ValueT")

TIMEOUT = timedelta(minutes=30)
"""A rank that is killed is noticed at once, a machine that loses its network after this time."""
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Ranks:
    """One of the processes of a run.

    | field | meaning |
    | --- | --- |
    | rank, world_size | which process this is, of how many |
    | local_rank, local_world_size | the same among those of this machine |

    A single process is rank 0 of 1: every method then returns at once, without torch.distributed.
    All others must be called by every rank, in the same order.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> "Ranks":
        """The rank that torchrun's environment variables name; without all of them, a single one.

        Raises `UsageError` for values that torchrun does not give.
        """
        values = [os.environ.get(name) for name in _VARIABLES]
        if None in values:
            return cls()
        try:
            rank, world_size, local_rank, local_world_size = (int(value or "") for value in values)
        except ValueError:
            rank, world_size, local_rank, local_world_size = -1, 0, -1, 0
        if not (0 <= rank < world_size and 0 <= local_rank < local_world_size <= world_size):
            given = " ".join(
                f"{name}={value}" for name, value in zip(_VARIABLES, values, strict=True)
            )
            raise UsageError(
                f"{given} is no rank: start with torchrun --nproc-per-node 2 train.py …"
            )
        return cls(rank, world_size, local_rank, local_world_size)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the logs and prints."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """Whether the run has no other process."""
        return self.world_size == 1

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Connect the ranks for the time of this block, in which only the first prints."""
        if self.is_single:
            yield
            return
        import torch

        # Tensors on the CPU are sent by gloo, on a GPU by NCCL.
        backend = "gloo"
        if torch.cuda.is_available() and torch.distributed.is_nccl_available():
            backend = "cpu:gloo,cuda:nccl"
            if self.local_rank < torch.cuda.device_count():
                torch.cuda.set_device(self.local_rank)
        with contextlib.ExitStack() as silence:
            if not self.is_first:
                nowhere = silence.enter_context(open(os.devnull, "w", errors="replace"))
                silence.enter_context(contextlib.redirect_stdout(nowhere))
                silence.enter_context(contextlib.redirect_stderr(nowhere))
            with _connection():
                torch.distributed.init_process_group(backend, timeout=TIMEOUT)
            try:
                yield
            except BaseException:
                # Others may be waiting for this rank: the end of gloo's connections tells them, and
                # its threads must not outlive the interpreter. NCCL would wait for the others.
                if backend == "gloo":
                    torch.distributed.destroy_process_group()
                raise
            torch.distributed.destroy_process_group()

    def part_of(self, whole: int, flag: str) -> int:
        """This rank's part of a number that is given, by a flag, for the whole run.

        Raises `UsageError` where the ranks cannot have equal parts.
        """
        part, rest = divmod(whole, self.world_size)
        if rest:
            raise UsageError(
                f"{flag} {whole} cannot be shared out equally to {self.world_size} processes: "
                f"type {flag} {self.world_size * (part + 1)}"
            )
        return part

    def sums(self, numbers: Sequence[int]) -> list[int]:
        """The sum over all ranks of each of these numbers."""
        if self.is_single:
            return list(numbers)
        import torch

        total = torch.tensor(numbers)
        with _connection():
            torch.distributed.all_reduce(total)
        sums: list[int] = total.tolist()
        return sums

    def average(self, numbers: "Tensor") -> None:
        """Replace a tensor by its mean over all ranks; becomes part of CUDA graphs."""
        if self.is_single:
            return
        import torch

        with _connection():
            torch.distributed.all_reduce(numbers)
        numbers /= self.world_size

    def broadcast(self, tensors: Sequence["Tensor"]) -> None:
        """Replace tensors by those of the first rank."""
        if self.is_single:
            return
        import torch

        with _connection():
            for tensor in tensors:
                # A tensor that is sent must lie in memory in the order of its axes.
                sent = tensor.detach().contiguous()
                torch.distributed.broadcast(sent, src=0)
                tensor.detach().copy_(sent)

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in their order."""
        if self.is_single:
            return [value]
        import torch

        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        with _connection():
            torch.distributed.all_gather(lengths, torch.tensor([len(text)]))
            longest = max(int(length) for length in lengths)
            texts = [torch.empty(longest, dtype=torch.uint8) for _ in lengths]
            padded = torch.nn.functional.pad(text, (0, longest - len(text)))
            torch.distributed.all_gather(texts, padded)
        return [
            json.loads(each[: int(length)].numpy().tobytes())
            for each, length in zip(texts, lengths, strict=True)
        ]

    def join(self, rows: list[ValueT]) -> list[ValueT]:
        """The lists of JSON values of all ranks, one after the other."""
        if self.is_single:
            return rows
        return [row for of_rank in self.gather(rows) for row in of_rank]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Where one rank raises `EbuError` in this block, raise it on the first and end the others.

        Nothing in the block may wait for other ranks.
        """
        if self.is_single:
            yield
            return
        own = None
        try:
            yield
        except EbuError as error:
            own = [str(error), isinstance(error, UsageError)]
        for failure in self.gather(own):
            if failure is not None:
                message, is_usage = failure
                if not self.is_first:
                    sys.exit(2 if is_usage else 1)
                raise UsageError(message) if is_usage else EbuError(message)

    def each(self, task: Callable[[], ValueT]) -> list[ValueT]:
        """Run a task on every rank, as `together` does; the JSON values of all."""
        with self.together():
            value = task()
        return self.gather(value)

    def from_first(self, task: Callable[[], ValueT]) -> ValueT:
        """Run a task on the first rank alone, as `together` does; all get its JSON value."""

        def if_first() -> ValueT | None:
            return task() if self.is_first else None

        value: Any = self.each(if_first)[0]
        result: ValueT = value
        return result


SINGLE = Ranks()


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """Turn what torch raises where a rank has gone into an `EbuError` of one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        # Without the line of torch's own code, and without its advice to programmers.
        reason = re.sub(r"^\[\S*\] ", "", " ".join(str(error).split())).partition(". ")[0][:100]
        raise EbuError(
            "another process of this run has ended or cannot be reached: run the same command "
            f"again to resume from the last checkpoint ({reason})"
        ) from error
