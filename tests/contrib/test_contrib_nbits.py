"""Weights of a few bits, against ONNX Runtime."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import array, close, codes, constants, model, ours, quick

import gpurt
from gpurt.errors import GpurtError

SEED = st.integers(0, 1 << 20)


def scales(rng, *shape):
    return rng.uniform(0.01, 0.1, shape).astype(np.float32)


@quick
@given(SEED, st.sampled_from([2, 4, 8]), st.sampled_from(["default", "packed", "float"]), st.booleans(), st.booleans())
def test_matmul_nbits(seed, bits, zeros, bias, one_row):
    rng = np.random.default_rng(seed)
    block = int(rng.choice([16, 32, 64]))
    k, n = (int(d) for d in rng.integers(1, 150, 2))
    blocks = -(-k // block)
    if zeros == "float":
        bits = 4  # ONNX Runtime has floats there for no other width
    if zeros == "packed":
        zero = codes(rng, np.uint8, n, -(-blocks * bits // 8))
    else:
        zero = None if zeros == "default" else rng.uniform(0, 2**bits - 1, (n, blocks)).astype(np.float32)
    a = array(rng, 1, k) if one_row else array(rng, 2, 3, k)
    inputs = [
        a,
        codes(rng, np.uint8, n, blocks, block * bits // 8),
        scales(rng, n, blocks),
        zero,
        None,
        array(rng, n) if bias else None,
    ]
    close("MatMulNBits", inputs, {"K": k, "N": n, "bits": bits, "block_size": block}, tol=2e-5)


@quick
@given(SEED, st.booleans())
def test_matmul_nbits_with_groups(seed, zeros):
    rng = np.random.default_rng(seed)
    k, n, blocks = 64, 20, 4
    group = rng.integers(0, blocks, k).astype(np.int32)
    zero = codes(rng, np.uint8, n, 2)
    one_each = np.stack([zero & 15, zero >> 4], axis=2).reshape(n, blocks).astype(np.float32)
    first = [array(rng, 3, k), codes(rng, np.uint8, n, blocks, 8), scales(rng, n, blocks)]
    attrs = {"K": k, "N": n, "bits": 4, "block_size": 16}
    close("MatMulNBits", [*first, one_each if zeros else None, group], attrs, tol=2e-5)
    # With groups ONNX Runtime takes no notice of packed zero points; they must mean the same as others do.
    got = [ours("MatMulNBits", [*first, z, group], attrs)[0] for z in (zero, one_each)]
    np.testing.assert_array_equal(*got)


@pytest.mark.parametrize("bias", [True, False])
def test_an_empty_weight_is_a_projection_left_out(bias):
    rng = np.random.default_rng(0)
    b = array(rng, 5) if bias else None
    empty = np.zeros((0, 0), np.float32)
    (got,) = ours(
        "MatMulNBits",
        [array(rng, 2, 32), np.zeros((0, 2, 8), np.uint8), empty, None, None, b],
        {"K": 32, "N": 5, "block_size": 16},
    )
    np.testing.assert_array_equal(got, np.broadcast_to(b if bias else np.float32(0), (2, 5)))


def test_many_rows_are_unpacked_in_pieces():
    rng = np.random.default_rng(1)
    k, n = 2048, 700
    inputs = [array(rng, 2, k), codes(rng, np.uint8, n, k // 32, 16), scales(rng, n, k // 32)]
    close("MatMulNBits", inputs, {"K": k, "N": n, "bits": 4, "block_size": 32}, tol=2e-5)


def test_half_precision():
    rng = np.random.default_rng(2)
    inputs = [array(rng, 2, 64), codes(rng, np.uint8, 9, 2, 16), scales(rng, 9, 2)]
    attrs = {"K": 64, "N": 9, "block_size": 32}
    (wide,) = ours("MatMulNBits", inputs, attrs)
    (got,) = ours("MatMulNBits", [inputs[0].astype(np.float16), inputs[1], inputs[2].astype(np.float16)], attrs)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, wide, rtol=0.01, atol=0.01 * np.abs(wide).max())


@quick
@given(SEED, st.integers(0, 1), st.integers(1, 90), st.integers(1, 50))
def test_matmul_bnb4(seed, quant_type, k, n):
    rng = np.random.default_rng(seed)
    inputs = [
        array(rng, 3, k),
        codes(rng, np.uint8, -(-n * k // 2)),
        rng.uniform(0.5, 1, -(-n * k // 16)).astype(np.float32),
    ]
    close("MatMulBnb4", inputs, {"K": k, "N": n, "block_size": 16, "quant_type": quant_type}, tol=2e-5)


@quick
@given(SEED, st.sampled_from([2, 4, 8]), st.booleans(), st.sampled_from([np.int32, np.int64]))
def test_gather_block_quantized_bytes(seed, bits, zeros, index_type):
    rng = np.random.default_rng(seed)
    rows, width = int(rng.integers(1, 9)), 16 * int(rng.integers(1, 5))
    data = codes(rng, np.uint8, rows, width * bits // 8)
    zero = codes(rng, np.uint8, rows, -(-width // 16 * bits // 8)) if zeros else None
    indices = rng.integers(-rows, rows, (2, 3)).astype(index_type)
    close(
        "GatherBlockQuantized", [data, indices, scales(rng, rows, width // 16), zero], {"bits": bits, "block_size": 16}
    )


@quick
@given(SEED, st.sampled_from([ml_dtypes.int4, ml_dtypes.uint4]), st.integers(0, 2), st.integers(0, 2), st.booleans())
def test_gather_block_quantized_nibbles(seed, dtype, gather_axis, quantize_axis, zeros):
    rng = np.random.default_rng(seed)
    shape = [int(d) for d in rng.integers(1, 6, 3)]
    shape[quantize_axis] = int(rng.integers(1, 50))
    blocks = list(shape)
    blocks[quantize_axis] = -(-shape[quantize_axis] // 16)
    low = -8 if dtype == ml_dtypes.int4 else 0
    data, zero = (rng.integers(low, low + 16, s).astype(np.int8).astype(dtype) for s in (shape, blocks))
    scale = scales(rng, *blocks)
    indices = rng.integers(-shape[gather_axis], shape[gather_axis], (2, 2))
    inputs = [data, indices, scale, zero if zeros else None]
    attrs = {"block_size": 16, "gather_axis": gather_axis, "quantize_axis": quantize_axis}
    (got,) = ours("GatherBlockQuantized", inputs, attrs)

    def each(v):
        return np.repeat(v.astype(np.float64), 16, quantize_axis)[tuple(slice(0, d) for d in shape)]

    real = (data.astype(np.float64) - (each(zero) if zeros else 0)) * each(scale)
    np.testing.assert_allclose(got, np.take(real, indices, gather_axis), rtol=1e-5, atol=1e-6)


def test_gather_block_quantized_gives_zeros_outside():
    data = np.full((3, 16), 200, np.uint8)
    scales = np.ones((3, 1), np.float32)
    (got,) = ours("GatherBlockQuantized", [data, np.array([0, 3, -4, 2]), scales], {"bits": 8, "block_size": 16})
    np.testing.assert_array_equal(got[:, 0], [72, 0, 0, 72])


def test_weights_from_the_file():
    rng = np.random.default_rng(3)
    inputs = [array(rng, 2, 32), codes(rng, np.uint8, 4, 1, 16), np.ones((4, 1), np.float32)]
    attrs = {"K": 32, "N": 4, "block_size": 32}
    proto = constants(model("MatMulNBits", inputs, attrs, 1, "com.microsoft"), {"x1": inputs[1], "x2": inputs[2]})
    proto.graph.output[0].type.tensor_type.elem_type = 1
    session = gpurt.InferenceSession(proto.SerializeToString(), providers=["cpu"])
    np.testing.assert_array_equal(session.run(None, {"x0": inputs[0]})[0], ours("MatMulNBits", inputs, attrs)[0])


@pytest.mark.parametrize(("attrs", "message"), [({"bits": 3}, "bits is 3"), ({"weight_prepacked": 1}, "prepacked")])
def test_refusals(attrs, message):
    inputs = [np.zeros((2, 32), np.float32), np.zeros((4, 1, 16), np.uint8), np.ones((4, 1), np.float32)]
    with pytest.raises(GpurtError, match=message):
        ours("MatMulNBits", inputs, {"K": 32, "N": 4, "block_size": 32, **attrs})
