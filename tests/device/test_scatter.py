"""ScatterElements, ScatterND, TensorScatter, duplicates included: the order of the indices decides."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.provider import DeviceProvider
from gpurt.provider import Refused
from gpurt.testing.kernels import run_op

OPS = ("ScatterElements", "ScatterND", "TensorScatter")
RNG = np.random.default_rng(5)
REDUCTIONS = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "min": np.minimum,
    "max": np.maximum,
}


@pytest.mark.parametrize("case", node_cases(OPS), ids=lambda c: c.name)
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    (got,) = run_op(provider, case.op, case.inputs, case.attrs)
    np.testing.assert_allclose(got, case.expected[0], rtol=1e-6)


def elements(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, axis: int, reduction: str) -> np.ndarray:
    y = x.copy()
    for at in np.ndindex(indices.shape):
        to = list(at)
        to[axis] = indices[at]
        y[tuple(to)] = REDUCTIONS[reduction](y[tuple(to)], updates[at])
    return y


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["float32", "int32", "float16"])
def test_scatter_elements(provider: DeviceProvider, reduction: str, axis: int, dtype: str) -> None:
    x = RNG.integers(1, 9, (4, 5, 6)).astype(dtype)
    shape = [3, 4, 5]
    indices = RNG.integers(-x.shape[axis], x.shape[axis], shape)
    updates = RNG.integers(1, 3, shape).astype(dtype)
    (y,) = run_op(provider, "ScatterElements", [x, indices, updates], {"axis": axis, "reduction": reduction})
    np.testing.assert_allclose(y, elements(x, indices, updates, axis, reduction), rtol=1e-3)


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_elements_over_one_long_axis(provider: DeviceProvider, reduction: str) -> None:
    x = np.zeros(301, np.int64)
    indices = RNG.integers(0, 301, 2000).astype(np.int32)
    updates = RNG.integers(0, 99, 2000)
    (y,) = run_op(provider, "ScatterElements", [x, indices, updates], {"reduction": reduction})
    np.testing.assert_array_equal(y, elements(x, indices, updates, 0, reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("size", [3, 900])  # few places: many updates meet in each
@pytest.mark.parametrize(("shape", "axis"), [((3, 700), 1), ((700, 3), 0), ((2, 300, 2), 1)])
def test_scatter_elements_of_many_indices(
    provider: DeviceProvider, reduction: str, size: int, shape: tuple[int, ...], axis: int
) -> None:
    to = [n + 1 for n in shape]
    to[axis] = size
    x = RNG.integers(1, 9, to).astype(np.float32)
    indices = RNG.integers(-size, size, shape).astype(np.int32)
    updates = RNG.choice(np.array([0.5, 1, 2], np.float32), shape)
    (y,) = run_op(provider, "ScatterElements", [x, indices, updates], {"axis": axis, "reduction": reduction})
    np.testing.assert_array_equal(y, elements(x, indices, updates, axis, reduction))


def test_sums_of_many_updates_do_not_depend_on_the_run(provider: DeviceProvider) -> None:
    indices = RNG.integers(0, 50, 2000)
    updates = RNG.normal(size=2000).astype(np.float32)
    wanted = elements(np.zeros(50, np.float32), indices, updates, 0, "add")
    for op, at in (("ScatterElements", indices), ("ScatterND", indices[:, None])):
        (y,) = run_op(provider, op, [np.zeros(50, np.float32), at, updates], {"reduction": "add"})
        np.testing.assert_array_equal(y, wanted)


def test_indices_larger_than_the_data_are_refused(provider: DeviceProvider) -> None:
    x, indices = np.zeros((2, 3), np.float32), np.zeros((4, 1), np.int64)
    with pytest.raises(Refused, match="larger than data"):
        run_op(provider, "ScatterElements", [x, indices, np.zeros((4, 1), np.float32)], {"axis": 1})


@pytest.mark.parametrize("repeat", [1, 200])
def test_indices_out_of_range_are_skipped(provider: DeviceProvider, repeat: int) -> None:
    x = np.zeros(3, np.float32)
    (y,) = run_op(provider, "ScatterElements", [x, np.array([7, -9, 1] * repeat), np.ones(3 * repeat, np.float32)])
    np.testing.assert_array_equal(y, [0, 1, 0])
    (y,) = run_op(provider, "ScatterND", [x, np.array([[7], [-9], [1]] * repeat), np.ones(3 * repeat, np.float32)])
    np.testing.assert_array_equal(y, [0, 1, 0])


def test_no_indices_leave_the_data(provider: DeviceProvider) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    empty = np.empty((0, 3), np.float32)
    (y,) = run_op(provider, "ScatterElements", [x, empty.astype(np.int64), empty])
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [5, 200, 600])
def test_scatter_nd(provider: DeviceProvider, reduction: str, depth: int, count: int) -> None:
    x = RNG.integers(1, 5, (4, 5, 6)).astype(np.float64)
    indices = np.stack([RNG.integers(-n, n, (count, 1)) for n in (4, 5, 6)], -1)[..., :depth]
    updates = RNG.choice([0.5, 1, 2], (count, 1, *x.shape[depth:]))
    (y,) = run_op(provider, "ScatterND", [x, indices, updates], {"reduction": reduction})
    wanted = x.copy()
    for at in np.ndindex(count, 1):
        to = tuple(indices[at])
        wanted[to] = REDUCTIONS[reduction](wanted[to], updates[at])
    np.testing.assert_allclose(y, wanted)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_scatter_nd_moves_any_type(provider: DeviceProvider, dtype: str) -> None:
    x = np.zeros((3, 4), dtype)
    (y,) = run_op(provider, "ScatterND", [x, np.array([[2]]), np.ones((1, 4), dtype)])
    np.testing.assert_array_equal(y, [[0] * 4] * 2 + [[1] * 4])


def test_bool_is_not_reduced(provider: DeviceProvider) -> None:
    with pytest.raises(AssertionError, match="does not reduce bool"):
        run_op(provider, "ScatterND", [np.ones(3, bool), np.array([[2]]), np.ones(1, bool)], {"reduction": "add"})
