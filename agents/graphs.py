"""CUDA graphs: device work that is launched once and replayed from then on."""

from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ebu.staging import Staging

ResultT = TypeVar("ResultT")
WARM_UP_CALLS = 3
"""Calls before a capture, in which libraries choose their algorithms and allocate workspaces."""


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    arguments: list[Any]
    result: Any


class Captured(Generic[ResultT]):
    """A function of tensors; on a GPU a CUDA graph of it for each set of shapes.

    The function may compute with its arguments and with tensors that keep their place in memory.
    All else that it reads, arguments that are no arrays included, is fixed by its first call. What
    it returns on a GPU is overwritten by the next call with the same shapes.

    | argument | meaning |
    | --- | --- |
    | staging | brings arrays to the device |
    | changes | gives all tensors that the function changes, for the calls before a capture to |
    | | leave no trace |
    | enabled | False launches every operation anew, as on the CPU |
    """

    def __init__(
        self,
        function: Callable[..., ResultT],
        staging: Staging,
        *,
        changes: Callable[[], Iterable[Tensor]] = list,
        enabled: bool = True,
    ) -> None:
        self._function = function
        self._staging = staging
        self._changes = changes
        self._enabled = enabled and staging.device.type == "cuda"
        self._graphs: dict[tuple[Any, ...], _Graph] = {}

    def __call__(self, *arguments: Any) -> ResultT:
        """Call the function; numpy arrays among the arguments reach it as tensors."""
        if not self._enabled:
            return self._function(*map(self._on_device, arguments))
        key = tuple(
            tuple(argument.shape) if isinstance(argument, np.ndarray | Tensor) else id(argument)
            for argument in arguments
        )
        captured = self._graphs.get(key)
        if captured is None:
            captured = self._graphs[key] = self._capture(
                [
                    place.clone() if isinstance(place, Tensor) else place
                    for place in map(self._on_device, arguments)
                ]
            )
        else:
            for argument, place in zip(arguments, captured.arguments, strict=True):
                if isinstance(argument, np.ndarray):
                    self._staging.upload(argument, out=place)
                elif isinstance(argument, Tensor):
                    place.copy_(argument)
        captured.graph.replay()
        result: ResultT = captured.result
        return result

    def _on_device(self, argument: Any) -> Any:
        return self._staging.upload(argument) if isinstance(argument, np.ndarray) else argument

    def _capture(self, arguments: list[Any]) -> _Graph:
        before = [tensor.detach().clone() for tensor in self._changes()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                self._function(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            for tensor, value in zip(self._changes(), before, strict=True):
                tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = self._function(*arguments)
        return _Graph(graph, arguments, result)
