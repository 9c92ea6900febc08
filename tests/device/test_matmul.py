"""MatMul, Gemm and FusedMatMul against NumPy, in every tile and packing that the lowering chooses between."""

from __future__ import annotations

import itertools

import cases
import numpy as np
import pytest

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import run_op

SHAPES = [
    ((3, 4), (4, 5)),
    ((65, 70), (70, 130)),  # several GPU tiles with edges
    ((9, 20), (20, 64)),  # whole register tiles of columns
    ((4, 20), (20, 17)),  # few rows, B read in place or packed
    ((300, 3), (3, 512)),  # B packed because its rows crowd the cache
    ((1, 100), (100, 300)),
    ((7,), (7,)),
    ((7,), (7, 3)),
    ((3, 7), (7,)),
    ((7,), (2, 7, 3)),
    ((2, 3, 4, 5), (5,)),
    ((2, 3, 5, 7), (2, 3, 7, 9)),
    ((2, 1, 5, 7), (3, 7, 9)),
    ((2, 1, 2, 1, 3, 4), (1, 3, 1, 2, 4, 5)),  # more batch levels than a kernel resolves
    ((3, 2, 5), (3, 5, 40)),
    ((2, 5, 8), (8, 33)),
    ((2, 3, 1, 70), (2, 3, 70, 1)),
    ((0, 3), (3, 4)),
    ((3, 0), (0, 4)),
    ((2, 3, 0), (0,)),
    ((2, 0, 3), (3, 4)),
]
TOLERANCE = {"f": (1e-5, 1e-5), "e": (1e-2, 5e-2), "d": (1e-12, 1e-12)}


def values(shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> np.ndarray:
    return (rng.normal(size=shape) * (1 if kind in "fed" else 9)).astype(kind)


def check(result: np.ndarray, expected: np.ndarray, kind: str) -> None:
    rtol, atol = TOLERANCE.get(kind, (0, 0))
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol * max(1.0, np.abs(expected).max(initial=0)))
    assert result.shape == expected.shape


@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["f", "e", "d", "i4", "i8", "u4", "u8"])
def test_matmul(provider: DeviceProvider, a: tuple[int, ...], b: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(0)
    x, y = values(a, kind, rng), values(b, kind, rng)
    wide = (x.astype("d"), y.astype("d")) if kind in "fe" else (x, y)
    for constant in [(), (1,)] if kind in "fe" else [()]:
        check(run_op(provider, "MatMul", [x, y], constant=constant)[0], np.matmul(*wide), kind)


SIZES = [(3, 4, 5), (70, 66, 33), (1, 40, 70), (5, 1, 20), (20, 130, 17), (2, 3, 0)]


@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product((0, 1), (0, 1))))
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["f", "e"])
def test_gemm(provider: DeviceProvider, size: tuple[int, int, int], trans_a: int, trans_b: int, kind: str) -> None:
    rng = np.random.default_rng(1)
    m, n, k = size
    a = values((k, m) if trans_a else (m, k), kind, rng)
    b = values((n, k) if trans_b else (k, n), kind, rng)
    attrs = {"alpha": 0.5, "beta": 0.25, "transA": trans_a, "transB": trans_b}
    product = 0.5 * (a.T if trans_a else a).astype("d") @ (b.T if trans_b else b)
    for shape in (None, (), (1,), (n,), (m, 1), (1, n), (m, n)):
        c = None if shape is None else values(shape, kind, rng)
        expected = product if c is None else product + 0.25 * c
        for constant in ((), (1,)):
            check(run_op(provider, "Gemm", [a, b, c], attrs, constant=constant)[0], expected, kind)


@pytest.mark.parametrize("kind", ["d", "i4"])
def test_gemm_plain(provider: DeviceProvider, kind: str) -> None:
    rng = np.random.default_rng(2)
    a, b, c = values((20, 5), kind, rng), values((20, 33), kind, rng), values((33,), kind, rng)
    result = run_op(provider, "Gemm", [a, b, c], {"transA": 1, "alpha": 2.0, "beta": 3.0})[0]
    check(result, 2 * (a.T @ b) + 3 * c, kind)


@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product((0, 1), (0, 1))))
def test_fused_matmul(provider: DeviceProvider, trans_a: int, trans_b: int) -> None:
    rng = np.random.default_rng(3)
    a, b = values((2, 3, 5, 7), "f", rng), values((3, 7, 19), "f", rng)
    inputs = [np.swapaxes(a, -1, -2).copy() if trans_a else a, np.swapaxes(b, -1, -2).copy() if trans_b else b]
    attrs = {"transA": trans_a, "transB": trans_b, "alpha": 0.125}
    for constant in ((), (1,)):
        result = run_op(provider, "FusedMatMul", inputs, attrs, domain="com.microsoft", constant=constant)[0]
        check(result, 0.125 * (a @ b), "f")


def test_many_matrices(provider: DeviceProvider) -> None:
    # more than a grid's third dimension holds
    rng = np.random.default_rng(4)
    a, b = values((70_000, 1, 2), "f", rng), values((70_000, 2, 1), "f", rng)
    check(run_op(provider, "MatMul", [a, b])[0], a @ b, "f")


@pytest.mark.parametrize("case", list(cases.node_cases({"MatMul", "Gemm"})), ids=lambda c: c.name)
def test_node(provider: DeviceProvider, case: cases.Case) -> None:
    results = run_op(provider, case.op, case.inputs, case.attrs, outputs=len(case.expected))
    for result, expected in zip(results, case.expected, strict=True):
        np.testing.assert_allclose(result, expected, rtol=case.rtol, atol=case.atol)
