"""Matrix products and the LSTM of 8-bit weights, against ONNX Runtime and exact integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import array, both, close, codes, near, ours, quick, steps

from gpurt.errors import GpurtError
from gpurt_cpu.ops.contrib_quantized import integer_product

BYTE = st.sampled_from([np.uint8, np.int8])
SEED = st.integers(0, 1 << 20)


def scales(rng, *shape):
    return np.asarray(rng.uniform(0.01, 0.1, shape), np.float32)


@pytest.mark.parametrize("length", [1, 257, 258, 259, 1000, 4099])
@pytest.mark.parametrize("extreme", [True, False])
def test_products_are_exact(length, extreme):
    rng = np.random.default_rng(length)
    a, b = codes(rng, np.uint8, 3, length), codes(rng, np.int8, length, 5)
    if extreme:  # sums as large as they come
        a[:], b[:] = 255, -128
    zero = np.array([127, -128, 3, 0, 1], np.int8)
    got = integer_product(a, b, np.uint8(0).reshape(()), zero)
    wanted = a.astype(np.int64) @ (b.astype(np.int64) - zero.astype(np.int64))
    np.testing.assert_array_equal(got.astype(np.int64), wanted)


@quick
@given(SEED, BYTE, BYTE, st.booleans(), st.sampled_from(["none", "bias", "quantized", "all"]))
def test_qgemm(seed, left, right, per_column, what):
    rng = np.random.default_rng(seed)
    if left == np.int8:
        right = np.int8  # ONNX Runtime has no kernel for s8 x u8
    m, k, n = (int(d) for d in rng.integers(1, 20, 3))
    attrs = {"transA": int(rng.integers(0, 2)), "transB": int(rng.integers(0, 2)), "alpha": float(rng.uniform(0.5, 2))}
    a, b = (
        codes(rng, left, *((k, m) if attrs["transA"] else (m, k))),
        codes(rng, right, *((n, k) if attrs["transB"] else (k, n))),
    )
    size = (n,) if per_column else ()
    inputs = [a, scales(rng), codes(rng, left), b, scales(rng, *size), np.asarray(codes(rng, right, *size))]
    inputs.append(
        rng.integers(-5000, 5000, [(n,), (1, n), (m, n), (m, 1)][rng.integers(4)]).astype(np.int32)
        if what in ("bias", "all")
        else None
    )
    if what in ("quantized", "all"):
        steps("QGemm", [*inputs, np.float32(3).reshape(()), np.asarray(codes(rng, left))], attrs)
    else:
        close("QGemm", inputs if inputs[-1] is not None else inputs[:-1], attrs)


@quick
@given(SEED, BYTE, BYTE, st.booleans(), st.booleans(), st.booleans())
def test_matmul_integer_to_float(seed, left, right, per_column, zeros, bias):
    rng = np.random.default_rng(seed)
    if left == np.int8:
        right = np.int8
    k, n = (int(d) for d in rng.integers(1, 20, 2))
    size = (n,) if per_column else ()
    a, b = codes(rng, left, *rng.integers(1, 5, rng.integers(1, 3)), k), codes(rng, right, k, n)
    close("MatMulIntegerToFloat", [
        a, b, scales(rng), scales(rng, *size),
        np.asarray(codes(rng, left)) if zeros else None,
        np.asarray(codes(rng, right, *size)) if zeros else None,
        array(rng, n) if bias else None,
    ])  # fmt: skip


@quick
@given(SEED, BYTE, st.booleans(), st.booleans())
def test_dynamic_quantize_matmul(seed, dtype, per_column, bias):
    rng = np.random.default_rng(seed)
    k, n = (int(d) for d in rng.integers(1, 30, 2))
    size = (n,) if per_column else ()
    a = array(rng, *rng.integers(1, 5, rng.integers(1, 3)), k)
    close("DynamicQuantizeMatMul", [
        a, codes(rng, dtype, k, n), scales(rng, *size), np.asarray(codes(rng, dtype, *size)),
        array(rng, n) if bias else None,
    ])  # fmt: skip


@quick
@given(SEED, BYTE, st.sampled_from(["forward", "reverse", "bidirectional"]), st.booleans(), st.booleans())
def test_dynamic_quantize_lstm(seed, dtype, direction, per_column, more):
    rng = np.random.default_rng(seed)
    d = 2 if direction == "bidirectional" else 1
    steps_, size, n = (int(v) for v in rng.integers(1, 9, 3))
    size += int(rng.integers(0, 2)) * 300
    batch = 3  # a batch is one quantization in ONNX Runtime too, on one thread
    w, r = codes(rng, dtype, d, size, 4 * n), codes(rng, dtype, d, n, 4 * n)
    v = (d, 4 * n) if per_column else (d,)
    zero = np.zeros(v, dtype) + (128 if dtype == np.uint8 else 0)
    x = array(rng, steps_, batch, size)
    inputs = [
        x, w, r,
        array(rng, d, 8 * n) if more else None,
        rng.integers(1, steps_ + 1, batch).astype(np.int32) if more else None,
        array(rng, d, batch, n) * np.float32(0.3) if more else None,
        array(rng, d, batch, n) if more else None,
        array(rng, d, 3 * n) if more else None,
        scales(rng, *v) * np.float32(0.01), zero.astype(dtype), scales(rng, *v) * np.float32(0.01), zero.astype(dtype),
    ]  # fmt: skip
    # Quantizing anew in each step may turn float noise into a step of 1/255; the weights are small enough for this.
    for got, wanted in both("DynamicQuantizeLSTM", inputs, {"direction": direction, "hidden_size": n}, 3):
        near(got, wanted, 0.002)


def test_scales_must_be_one_or_fit():
    a, b = np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)
    with pytest.raises(GpurtError, match="one scale"):
        ours("MatMulIntegerToFloat", [a, b, np.ones(2, np.float32), np.ones((), np.float32)])
    one, zero = np.ones((), np.float32), np.zeros((), np.uint8)
    with pytest.raises(GpurtError, match="come together"):
        ours("QGemm", [a, one, zero, b, one, zero, None, one])
