"""Transpose, Concat, Split, Slice, Expand, Tile, DepthToSpace, SpaceToDepth, Trilu, ReverseSequence, and generators."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.provider import DeviceProvider
from gpurt.provider import Refused
from gpurt.testing.kernels import run_op

OPS = (
    "Transpose", "Concat", "Split", "Expand", "Tile", "Slice", "CenterCropPad", "Trilu", "ReverseSequence",
    "DepthToSpace", "SpaceToDepth", "OneHot", "EyeLike", "ConstantOfShape", "Range",
)  # fmt: skip
RNG = np.random.default_rng(7)


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    count = int(np.prod(shape))
    return (np.arange(count) % (2 if dtype == "bool" else 120)).astype(dtype).reshape(shape)


@pytest.mark.parametrize("case", [c for c in node_cases(OPS) if "bfloat16" not in c.name], ids=lambda c: c.name)
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
    ("shape", "repeats"),
    [((3, 4), (2, 3)), ((1, 5), (6, 1)), ((2, 3, 4), (1, 2, 1)), ((3,), (0,)), ((2, 1), (1, 9000))],
)
def test_tile(provider: DeviceProvider, shape: tuple[int, ...], repeats: tuple[int, ...]) -> None:
    x = numbers(*shape, dtype="int64")
    (y,) = run_op(provider, "Tile", [x, np.array(repeats)])
    np.testing.assert_array_equal(y, np.tile(x, repeats))


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ((1,), (3,), (0,), (1,)),
        ((0, 2), (5, 100), (0, 2), (2, 3)),
        ((-1, 6), (-100, 0), (1, -1), (-1, -2)),
        ((3,), (3,), (1,), (1,)),
        ((1, 1, 1), (4, 5, 6), None, None),
        ((2**62,), (-(2**63),), (2,), (-3,)),
        ((2,), (3,), (0,), (1,)),
    ],
)
def test_slice(provider: DeviceProvider, starts, ends, axes, steps) -> None:
    x = numbers(5, 6, 7, dtype="float16")
    inputs = [x, np.array(starts), np.array(ends), None if axes is None else np.array(axes), None]
    inputs[4] = None if steps is None else np.array(steps)
    (y,) = run_op(provider, "Slice", inputs)
    index = [slice(None)] * 3
    for a, start, end, step in zip(axes or range(3), starts, ends, steps or [1] * 3, strict=True):
        index[a] = slice(start, end, step)
    np.testing.assert_array_equal(y, x[tuple(index)])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_space_to_depth_inverts_depth_to_space(provider: DeviceProvider, mode: str, block: int) -> None:
    x = numbers(2, 5 * block * block, 3, 4, dtype="int8")
    (y,) = run_op(provider, "DepthToSpace", [x], {"blocksize": block, "mode": mode})
    assert y.shape == (2, 5, 3 * block, 4 * block)
    np.testing.assert_array_equal(run_op(provider, "SpaceToDepth", [y], {"blocksize": block, "mode": mode})[0], x)


@pytest.mark.parametrize("dtype", ["bool", "int16", "float32", "float64"])
@pytest.mark.parametrize(("k", "upper"), [(None, 1), (-2, 0), (3, 1), (-(2**62), 1)])
def test_trilu(provider: DeviceProvider, dtype: str, k: int | None, upper: int) -> None:
    x = np.ones((3, 4, 9), dtype)
    (y,) = run_op(provider, "Trilu", [x, None if k is None else np.array(k)], {"upper": upper})
    i, j = np.indices((4, 9))
    keep = j - i >= (k or 0) if upper else j - i <= (k or 0)
    np.testing.assert_array_equal(y, np.where(keep, x, np.zeros((), dtype)))


@pytest.mark.parametrize("time", [0, 1])
def test_reverse_sequence(provider: DeviceProvider, time: int) -> None:
    x = numbers(4, 5, 3)
    lengths = np.array([2, 1, 4, 3, 0][: x.shape[1 - time]])
    (y,) = run_op(provider, "ReverseSequence", [x, lengths], {"time_axis": time, "batch_axis": 1 - time})
    wanted = np.moveaxis(x.copy(), time, 0)
    for b, n in enumerate(lengths):
        wanted[:n, b] = wanted[:n, b][::-1]
    np.testing.assert_array_equal(y, np.moveaxis(wanted, 0, time))


def test_inputs_that_are_too_short_are_refused(provider: DeviceProvider) -> None:
    with pytest.raises(Refused, match="3 lengths for a batch of 5"):
        run_op(provider, "ReverseSequence", [numbers(4, 5), np.array([1, 2, 3])])
    with pytest.raises(Refused, match="1 values"):
        run_op(provider, "OneHot", [np.array([1]), np.array(4), np.array([1.0])])


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32"])
def test_one_hot(provider: DeviceProvider, axis: int, dtype: str) -> None:
    indices = np.array([[0, 2, 7], [1, 200, 4]]).astype(dtype)
    (y,) = run_op(provider, "OneHot", [indices, np.array(5), np.array([3, 9], np.int16)], {"axis": axis})
    at = axis % 3
    shape = [1, 1, 1]
    shape[at] = 5
    hit = np.arange(5).reshape(shape) == np.expand_dims(indices.astype(int), at)
    np.testing.assert_array_equal(y, np.where(hit, 9, 3))


@pytest.mark.parametrize("dtype", [1, 6, 9, 10, 11])
def test_eye_like(provider: DeviceProvider, dtype: int) -> None:
    (y,) = run_op(provider, "EyeLike", [numbers(4, 6, dtype="int64")], {"dtype": dtype, "k": -1})
    np.testing.assert_array_equal(y, np.eye(4, 6, -1))


@pytest.mark.parametrize("value", [None, np.array([2.5], np.float16), np.array([True]), np.array([-3], np.int64)])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 7000)])
def test_constant_of_shape(provider: DeviceProvider, value: np.ndarray | None, shape: tuple[int, ...]) -> None:
    attrs = {} if value is None else {"value": value}
    (y,) = run_op(provider, "ConstantOfShape", [np.array(shape, np.int64)], attrs)
    np.testing.assert_array_equal(y, np.full(shape, 0 if value is None else value[0], y.dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32", "int64"])
def test_range(provider: DeviceProvider, dtype: str) -> None:
    numbers_ = [np.array(v, dtype) for v in (30, -7, -3)]
    (y,) = run_op(provider, "Range", numbers_)
    np.testing.assert_allclose(y, np.arange(30, -7, -3), rtol=1e-6)


def test_range_of_other_types_is_refused(provider: DeviceProvider) -> None:
    numbers_ = [np.array(v, ml_dtypes.bfloat16) for v in (1, 9, 2)]
    with pytest.raises(AssertionError, match="no Range kernel for bfloat16"):
        run_op(provider, "Range", numbers_)
