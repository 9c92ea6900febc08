"""Softmax and its kin, running sums and TopK, against NumPy and ONNX's own cases."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import run_op

OPS = ("Softmax", "LogSoftmax", "Hardmax", "CumSum", "CumProd", "TopK")
_CASES = [c for c in node_cases(OPS) if not any(a is not None and a.dtype.kind == "V" for a in c.inputs)]


@pytest.mark.parametrize("case", _CASES, ids=[c.name for c in _CASES])
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    results = run_op(provider, case.op, case.inputs, case.attrs, outputs=len(case.expected))
    for got, want in zip(results, case.expected, strict=True):
        assert want is not None
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def softmax(x: np.ndarray, axis: int, *, log: bool = False) -> np.ndarray:
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        shifted = wide - wide.max(axis=axis, keepdims=True)
        total = np.exp(shifted).sum(axis=axis, keepdims=True)
        return (shifted - np.log(total) if log else np.exp(shifted) / total).astype(x.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax(provider: DeviceProvider, op: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for shape, axis in [
        ((3, 5), 1), ((4, 100), -1), ((2, 21, 75), 1), ((7, 3), 0), ((2, 2300), 1), ((3, 0), 1), ((0, 4), 1), ((), -1),
    ]:  # fmt: skip
        x = np.asarray(rng.standard_normal(shape) * 5 + 50, dtype)
        (y,) = run_op(provider, op, [x], {"axis": axis})
        want = softmax(x, axis, log=op == "LogSoftmax") if x.ndim and x.size else np.full(shape, op == "Softmax", dtype)
        tol = {"float32": 1e-5, "float16": 4e-3, "float64": 1e-12}[dtype]
        np.testing.assert_allclose(y, want, rtol=tol, atol=tol * 0.1)


def test_softmax_of_infinities(provider: DeviceProvider) -> None:
    x = np.zeros((4, 43), np.float32)
    x[0, 5:] = -np.inf
    x[1] = -np.inf
    x[2, 41] = np.nan
    x[3, :42] = -np.inf
    for a, axis in ((x, 1), (np.ascontiguousarray(x.T), 0)):
        (y,) = run_op(provider, "Softmax", [a], {"axis": axis})
        np.testing.assert_allclose(y, softmax(a, axis), rtol=1e-5)


def test_hardmax(provider: DeviceProvider) -> None:
    rng = np.random.default_rng(1)
    for shape, axis in [((3, 50), 1), ((2, 5, 17), 1), ((6,), 0)]:
        for dtype in (np.float32, np.float16):
            x = rng.integers(0, 9, shape).astype(dtype)
            want = np.zeros_like(x)
            np.put_along_axis(want, np.expand_dims(x.argmax(axis), axis), 1, axis)
            np.testing.assert_array_equal(run_op(provider, "Hardmax", [x], {"axis": axis})[0], want)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("op", ["CumSum", "CumProd"])
def test_cumulate(provider: DeviceProvider, op: str, reverse: int, exclusive: int) -> None:
    rng = np.random.default_rng(2)
    fn, start = (np.cumsum, 0) if op == "CumSum" else (np.cumprod, 1)
    for shape, axis, dtype in [
        ((3, 700), 1, "float32"), ((2, 9, 43), 1, "float32"), ((5,), -1, "int64"), ((4, 70), 1, "float16"),
        ((2, 3, 9), 0, "int32"), ((3, 80), 1, "float64"), ((0, 3), 1, "float32"),
    ]:  # fmt: skip
        x = rng.uniform(0.9, 1.1, shape) if op == "CumProd" else rng.uniform(-1, 9, shape)
        x = x.astype(dtype)
        flipped = np.flip(x, axis) if reverse else x
        want = fn(flipped.astype(np.float64), axis=axis)
        if exclusive and x.size:
            want = np.roll(want, 1, axis)
            want[tuple(slice(0, 1) if i == axis % x.ndim else slice(None) for i in range(x.ndim))] = start
        want = (np.flip(want, axis) if reverse else want).astype(dtype)
        (y,) = run_op(provider, op, [x, np.array(axis)], {"exclusive": exclusive, "reverse": reverse})
        np.testing.assert_allclose(y, want, rtol={"float16": 4e-3}.get(dtype, 1e-5), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8"])
def test_top_k(provider: DeviceProvider, dtype: str) -> None:
    rng = np.random.default_rng(3)
    for shape, axis, k in [((3, 50), 1, 5), ((2, 9, 7), 1, 9), ((4, 6), 0, 0), ((20,), -1, 1)]:
        for largest in (0, 1):
            x = rng.integers(0, 30, shape).astype(dtype)
            key = -x.astype(np.int64) if largest else x
            order = np.take(np.argsort(key, axis, kind="stable"), range(k), axis)
            y, at = run_op(provider, "TopK", [x, np.array([k])], {"axis": axis, "largest": largest}, outputs=2)
            np.testing.assert_array_equal(at, order)
            np.testing.assert_array_equal(y, np.take_along_axis(x, order, axis))
