"""Operators from 8-bit tensors to 8-bit tensors, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import array, both, close, codes, ours, quick, steps

from gpurt.errors import GpurtError

BYTE = st.sampled_from([np.uint8, np.int8])
SEED = st.integers(0, 1 << 20)


def scale(rng):
    return np.float32(rng.uniform(0.01, 0.1)).reshape(())


def pair(rng, dtype):
    return scale(rng), codes(rng, dtype).reshape(())


@quick
@given(SEED, BYTE, st.sampled_from(["QLinearAdd", "QLinearMul"]), st.booleans())
def test_binary(seed, dtype, op, alone):
    rng = np.random.default_rng(seed)
    full = tuple(rng.integers(1, 9, rng.integers(1, 5)))
    part = tuple(d if rng.random() < 0.6 else 1 for d in full)[rng.integers(0, len(full)) :]
    a, b = codes(rng, dtype, *full), codes(rng, dtype, *(() if alone else part))
    if rng.random() < 0.5:
        a, b = b, a
    (sa, za), (sb, zb), (sc, zc) = (pair(rng, dtype) for _ in range(3))
    sc = np.float32(sc * (1 if op == "QLinearAdd" else 5)).reshape(())
    steps(op, [a, sa, za, b, sb, zb, sc, zc])


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_zero_points_may_be_left_out(op):
    # ONNX Runtime's type inference fails there, against its own schema.
    rng = np.random.default_rng(0)
    a, b, s = codes(rng, np.int8, 20), codes(rng, np.int8, 20), [np.float32(0.1 * i) for i in (1, 2, 3)]
    zero = np.int8(0)
    wanted = ours(op, [a, s[0], zero, b, s[1], zero, s[2], zero])
    np.testing.assert_array_equal(ours(op, [a, s[0], None, b, s[1], None, s[2]]), wanted)


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_binary_rounds_halves_like_onnx_runtime(op):
    every = np.arange(256, dtype=np.uint8)
    half, one = np.float32(0.5).reshape(()), np.float32(1).reshape(())
    b = np.ones(256, np.uint8)
    for zero in (0, 3, 120):
        z = np.uint8(zero).reshape(())
        ((got, wanted),) = both(op, [every, half, z, b, one, np.uint8(0).reshape(()), one, z])
        np.testing.assert_array_equal(got, wanted)


@quick
@given(SEED, BYTE, st.sampled_from(["QLinearSigmoid", "QLinearLeakyRelu"]))
def test_unary(seed, dtype, op):
    rng = np.random.default_rng(seed)
    x = codes(rng, dtype, *rng.integers(1, 7, rng.integers(1, 5)))
    (sx, zx), (sy, zy) = pair(rng, dtype), pair(rng, dtype)
    if op == "QLinearSigmoid":
        sy = np.float32(1 / 256).reshape(())
    steps(op, [x, sx, zx, sy, zy], {"alpha": float(rng.uniform(0, 0.5))} if op == "QLinearLeakyRelu" else {})


@quick
@given(SEED, BYTE, st.integers(-3, 2), st.sampled_from([11, 13]))
def test_softmax(seed, dtype, axis, opset):
    rng = np.random.default_rng(seed)
    x = codes(rng, dtype, *rng.integers(1, 9, 3))
    zero = np.array(rng.choice([0, 5]), dtype)
    steps("QLinearSoftmax", [x, scale(rng), codes(rng, dtype).reshape(()), np.float32(1 / 256).reshape(()), zero],
          {"axis": axis, "opset": opset})  # fmt: skip


@quick
@given(SEED, BYTE, st.booleans(), st.booleans(), st.booleans())
def test_average_pool(seed, dtype, channels_last, ceil_mode, include_pad):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 4))
    kernel = [int(k) for k in rng.integers(1, 4, n)]
    spatial = [int(rng.integers(k, 9)) for k in kernel]
    pads = [int(rng.integers(0, k)) for k in kernel * 2]
    shape = (2, *spatial, 3) if channels_last else (2, 3, *spatial)
    (sx, zx), (sy, zy) = pair(rng, dtype), pair(rng, dtype)
    attrs = {"kernel_shape": kernel, "pads": pads, "strides": [int(s) for s in rng.integers(1, 3, n)]}
    attrs |= {"channels_last": int(channels_last), "ceil_mode": int(ceil_mode)}
    # With both, ONNX Runtime counts what lies behind the padding too, unlike its own AveragePool.
    attrs["count_include_pad"] = int(include_pad and not ceil_mode)
    steps("QLinearAveragePool", [codes(rng, dtype, *shape), sx, zx, sy, zy], attrs)


@quick
@given(SEED, BYTE, st.booleans())
def test_global_average_pool(seed, dtype, channels_last):
    rng = np.random.default_rng(seed)
    x = codes(rng, dtype, *rng.integers(1, 6, rng.integers(3, 6)))
    (sx, zx), (sy, zy) = pair(rng, dtype), pair(rng, dtype)
    steps("QLinearGlobalAveragePool", [x, sx, zx, sy, zy], {"channels_last": int(channels_last)})


@quick
@given(SEED, BYTE, st.booleans())
def test_reduce_mean(seed, dtype, keepdims):
    # ONNX Runtime has no kernel for it on the CPU.
    rng = np.random.default_rng(seed)
    x = codes(rng, dtype, *rng.integers(1, 6, 4))
    axes = sorted(int(a) for a in rng.choice(4, rng.integers(1, 4), replace=False))
    (sx, zx), (sy, zy) = pair(rng, dtype), pair(rng, dtype)
    (got,) = ours("QLinearReduceMean", [x, sx, zx, sy, zy], {"axes": axes, "keepdims": int(keepdims)})
    real = (x.astype(np.float64) - float(zx)).mean(axis=tuple(axes), keepdims=keepdims) * float(sx)
    info = np.iinfo(dtype)
    exact = np.clip(real / float(sy) + float(zy), info.min, info.max)
    assert got.dtype == dtype
    assert got.shape == exact.shape
    assert np.abs(got - exact).max() <= 0.5 + 1e-4


@quick
@given(SEED, BYTE, st.integers(-3, 2), st.integers(1, 4))
def test_concat(seed, dtype, axis, count):
    rng = np.random.default_rng(seed)
    shape = list(rng.integers(1, 5, 3))
    y_scale, y_zero = pair(rng, dtype)
    inputs = [y_scale, y_zero]
    for i in range(count):
        shape[axis] = int(rng.integers(1, 5))
        # ONNX Runtime copies what is quantized alike.
        s, z = (y_scale, y_zero) if i == 1 else pair(rng, dtype)
        inputs += [codes(rng, dtype, *shape), s, z]
    steps("QLinearConcat", inputs, {"axis": axis})


@quick
@given(SEED, BYTE)
def test_where(seed, dtype):
    rng = np.random.default_rng(seed)
    condition = rng.random((3, 1, 4)) < 0.5
    (sx, zx), (sy, zy), (sz, zz) = (pair(rng, dtype) for _ in range(3))
    steps("QLinearWhere", [condition, codes(rng, dtype, 2, 4), sx, zx, codes(rng, dtype, 3, 2, 1), sy, zy, sz, zz])


@quick
@given(SEED, st.booleans(), st.booleans())
def test_conv_in_either_layout(seed, channels_last, per_filter):
    rng = np.random.default_rng(seed)
    w = codes(rng, np.int8, 5, 3, 3, 2)
    x = codes(rng, np.uint8, *((2, 7, 6, 3) if channels_last else (2, 3, 7, 6)))
    sw = rng.uniform(0.001, 0.01, 5 if per_filter else 1).astype(np.float32)
    (sx, zx), (sy, zy) = pair(rng, np.uint8), pair(rng, np.uint8)
    bias = rng.integers(-999, 999, 5).astype(np.int32)
    steps("QLinearConv", [x, sx, zx, w, sw, np.zeros(sw.shape, np.int8), sy, zy, bias],
          {"channels_last": int(channels_last), "pads": [1, 0, 1, 1], "strides": [1, 2]})  # fmt: skip


@quick
@given(SEED, st.sampled_from([np.uint8, np.int8, np.uint16, np.int16]), st.booleans())
def test_quantize_and_dequantize(seed, dtype, per_axis):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 6, 3))
    axis = int(rng.integers(0, 3))
    sizes = (shape[axis],) if per_axis else ()
    s, z = np.asarray(rng.uniform(0.01, 0.1, sizes), np.float32), np.asarray(codes(rng, dtype, *sizes))
    steps("QuantizeLinear", [array(rng, *shape), s, z], {"axis": axis} if per_axis else {})
    close("DequantizeLinear", [codes(rng, dtype, *shape), s, z], {"axis": axis} if per_axis else {})


def test_a_scale_for_each_channel_is_refused():
    x, zero = np.zeros((2, 3), np.uint8), np.zeros((), np.uint8)
    one, three = np.ones((), np.float32), np.ones(3, np.float32)
    with pytest.raises(GpurtError, match="one scale"):
        ours("QLinearAdd", [x, three, zero, x, one, zero, one, zero])
