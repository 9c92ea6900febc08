"""Gather, GatherElements, GatherND."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.provider import DeviceProvider
from gpurt.provider import Refused
from gpurt.testing.kernels import run_op

OPS = ("Gather", "GatherElements", "GatherND")
RNG = np.random.default_rng(11)


@pytest.mark.parametrize("case", node_cases(OPS), ids=lambda c: c.name)
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    (got,) = run_op(provider, case.op, case.inputs, case.attrs)
    np.testing.assert_array_equal(got, case.expected[0])


@pytest.mark.parametrize("index_type", ["int32", "int64"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (0,)])
def test_gather(provider: DeviceProvider, axis: int, index_type: str, shape: tuple[int, ...]) -> None:
    x = RNG.normal(size=(4, 5, 6)).astype(np.float32)
    n = x.shape[axis]
    indices = RNG.integers(-n, n, shape).astype(index_type)
    wanted = np.take(x, indices, axis)
    np.testing.assert_array_equal(run_op(provider, "Gather", [x, indices], {"axis": axis})[0], wanted)
    np.testing.assert_array_equal(run_op(provider, "Gather", [x, indices], {"axis": axis}, constant=[1])[0], wanted)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float16", "int64", "float64"])
def test_gather_dtypes(provider: DeviceProvider, dtype: str) -> None:
    x = RNG.integers(0, 2, (300, 40)).astype(dtype)
    indices = RNG.integers(-300, 300, 500)
    np.testing.assert_array_equal(run_op(provider, "Gather", [x, indices])[0], x[indices])


def test_gather_clamps_indices_out_of_range(provider: DeviceProvider) -> None:
    x = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(run_op(provider, "Gather", [x, np.array([9, -9, 2])])[0], [4, 0, 2])


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("smaller", [(), (0,), (3,), (1, 2)])
@pytest.mark.parametrize("index_type", ["int32", "int64"])
def test_gather_elements(provider: DeviceProvider, axis: int, smaller: tuple[int, ...], index_type: str) -> None:
    x = RNG.integers(0, 99, (3, 4, 5, 2)).astype(np.int16)
    shape = [1 if i in smaller else n for i, n in enumerate(x.shape)]
    shape[axis] = 7
    indices = RNG.integers(-x.shape[axis], x.shape[axis], shape).astype(index_type)
    (y,) = run_op(provider, "GatherElements", [x, indices], {"axis": axis})
    at = list(np.indices(shape))
    at[axis] = indices
    np.testing.assert_array_equal(y, x[tuple(at)])


@pytest.mark.parametrize(("batch", "depth"), [(0, 1), (0, 2), (0, 4), (1, 1), (1, 3), (2, 1), (2, 2), (1, 0)])
def test_gather_nd(provider: DeviceProvider, batch: int, depth: int) -> None:
    x = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    sizes = x.shape[batch : batch + depth]
    indices = np.stack([RNG.integers(-n, n, (*x.shape[:batch], 6)) for n in sizes] or [np.zeros((2, 6))], -1)
    indices = indices[..., :depth].astype(np.int64)
    (y,) = run_op(provider, "GatherND", [x, indices], {"batch_dims": batch})
    wanted = np.empty(y.shape, x.dtype)
    for at in np.ndindex(indices.shape[:-1]):
        wanted[at] = x[(*at[:batch], *indices[at])]
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("width", [2, 3, 8, 16, 17, 40])
def test_rows_of_any_length(provider: DeviceProvider, width: int) -> None:
    x = RNG.normal(size=(2, 50, width)).astype(np.float32)
    indices = RNG.integers(-50, 50, 700)
    np.testing.assert_array_equal(run_op(provider, "Gather", [x[0], indices])[0], x[0, indices])
    np.testing.assert_array_equal(run_op(provider, "Gather", [x, indices], {"axis": 1})[0], x[:, indices])
    (y,) = run_op(provider, "GatherND", [x, indices.reshape(2, 350, 1)], {"batch_dims": 1})
    np.testing.assert_array_equal(y, np.stack([x[0, indices[:350]], x[1, indices[350:]]]))


def test_indices_that_do_not_fit_the_data_are_refused(provider: DeviceProvider) -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(Refused, match="larger than data"):
        run_op(provider, "GatherElements", [x, np.zeros((4, 1), np.int64)], {"axis": 1})
    with pytest.raises(Refused, match="differ in the batch"):
        run_op(provider, "GatherND", [x, np.zeros((4, 1), np.int64)], {"batch_dims": 1})
