"""Transpose, Concat, Split, Slice, Expand, Tile, DepthToSpace, SpaceToDepth, Trilu, ReverseSequence, and generators."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import run_op

OPS = ("Transpose", "Concat", "Split", "Expand", "Tile")  # fmt: skip
RNG = np.random.default_rng(7)


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    count = int(np.prod(shape))
    return (np.arange(count) % (2 if dtype == "bool" else 120)).astype(dtype).reshape(shape)


@pytest.mark.parametrize("case", node_cases(OPS), ids=lambda c: c.name)
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    results = run_op(provider, case.op, case.inputs, case.attrs, outputs=len(case.expected))
    for got, wanted in zip(results, case.expected, strict=True):
        assert wanted is not None
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize(
    ("shape", "perm"),
    [
        ((), ()),
        ((5,), (0,)),
        ((3, 1, 4), (1, 0, 2)),
        ((37, 53), (1, 0)),
        ((130, 70), (1, 0)),
        ((3, 700), (1, 0)),
        ((700, 3), (1, 0)),
        ((2, 3, 20, 30), (0, 2, 3, 1)),
        ((2, 20, 30, 3), (0, 3, 1, 2)),
        ((2, 9, 33, 40), (0, 2, 3, 1)),
        ((2, 5, 4, 16), (0, 2, 1, 3)),
        ((2, 5, 4, 16), (0, 2, 3, 1)),
        ((4, 3, 5, 2, 6), (4, 2, 0, 3, 1)),
        ((2, 3, 2, 3, 2, 3, 2, 2), (7, 5, 3, 1, 6, 4, 2, 0)),
        ((0, 3), (1, 0)),
    ],
)
def test_transpose(provider: DeviceProvider, shape: tuple[int, ...], perm: tuple[int, ...]) -> None:
    x = numbers(*shape)
    (y,) = run_op(provider, "Transpose", [x], {"perm": perm})
    np.testing.assert_array_equal(y, x.transpose(perm))


@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", "uint16", "int32", "int64", "float64"])
def test_transpose_dtypes(provider: DeviceProvider, dtype: str) -> None:
    x = numbers(17, 3, 21, dtype=dtype)
    np.testing.assert_array_equal(run_op(provider, "Transpose", [x])[0], x.T)
    np.testing.assert_array_equal(run_op(provider, "Transpose", [x], {"perm": (1, 0, 2)})[0], x.transpose(1, 0, 2))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_concat(provider: DeviceProvider, axis: int) -> None:
    parts = []
    for n in (3, 0, 1, 5):
        shape = [2, 3, 4]
        shape[axis] = n
        parts.append(RNG.normal(size=shape).astype(np.float32))
    (y,) = run_op(provider, "Concat", parts, {"axis": axis})
    np.testing.assert_array_equal(y, np.concatenate(parts, axis))


def test_concat_of_one_filled_input_is_its_memory(provider: DeviceProvider) -> None:
    x = numbers(2, 3)
    (y,) = run_op(provider, "Concat", [np.empty((2, 0), np.float32), x], {"axis": 1})
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(("axis", "parts"), [(0, (3, 4)), (1, (5, 0, 1)), (-1, (1, 8))])
def test_split(provider: DeviceProvider, axis: int, parts: tuple[int, ...]) -> None:
    x = numbers(7, 6, 9, dtype="float16")
    results = run_op(provider, "Split", [x, np.array(parts)], {"axis": axis}, outputs=len(parts))
    for got, wanted in zip(results, np.split(x, np.cumsum(parts)[:-1], axis), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("shape", "to"),
    [
        ((), (2, 3)),
        ((3, 1), (1, 4)),
        ((1, 5, 1, 7), (2, 1, 6, 7)),
        ((1,), (3000,)),
        ((200, 1), (200, 300)),
        ((4,), (1, 4)),
        ((0, 1), (0, 3)),
        ((2, 1, 3, 1, 2, 1, 2), (1, 2, 5, 3, 2, 2, 3, 2)),
    ],
)
def test_expand(provider: DeviceProvider, shape: tuple[int, ...], to: tuple[int, ...]) -> None:
    x = numbers(*shape)
    (y,) = run_op(provider, "Expand", [x, np.array(to)])
    np.testing.assert_array_equal(y, x * np.ones(to, np.float32))


@pytest.mark.parametrize(
    ("shape", "repeats"), [((3, 4), (2, 3)), ((1, 5), (6, 1)), ((2, 3, 4), (1, 2, 1)), ((3,), (0,)), ((2, 1), (1, 9000))]
)
def test_tile(provider: DeviceProvider, shape: tuple[int, ...], repeats: tuple[int, ...]) -> None:
    x = numbers(*shape, dtype="int64")
    (y,) = run_op(provider, "Tile", [x, np.array(repeats)])
    np.testing.assert_array_equal(y, np.tile(x, repeats))
