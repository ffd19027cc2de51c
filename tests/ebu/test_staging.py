"""Arrays on their way to the device."""

import numpy as np
import pytest
import torch

from ebu.staging import HALF_BYTES, Staging

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_arrays_arrive_as_they_are_in_whatever_order_and_size(device: str, dtype: type) -> None:
    staging, rng = Staging(torch.device(device)), np.random.default_rng(0)
    arrays: list[np.ndarray] = [
        rng.integers(100, size=size).astype(dtype)
        # Together several times the buffer; one larger than half of it.
        for size in [1, 7, 1000, HALF_BYTES // 4, 3, HALF_BYTES // 3, 33, 2 * HALF_BYTES] * 2
    ]
    arrived = [staging.upload(array) for array in arrays]
    for array, tensor in zip(arrays, arrived, strict=True):
        assert tensor.device.type == device
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)


@pytest.mark.parametrize("device", DEVICES)
def test_an_array_arrives_where_it_is_asked_for(device: str) -> None:
    place = torch.zeros(4, 3, device=device)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    Staging(torch.device(device)).upload(array, out=place[1:3])
    array[:] = -1  # What was uploaded is the array as it was.
    assert place.tolist() == [[0, 0, 0], [0, 1, 2], [3, 4, 5], [0, 0, 0]]
