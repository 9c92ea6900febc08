"""Quantized operators in both kernel classes, against ONNX's cases, NumPy, and the CPU provider's exact products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.fusion import groups
from gpurt.device.provider import DeviceProvider
from gpurt.dtypes import is_float, to_onnx
from gpurt.graph.view import GraphView, NodeView, ValueView
from gpurt.testing.kernels import run_op
from gpurt_cpu.ops.conv import conv_integer, qlinear_conv
from gpurt_cpu.ops.linalg import matmul_integer, qlinear_matmul
from gpurt_cpu.ops.quantize import dequantize_linear, dynamic_quantize_linear, quantize_linear

MS = "com.microsoft"
OPS = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "ConvInteger",
    "QLinearConv",
)  # fmt: skip
_CASES = node_cases(OPS)


def plain(x: np.ndarray) -> np.ndarray:
    """Any dtype as one that NumPy can compare."""
    if x.dtype.kind != "V" and x.dtype.itemsize > 1:
        return x
    return x.astype(np.float32 if is_float(x.dtype) else np.int32)


@pytest.mark.parametrize("case", _CASES, ids=[c.name for c in _CASES])
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    got = run_op(provider, case.op, case.inputs, case.attrs, outputs=len(case.expected))
    for y, wanted in zip(got, case.expected, strict=True):
        assert wanted is not None
        assert y.dtype == wanted.dtype
        np.testing.assert_allclose(plain(y), plain(wanted), rtol=1e-5, atol=1e-7)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def whole(rng: np.random.Generator, dtype: str, shape: Sequence[int] = ()) -> np.ndarray:
    """All values that a type has, the extreme ones often."""
    info = ml_dtypes.iinfo(np.dtype(dtype))
    return rng.choice([info.min, info.max, *range(-100, 100, 7)], shape).clip(info.min, info.max).astype(dtype)


def scales(rng: np.random.Generator, shape: Sequence[int] = (), dtype: str = "float32") -> np.ndarray:
    return np.asarray(rng.uniform(0.01, 0.1, shape)).astype(dtype)


SHAPES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, int]]] = [
    ((3, 5, 70), (), {}),
    ((3, 5, 70), (1,), {}),
    ((3, 5, 70), (5,), {}),
    ((3, 5, 70), (70,), {"axis": -1}),
    ((3, 5, 70), (3,), {"axis": 0}),
    ((), (1,), {}),
    ((0, 5), (5,), {}),
    ((3, 6, 4), (3, 2, 4), {"axis": 1, "block_size": 3}),
    ((3, 7, 4), (3, 3, 4), {"axis": 1, "block_size": 3}),
    ((3, 65), (3, 3), {"axis": 1, "block_size": 32}),
    ((0, 7), (0, 3), {"axis": 1, "block_size": 3}),
]
TYPES = ["int8", "uint8", "int16", "uint16"]


# Compiling is what takes the time, so shapes and types take turns.
@pytest.mark.parametrize(("shape", "scale", "attrs"), SHAPES, ids=str)
def test_quantize_linear(
    provider: DeviceProvider, rng: np.random.Generator, shape: tuple[int, ...], scale: tuple[int, ...],
    attrs: dict[str, int],
) -> None:  # fmt: skip
    turn = SHAPES.index((shape, scale, attrs))
    for i in (turn, turn + 1):
        kind, dtype = ("float32", "float16", "int32", "float32")[i % 4], TYPES[i % 4]
        constant = (1, 2) if i % 2 else ()
        x = (rng.standard_normal(shape) * 20).astype(kind)
        inputs = [x, scales(rng, scale, "float16" if kind == "float16" else "float32"), whole(rng, dtype, scale)]
        (y,) = run_op(provider, "QuantizeLinear", inputs, attrs, constant=constant)
        np.testing.assert_array_equal(y, quantize_linear(*inputs, **attrs))
        (back,) = run_op(provider, "DequantizeLinear", [y, *inputs[1:]], attrs, constant=constant)
        wanted = dequantize_linear(y, *inputs[1:], **attrs)
        assert back.dtype == wanted.dtype
        np.testing.assert_allclose(back, wanted, rtol=1e-6)


def test_zero_point_left_out(provider: DeviceProvider, rng: np.random.Generator) -> None:
    x, scale = rng.standard_normal((4, 9)).astype(np.float32), scales(rng)
    (y,) = run_op(provider, "QuantizeLinear", [x, scale], {"output_dtype": to_onnx(np.dtype(np.int16))})
    np.testing.assert_array_equal(y, quantize_linear(x, scale, output_dtype=5))
    (back,) = run_op(provider, "DequantizeLinear", [y, scale], {"output_dtype": to_onnx(np.dtype(np.float16))})
    np.testing.assert_array_equal(back, dequantize_linear(y, scale, output_dtype=10))
    sums = rng.integers(-(2**31), 2**31, 50).astype(np.int32)
    (back,) = run_op(provider, "DequantizeLinear", [sums, scale])
    np.testing.assert_allclose(back, sums * np.float64(scale), rtol=2e-7)


@pytest.mark.parametrize("precision", [1, 10, 16])  # float32, float16, bfloat16
def test_precision_of_the_division(provider: DeviceProvider, rng: np.random.Generator, precision: int) -> None:
    x, scale = (rng.standard_normal(500) * 3).astype(np.float32), scales(rng)
    inputs = [x, scale, np.array(3, np.uint8)]
    (y,) = run_op(provider, "QuantizeLinear", inputs, {"precision": precision})
    np.testing.assert_array_equal(y, quantize_linear(*inputs, precision=precision))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"])
@pytest.mark.parametrize("saturate", [0, 1])
def test_quantize_to_float8(provider: DeviceProvider, rng: np.random.Generator, dtype: str, saturate: int) -> None:
    x = np.append(rng.standard_normal(300) * 40, [1e9, -1e9, 0, 300]).astype(np.float32)
    inputs = [x, np.float32([0.125]), np.zeros(1, dtype)]
    (y,) = run_op(provider, "QuantizeLinear", inputs, {"saturate": saturate})
    np.testing.assert_array_equal(plain(y), plain(quantize_linear(*inputs, saturate=saturate)))
    (back,) = run_op(provider, "DequantizeLinear", [y, inputs[1], inputs[2]])
    np.testing.assert_array_equal(back, plain(y) * np.float32(0.125))


@pytest.mark.parametrize("shape", [(), (1,), (7, 300), (70000,), (0, 3)])
@pytest.mark.parametrize(("low", "high"), [(-3, 5), (1, 2), (-7, -1), (0, 0)])
def test_dynamic_quantize_linear(
    provider: DeviceProvider, rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float
) -> None:
    x = np.asarray(rng.uniform(low, high, shape), np.float32)
    got = run_op(provider, "DynamicQuantizeLinear", [x], outputs=3)
    wanted = dynamic_quantize_linear(x)
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-6)
    np.testing.assert_array_equal(got[2], wanted[2])
    assert np.abs(plain(got[0]) - plain(wanted[0])).max(initial=0) <= 1


PAIRS = [("uint8", "uint8"), ("uint8", "int8"), ("int8", "uint8"), ("int8", "int8")]
MATRICES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((5, 700), (700, 33)), ((3, 1, 20, 3), (2, 3, 70)), ((7,), (7, 5)), ((4, 7), (7,)), ((20, 300), (300, 1)),
    ((1, 40), (40, 17)), ((2, 3, 4, 5, 6, 3), (2, 1, 4, 5, 3, 4)), ((0, 3), (3, 2)), ((3, 0), (0, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), MATRICES, ids=str)
def test_matmul_integer(
    provider: DeviceProvider, rng: np.random.Generator, a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    for i, (left, right) in enumerate(PAIRS):
        inputs = [whole(rng, left, a), whole(rng, right, b)]
        if i > 0:
            inputs += [whole(rng, left), whole(rng, right)]
        if i == 2 and len(a) == 2 and len(b) == 2:
            inputs[2:] = [whole(rng, left, a[:1]), whole(rng, right, b[1:])]
        for constant in ((), tuple(range(1, len(inputs)))):
            (y,) = run_op(provider, "MatMulInteger", inputs, constant=constant)
            np.testing.assert_array_equal(y, matmul_integer(*inputs))


@pytest.mark.parametrize("value", [255, -128])
def test_the_longest_sums_are_exact(provider: DeviceProvider, value: int) -> None:
    a = np.full((2, 30001), value, np.uint8 if value > 0 else np.int8)
    b = np.full((30001, 20), value, a.dtype)
    (y,) = run_op(provider, "MatMulInteger", [a, b])
    assert (y == 30001 * value * value).all()


CONVS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 64, 7, 9), (8, 64, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((2, 4, 7, 9), (6, 2, 3, 2), {"group": 2, "strides": (2, 1), "dilations": (1, 2), "auto_pad": "SAME_UPPER"}),
    ((3, 8, 4, 4), (5, 8, 4, 4), {}),
    ((3, 8, 4, 4), (5, 8, 1, 1), {}),
    ((1, 6, 9), (6, 1, 3), {"group": 6}),
    ((1, 2, 4, 5, 6), (3, 2, 2, 2, 2), {"pads": (0, 1, 0, 0, 0, 1)}),
    ((0, 2, 4, 4), (3, 2, 2, 2), {}),
]


@pytest.mark.parametrize(("x", "w", "attrs"), CONVS, ids=str)
def test_convolutions(
    provider: DeviceProvider, rng: np.random.Generator, x: tuple[int, ...], w: tuple[int, ...], attrs: Mapping[str, Any]
) -> None:
    turn = CONVS.index((x, w, attrs))
    for i, (image, filters) in [*enumerate(PAIRS)][turn % 2 :: 2]:
        inputs = [whole(rng, image, x), whole(rng, filters, w)]
        if i > 0:
            inputs += [whole(rng, image), whole(rng, filters, (w[0],) if i == 2 else ())]
        for constant in ((), tuple(range(1, len(inputs)))):
            (y,) = run_op(provider, "ConvInteger", inputs, attrs, constant=constant)
            np.testing.assert_array_equal(y, conv_integer(*inputs, **attrs))
        per = (w[0],) if i % 2 else ()
        zeros = [inputs[2], inputs[3]] if i > 0 else [np.zeros((), image), np.zeros((), filters)]
        every = [
            inputs[0], scales(rng), zeros[0], inputs[1], scales(rng, per), zeros[1], np.float32(0.6 * w[1]),
            whole(rng, image), rng.integers(-999, 999, w[0]).astype(np.int32),
        ]  # fmt: skip
        (y,) = run_op(provider, "QLinearConv", every, attrs, constant=(3, 4, 5))
        close(y, qlinear_conv(*every, **attrs))


def close(y: np.ndarray, wanted: np.ndarray, share: float = 0.01) -> None:
    """Equal but for a few numbers beside a tie, that float and double round apart."""
    assert (y.dtype, y.shape) == (wanted.dtype, wanted.shape)
    difference = np.abs(plain(y) - plain(wanted))
    assert difference.max(initial=0) <= 1
    assert np.count_nonzero(difference) <= max(share * difference.size, 1)


@pytest.mark.parametrize("real", ["float32", "float16"])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_qlinear_matmul(provider: DeviceProvider, rng: np.random.Generator, dtype: str, real: str) -> None:
    for rows, columns in (((), ()), ((5,), (9,))):
        inputs = [
            whole(rng, dtype, (5, 70)), scales(rng, rows, real), whole(rng, dtype, rows), whole(rng, "int8", (70, 9)),
            scales(rng, columns, real), whole(rng, "int8", columns), scales(rng, rows, real) * np.array(99, real),
            whole(rng, dtype, rows),
        ]  # fmt: skip
        (y,) = run_op(provider, "QLinearMatMul", inputs)
        close(y, qlinear_matmul(*inputs))


def real(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    return (x.astype(np.float64) - zero) * scale


def rounded(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    info = np.iinfo(zero.dtype)
    return (np.rint(x / scale) + zero).clip(info.min, info.max).astype(zero.dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_com_microsoft_elementwise(provider: DeviceProvider, rng: np.random.Generator, dtype: str) -> None:
    a = (whole(rng, dtype, (2, 3, 40)), scales(rng), whole(rng, dtype))
    b = (whole(rng, dtype, (3, 1)), scales(rng), whole(rng, dtype))
    out = (np.float32(0.0613), whole(rng, dtype))
    wanted = {
        "QLinearAdd": real(*a) + real(*b),
        "QLinearMul": real(*a) * real(*b),
        "QLinearSigmoid": 1 / (1 + np.exp(-real(*a))),
        "QLinearLeakyRelu": np.where(real(*a) < 0, 0.07 * real(*a), real(*a)),
    }
    for op, values in wanted.items():
        inputs = [*a, *b, *out] if op in ("QLinearAdd", "QLinearMul") else [*a, *out]
        attrs = {"alpha": 0.07} if op == "QLinearLeakyRelu" else {}
        constant = tuple(range(1, len(inputs))) if dtype == "int8" else ()
        (y,) = run_op(provider, op, inputs, attrs, domain=MS, constant=constant)
        close(y, rounded(values, *out))
    pick = rng.random((2, 3, 1)) > 0.5
    (y,) = run_op(provider, "QLinearWhere", [pick, *a, *b, *out], domain=MS)
    close(y, rounded(np.where(pick, real(*a), real(*b)), *out))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_com_microsoft_through_floats(provider: DeviceProvider, rng: np.random.Generator, dtype: str) -> None:
    x = (whole(rng, dtype, (2, 3, 8, 7)), scales(rng), whole(rng, dtype))
    values, out = real(*x), (np.float32(0.0313), whole(rng, dtype))

    def check(op: str, wanted: np.ndarray, to: tuple[Any, np.ndarray] = out, **attrs: Any) -> None:
        (y,) = run_op(provider, op, [*x, *to], attrs, domain=MS)
        close(y, rounded(wanted, *to))

    check("QLinearGlobalAveragePool", values.mean((2, 3), keepdims=True), channels_last=0)
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 2), (2, 3))[:, :, ::2]
    check("QLinearAveragePool", windows.mean((-2, -1)), kernel_shape=(3, 2), strides=(2, 1))
    check("QLinearReduceMean", values.mean(1, keepdims=True), axes=(1,), keepdims=1)
    for opset, axes in ((13, (1,)), (12, (1, 2, 3))):
        powers = np.exp(values - values.max(axes, keepdims=True))
        unit = (np.float32(1 / 256), np.array(np.iinfo(dtype).min, dtype))
        check("QLinearSoftmax", powers / powers.sum(axes, keepdims=True), unit, axis=1, opset=opset)
    other = (whole(rng, dtype, (2, 2, 8, 7)), scales(rng), whole(rng, dtype))
    (y,) = run_op(provider, "QLinearConcat", [*out, *x, *other], {"axis": 1}, domain=MS)
    close(y, rounded(np.concatenate([values, real(*other)], 1), *out))


@pytest.mark.parametrize("trans", [0, 1])
def test_com_microsoft_products(provider: DeviceProvider, rng: np.random.Generator, trans: int) -> None:
    a = (whole(rng, "uint8", (5, 70)), scales(rng), whole(rng, "uint8"))
    b = (whole(rng, "int8", (70, 9)), scales(rng, (9,)), whole(rng, "int8", (9,)))
    bias, out = rng.integers(-999, 999, 9).astype(np.int32), (np.float32(3.3), np.uint8(100))
    stored = (np.ascontiguousarray(b[0].T if trans else b[0]), *b[1:])
    values = 2 * (real(*a) @ real(*b) + bias * a[1].astype(np.float64) * b[1])
    attrs = {"transB": trans, "alpha": 2.0}
    every = [*a, *stored, bias, *map(np.asarray, out)]
    for constant in ((), (3, 4, 5)):
        (y,) = run_op(provider, "QGemm", every, attrs, domain=MS, constant=constant)
        close(y, rounded(values, *every[-2:]))
    (y,) = run_op(provider, "QGemm", [*a, *stored, bias], attrs, domain=MS)
    np.testing.assert_allclose(y, values, rtol=1e-5, atol=1e-3)
    add = rng.standard_normal(9).astype(np.float32)
    (y,) = run_op(provider, "MatMulIntegerToFloat", [a[0], b[0], a[1], b[1], a[2], b[2], add], domain=MS)
    np.testing.assert_allclose(y, real(*a) @ real(*b) + add, rtol=1e-5, atol=1e-3)
    x = rng.standard_normal((2, 5, 70)).astype(np.float32)
    (y,) = run_op(provider, "DynamicQuantizeMatMul", [x, b[0], b[1], b[2], add], domain=MS)
    np.testing.assert_allclose(y, real(*dynamic_quantize_linear(x)) @ real(*b) + add, rtol=1e-4, atol=0.05)


def test_conversions_fuse_with_what_they_surround(provider: DeviceProvider) -> None:
    f32, u8 = np.dtype(np.float32), np.dtype(np.uint8)
    quantized, scale, zero = ValueView("q", u8, (4, 5)), ValueView("s", f32, (5,)), ValueView("z", u8, (5,))
    nodes = [
        NodeView("DequantizeLinear", (quantized, scale, zero), (ValueView("a", f32),), {}, "", "from"),
        NodeView("Relu", (ValueView("a", f32),), (ValueView("b", f32),), {}, "", "relu"),
        NodeView("QuantizeLinear", (ValueView("b", f32), scale, zero), (ValueView("c", u8),), {}, "", "to"),
    ]
    graph = GraphView(tuple(nodes), (quantized, scale, zero), (ValueView("c", u8),))
    (unit,) = groups(provider, graph)
    assert not isinstance(unit, tuple)
    assert [n.name for n in unit.nodes] == ["from", "relu", "to"]
