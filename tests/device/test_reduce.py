"""Reductions and positions of extremes, against NumPy and ONNX's own cases."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import run_op

REDUCTIONS = (
    "ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
)  # fmt: skip
OPS = (*REDUCTIONS, "ArgMax", "ArgMin")
_CASES = [c for c in node_cases(OPS) if not any(a is not None and a.dtype.kind == "V" for a in c.inputs)]


@pytest.mark.parametrize("case", _CASES, ids=[c.name for c in _CASES])
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    (got,) = run_op(provider, case.op, case.inputs, case.attrs)
    assert got.dtype == case.expected[0].dtype
    np.testing.assert_allclose(got, case.expected[0], rtol=1e-5, atol=1e-6)


def expected(op: str, x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
    wide = x.astype(np.float64) if x.dtype.kind == "f" else x
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if op == "ReduceMax" and not x.size:
            ends = False if x.dtype == bool else -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
            return np.full(np.sum(x, axis=axes, keepdims=keepdims).shape, ends, x.dtype)
        if op == "ReduceMin" and not x.size:
            ends = True if x.dtype == bool else np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).max
            return np.full(np.sum(x, axis=axes, keepdims=keepdims).shape, ends, x.dtype)
        args = {"axis": axes, "keepdims": keepdims}
        y = {
            "ReduceSum": lambda: wide.sum(**args),
            "ReduceMean": lambda: wide.mean(**args),
            "ReduceProd": lambda: wide.prod(**args),
            "ReduceMax": lambda: wide.max(**args),
            "ReduceMin": lambda: wide.min(**args),
            "ReduceL1": lambda: np.abs(wide).sum(**args),
            "ReduceL2": lambda: np.sqrt(np.square(wide).sum(**args)),
            "ReduceSumSquare": lambda: np.square(wide).sum(**args),
            "ReduceLogSum": lambda: np.log(wide.sum(**args)),
            "ReduceLogSumExp": lambda: np.log(np.exp(wide).sum(**args)),
        }[op]()
        return np.asarray(y).astype(x.dtype)


SHAPES = [
    ((2, 3, 4, 5), (1, 3)),
    ((2, 3, 4, 5), (0, 2, 3)),
    ((3, 77), (1,)),
    ((5, 1, 3), (1,)),
    ((3, 45, 41), (1,)),
    ((2, 7, 3, 2, 5, 2, 3, 2), (0, 2, 4, 6)),
    ((), ()),
]


@pytest.mark.parametrize("op", REDUCTIONS)
def test_patterns_of_axes(provider: DeviceProvider, op: str) -> None:
    rng = np.random.default_rng(0)
    for shape, axes in SHAPES:
        for keepdims in (0, 1):
            x = np.asarray(rng.uniform(0.5, 1.5, shape), np.float32)
            attrs = {"keepdims": keepdims, "noop_with_empty_axes": 1}
            (y,) = run_op(provider, op, [x, np.array(axes, np.int64)], attrs)
            want = expected(op, x, axes, bool(keepdims))
            assert y.shape == want.shape
            np.testing.assert_allclose(y, want, rtol=2e-5, atol=1e-5)


# Not every pair: a kernel costs a second to build, and what differs is the accumulator.
_PAIRS = [
    *(("float16", op) for op in ("ReduceSum", "ReduceMax", "ReduceL2", "ReduceLogSumExp")),
    *(("float64", op) for op in ("ReduceMean", "ReduceLogSumExp")),
    *(("int32", op) for op in ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceMin")),
    *(("int64", op) for op in ("ReduceProd", "ReduceMax", "ReduceLogSum")),
    *(("uint32", op) for op in ("ReduceL1", "ReduceMin")),
    *(("uint64", op) for op in ("ReduceSum", "ReduceMax")),
]


@pytest.mark.parametrize(("dtype", "op"), _PAIRS)
def test_dtypes(provider: DeviceProvider, op: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for shape, axes in [((3, 43), (1,)), ((2, 9, 41), (1,))]:
        x = np.asarray(rng.uniform(1, 3.99, shape), dtype)
        if x.dtype.kind == "i" and op not in ("ReduceLogSum", "ReduceLogSumExp"):
            x = (x * np.where(rng.random(shape) < 0.5, -1, 1)).astype(dtype)
        if op == "ReduceProd":
            x = (x % 2 + (x.dtype.kind != "f")).astype(dtype)
        (y,) = run_op(provider, op, [x, np.array(axes, np.int64)], {"keepdims": 0})
        want = expected(op, x, axes, False)
        assert y.dtype == want.dtype
        if x.dtype.kind in "iu" and op == "ReduceMean":
            want = np.trunc(x.astype(np.float64).mean(axis=axes)).astype(dtype)
        rtol = {"float16": 4e-3, "float64": 1e-12}.get(dtype, 0)
        np.testing.assert_allclose(y, want, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("op", "dtype"), [("ReduceMax", "uint8"), ("ReduceMin", "int8"), ("ReduceMax", "bool")])
def test_small_integers(provider: DeviceProvider, op: str, dtype: str) -> None:
    rng = np.random.default_rng(2)
    for shape, axes in [((3, 43), (1,)), ((2, 3, 41), (1,)), ((3, 0), (1,))]:
        x = rng.integers(-120, 250, shape).astype(dtype)
        (y,) = run_op(provider, op, [x, np.array(axes, np.int64)])
        np.testing.assert_array_equal(y, expected(op, x, axes, True))


@pytest.mark.parametrize("op", REDUCTIONS)
def test_empty(provider: DeviceProvider, op: str) -> None:
    for shape, axes in [((2, 0, 3), (1,)), ((2, 0, 3), (0, 1, 2)), ((0, 3), (1,)), ((2, 0, 3, 4), (1, 3))]:
        for dtype in (np.float32, np.int64) if op in ("ReduceMean", "ReduceMax") else (np.float32,):
            x = np.zeros(shape, dtype)
            (y,) = run_op(provider, op, [x, np.array(axes, np.int64)])
            want = expected(op, x, axes, True)
            if op == "ReduceMean" and dtype == np.int64:
                want = np.zeros_like(want)
            np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceLogSumExp"])
def test_long_axes_are_split(provider: DeviceProvider, op: str) -> None:
    rng = np.random.default_rng(3)
    for shape, axes in [((1, 150_001), (1,)), ((70_001, 2), (0,)), ((3000, 40), (0,)), ((70_000,), (0,))]:
        x = rng.standard_normal(shape, np.float32) + 1
        (y,) = run_op(provider, op, [x, np.array(axes, np.int64)], {"keepdims": 0})
        np.testing.assert_allclose(y, expected(op, x, axes, False), rtol=1e-5)


def test_noop_maps_elements(provider: DeviceProvider) -> None:
    x = np.linspace(-2, 2, 15, dtype=np.float32).reshape(3, 5)
    attrs = {"noop_with_empty_axes": 1}
    np.testing.assert_array_equal(run_op(provider, "ReduceSum", [x], attrs)[0], x)
    np.testing.assert_array_equal(run_op(provider, "ReduceSumSquare", [x], attrs)[0], x * x)
    np.testing.assert_array_equal(run_op(provider, "ReduceL1", [x, np.zeros(0, np.int64)], attrs)[0], np.abs(x))


def test_special_values(provider: DeviceProvider) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([[1, nan, 3] + [0] * 40, [-inf] * 43, [inf] * 43, [-inf, 0, 1] + [-inf] * 40], np.float32)
    axes = np.array([1], np.int64)
    for op in ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceLogSumExp"):
        for a, b in ((x, axes), (np.ascontiguousarray(x.T), np.array([0], np.int64))):
            (y,) = run_op(provider, op, [a, b], {"keepdims": 0})
            np.testing.assert_allclose(y, expected(op, x, (1,), False), rtol=1e-6)


@pytest.mark.parametrize(
    ("op", "dtype"),
    [*(("ArgMax", t) for t in ("float32", "float16", "int64", "uint8")), ("ArgMin", "float64"), ("ArgMin", "int32")],
)
def test_arg(provider: DeviceProvider, op: str, dtype: str) -> None:
    rng = np.random.default_rng(4)
    for shape, axis in [((3, 5), 1), ((4, 100), -1), ((2, 9, 43), 1), ((3, 1), 0), ((300,), 0)]:
        x = rng.integers(0, 20, shape).astype(dtype)  # with ties
        for last in (0, 1):
            (y,) = run_op(provider, op, [x], {"axis": axis, "select_last_index": last, "keepdims": 0})
            find = np.argmax if op == "ArgMax" else np.argmin
            want = x.shape[axis] - 1 - find(np.flip(x, axis), axis) if last else find(x, axis)
            np.testing.assert_array_equal(y, want)


def test_arg_prefers_nan(provider: DeviceProvider) -> None:
    x = np.zeros((3, 50), np.float32)
    x[0, 40:] = x[1, 3] = np.nan
    x[2, 7] = 5
    for a, axis in ((x, 1), (np.ascontiguousarray(x.T), 0)):
        (y,) = run_op(provider, "ArgMax", [a], {"axis": axis, "keepdims": 0})
        np.testing.assert_array_equal(y, [40, 3, 7])
        (y,) = run_op(provider, "ArgMax", [a], {"axis": axis, "keepdims": 0, "select_last_index": 1})
        np.testing.assert_array_equal(y, [49, 3, 7])
