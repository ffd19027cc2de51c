"""CUDA graphs: device work that is launched once and replayed from then on."""

from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

ResultT = TypeVar("ResultT")
WARM_UP_CALLS = 3
"""Calls before a capture, in which libraries choose their algorithms and allocate workspaces."""


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    arguments: dict[str | int, Any]
    result: Any


def capture(
    function: Callable[..., ResultT],
    device: torch.device,
    *,
    changes: Callable[[], Iterable[Tensor]] = list,
    enabled: bool = True,
) -> Callable[..., ResultT]:
    """The function itself, or on a GPU, if enabled, as a CUDA graph: see `Captured`."""
    if device.type != "cuda" or not enabled:
        return function
    return Captured(function, changes=changes)


class Captured(Generic[ResultT]):
    """A function of tensors as a CUDA graph for each set of shapes.

    The function may compute with its arguments and with tensors that keep their place in memory.
    All else that it reads, arguments that are no tensors included, is fixed by its first call. What
    it returns is overwritten by the next call with the same shapes. `changes` gives all tensors
    that the function changes, for the calls before a capture to leave no trace.
    """

    def __init__(
        self, function: Callable[..., ResultT], *, changes: Callable[[], Iterable[Tensor]] = list
    ) -> None:
        self._function = function
        self._changes = changes
        self._graphs: dict[tuple[Any, ...], _Graph] = {}

    def __call__(self, *positional: Any, **named: Any) -> ResultT:
        """Replay the function's graph, captured at the first call with these shapes."""
        arguments: dict[str | int, Any] = dict(enumerate(positional))
        arguments.update(**named)
        key = tuple(
            (name, tuple(argument.shape) if isinstance(argument, Tensor) else id(argument))
            for name, argument in arguments.items()
        )
        captured = self._graphs.get(key)
        if captured is None:
            places = {
                name: argument.clone() if isinstance(argument, Tensor) else argument
                for name, argument in arguments.items()
            }
            captured = self._graphs[key] = self._capture(places)
        else:
            for name, argument in arguments.items():
                if isinstance(argument, Tensor):
                    captured.arguments[name].copy_(argument)
        captured.graph.replay()
        result: ResultT = captured.result
        return result

    def _capture(self, arguments: dict[str | int, Any]) -> _Graph:
        positional = [value for name, value in arguments.items() if isinstance(name, int)]
        named = {name: value for name, value in arguments.items() if isinstance(name, str)}
        before = [tensor.detach().clone() for tensor in self._changes()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                self._function(*positional, **named)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():
            for tensor, value in zip(self._changes(), before, strict=True):
                tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = self._function(*positional, **named)
        return _Graph(graph, arguments, result)
