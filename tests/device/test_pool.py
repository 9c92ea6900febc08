"""Pools against ONNX's own cases, a plain loop over windows, and NumPy for the global ones."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.provider import DeviceProvider
from gpurt.infer.shapes import conv_geometry
from gpurt.testing.kernels import run_op

OPS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_CASES = list(node_cases(OPS))


@pytest.mark.parametrize("case", _CASES, ids=[c.name for c in _CASES])
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    results = run_op(provider, case.op, case.inputs, case.attrs, outputs=len(case.expected))
    for got, want in zip(results, case.expected, strict=True):
        assert want is not None
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=case.rtol, atol=1e-6)


def windows(op: str, x: np.ndarray, attrs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The pool, and the places of maxima, one window after the other."""
    spatial, kernel = x.shape[2:], attrs["kernel_shape"]
    strides, dilations = (attrs.get(k, (1,) * len(kernel)) for k in ("strides", "dilations"))
    out, begins, ends = conv_geometry(
        spatial, kernel, strides, dilations, attrs.get("pads"), attrs.get("auto_pad", "NOTSET"),
        bool(attrs.get("ceil_mode")),
    )  # fmt: skip
    y, places = np.zeros((*x.shape[:2], *out), x.dtype), np.zeros((*x.shape[:2], *out), np.int64)
    order = "F" if attrs.get("storage_order") else "C"
    for n, k in itertools.product(range(x.shape[0]), range(x.shape[1])):
        for at in itertools.product(*(range(v) for v in out)):
            taps, count = [], 0
            for tap in itertools.product(*(range(v) for v in kernel)):
                point = [a * s - b + t * d for a, s, b, t, d in zip(at, strides, begins, tap, dilations, strict=True)]
                inside = all(0 <= p < v for p, v in zip(point, spatial, strict=True))
                count += inside or (
                    bool(attrs.get("count_include_pad"))
                    and all(p < v + e for p, v, e in zip(point, spatial, ends, strict=True))
                )
                if inside:
                    taps.append(tuple(point))
            values = np.array([x[(n, k, *t)] for t in taps], np.float64)
            if op == "MaxPool":
                y[(n, k, *at)] = values.max()
                flat = np.ravel_multi_index(taps[int(values.argmax())], spatial, order=order)
                places[(n, k, *at)] = (n * x.shape[1] + k) * int(np.prod(spatial)) + flat
            elif op == "AveragePool":
                y[(n, k, *at)] = values.sum() / count
            else:
                y[(n, k, *at)] = (np.abs(values) ** attrs.get("p", 2)).sum() ** (1 / attrs.get("p", 2))
    return y, places


GEOMETRIES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 2, 9, 37), {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ((1, 2, 6, 40), {"kernel_shape": (2, 2), "strides": (2, 2)}),
    ((2, 1, 5, 21), {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "count_include_pad": 1}),
    ((1, 2, 7, 30), {"kernel_shape": (3, 2), "strides": (1, 3), "ceil_mode": 1, "pads": (0, 1, 1, 0)}),
    ((1, 1, 9, 33), {"kernel_shape": (3, 3), "dilations": (2, 2), "strides": (1, 2), "pads": (2, 2, 2, 2)}),
    ((2, 3, 40), {"kernel_shape": (5,), "strides": (2,), "pads": (2, 1), "ceil_mode": 1, "count_include_pad": 1}),
    ((1, 2, 4, 5, 19), {"kernel_shape": (2, 3, 3), "pads": (1, 1, 1, 0, 1, 1), "strides": (2, 1, 1)}),
    ((1, 1, 8, 19), {"kernel_shape": (3, 4), "auto_pad": "SAME_UPPER", "strides": (2, 2)}),
    ((1, 1, 8, 19), {"kernel_shape": (3, 4), "auto_pad": "SAME_LOWER"}),
    ((1, 1, 8, 19), {"kernel_shape": (3, 4), "auto_pad": "VALID", "strides": (1, 2)}),
]


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_geometries(provider: DeviceProvider, op: str) -> None:
    rng = np.random.default_rng(0)
    for shape, geometry in GEOMETRIES:
        attrs = {k: v for k, v in geometry.items() if op == "AveragePool" or k != "count_include_pad"}
        x = rng.standard_normal(shape).astype(np.float32)
        (y,) = run_op(provider, op, [x], attrs)
        np.testing.assert_allclose(y, windows(op, x, attrs)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_rows_of_several_pieces(provider: DeviceProvider, op: str) -> None:
    rng = np.random.default_rng(5)
    for attrs in (
        {"kernel_shape": (3,), "pads": (1, 1)},
        {"kernel_shape": (3,), "strides": (2,), "pads": (1, 2), "ceil_mode": 1},
        {"kernel_shape": (5,), "strides": (7,), "dilations": (3,)},
        {"kernel_shape": (300,), "strides": (5,)},
    ):
        x = rng.standard_normal((1, 2, 1301)).astype(np.float32)
        (y,) = run_op(provider, op, [x], attrs)
        np.testing.assert_allclose(y, windows(op, x, attrs)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8"])
def test_dtypes(provider: DeviceProvider, op: str, dtype: str) -> None:
    if op != "MaxPool" and "int" in dtype:
        pytest.skip(f"ONNX has no {op} of integers")
    rng = np.random.default_rng(1)
    shape, attrs = GEOMETRIES[0]
    x = (rng.standard_normal(shape) * 50).astype(np.int8).astype(dtype)
    (y,) = run_op(provider, op, [x], attrs)
    np.testing.assert_allclose(y, windows(op, x, attrs)[0], rtol=2e-3 if dtype == "float16" else 1e-12)


def test_places_of_maxima(provider: DeviceProvider) -> None:
    rng = np.random.default_rng(2)
    for shape, geometry in GEOMETRIES[:7]:
        for order in (0, 1):
            attrs = {k: v for k, v in geometry.items() if k != "count_include_pad"} | {"storage_order": order}
            x = rng.integers(0, 9, shape).astype(np.float32)  # with ties: the first counts
            y, places = run_op(provider, "MaxPool", [x], attrs, outputs=2)
            want, want_places = windows("MaxPool", x, attrs)
            np.testing.assert_array_equal(y, want)
            np.testing.assert_array_equal(places, want_places)


def test_lp_pool_of_other_norms(provider: DeviceProvider) -> None:
    x = np.random.default_rng(3).standard_normal((1, 2, 6, 20)).astype(np.float32)
    x[0, 0, :3, :9] = 0
    for p in (1, 3):
        attrs = {"kernel_shape": (2, 2), "p": p}
        np.testing.assert_allclose(
            run_op(provider, "LpPool", [x], attrs)[0], windows("LpPool", x, attrs)[0], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_global(provider: DeviceProvider, dtype: str) -> None:
    rng = np.random.default_rng(4)
    for shape in [(2, 3, 7, 7), (1, 4, 50), (2, 2, 2, 3, 4), (3, 4)]:
        x = rng.standard_normal(shape).astype(dtype)
        axes, wide = tuple(range(2, x.ndim)), x.astype(float)
        tol = 2e-3 if dtype == "float16" else 1e-5

        expected = [
            ("GlobalAveragePool", {}, wide.mean(axis=axes, keepdims=True)),
            ("GlobalMaxPool", {}, wide.max(axis=axes, keepdims=True)),
        ]
        for p in (1, 2, 3):
            norm = (np.abs(wide) ** p).sum(axis=axes, keepdims=True) ** (1 / p)
            expected.append(("GlobalLpPool", {"p": p}, norm))
        for op, attrs, want in expected:
            (y,) = run_op(provider, op, [x], attrs)
            assert y.dtype == x.dtype
            np.testing.assert_allclose(y, want, rtol=tol, atol=tol)


def test_empty_batch(provider: DeviceProvider) -> None:
    (y,) = run_op(provider, "MaxPool", [np.zeros((0, 3, 8, 8), np.float32)], {"kernel_shape": (2, 2)})
    assert y.shape == (0, 3, 7, 7)
