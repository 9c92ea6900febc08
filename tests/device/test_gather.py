"""Gather, GatherElements, GatherND."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.provider import DeviceProvider
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
