"""Asynchronous host-to-device copies through pinned memory."""

import numpy as np
import torch
from torch import Tensor

HALF_BYTES = 8 << 20


class Staging:
    """Copies arrays to a device through one persistent buffer of pinned memory.

    The buffer has two halves. When one is full the other is reused, after an event says that the
    copies out of it are done: they were queued a whole half ago, so this rarely waits. On the CPU
    nothing is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self._buffer = torch.empty(2 * HALF_BYTES, dtype=torch.uint8, pin_memory=True)
            self._left = [torch.cuda.Event(), torch.cuda.Event()]
            self._half, self._used = 0, 0

    def upload(self, array: np.ndarray, out: Tensor | None = None) -> Tensor:
        """The array on the device, in `out` if given (same shape and dtype).

        Without `out` the result on the CPU shares the array's memory.
        """
        values = torch.from_numpy(array)
        if self.device.type == "cuda":
            pinned = self._pinned(values)
            if out is None:
                return pinned.to(self.device, non_blocking=True)
            return out.copy_(pinned, non_blocking=True)
        return values if out is None else out.copy_(values)

    def _pinned(self, values: Tensor) -> Tensor:
        """A copy in pinned memory; arrays larger than half of the buffer get memory of their own.

        Such memory is not handed out again before the copies out of it are done.
        """
        size = values.nbytes
        if size > HALF_BYTES:
            return values.pin_memory()
        if self._used + size > HALF_BYTES:
            self._left[self._half].record()
            self._half = 1 - self._half
            self._left[self._half].synchronize()
            self._used = 0
        start = self._half * HALF_BYTES + self._used
        # The next array begins where any dtype may.
        self._used += -(-size // 16) * 16
        pinned = self._buffer[start : start + size].view(values.dtype).view(values.shape)
        return pinned.copy_(values)
