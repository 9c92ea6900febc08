"""Products, convolutions and activations in one, against ONNX Runtime or, where it has no kernel on the CPU, NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import array, close, codes, near, ours, quick

from gpurt.errors import GpurtError

SEED = st.integers(0, 1 << 20)


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def wide(*arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


CONV_ACTIVATIONS = [
    ("", []), ("Relu", []), ("Tanh", []), ("Sigmoid", []), ("LeakyRelu", [0.3]), ("Clip", [-0.5, 1.5]),
    ("HardSigmoid", [0.3, 0.4]),
]  # fmt: skip


@quick
@given(SEED, st.sampled_from(CONV_ACTIVATIONS), st.booleans(), st.booleans(), st.integers(1, 2))
def test_fused_conv(seed, activation, bias, with_sum, group):
    rng = np.random.default_rng(seed)
    x, w = array(rng, 2, 4, 7, 6), array(rng, 6, 4 // group, 3, 2)
    inputs = [x, w, array(rng, 6) if bias else None, array(rng, 2, 6, 4, 6) if with_sum else None]
    attrs = {"group": group, "pads": [1, 0, 1, 1], "strides": [2, 1]}
    if activation[0]:
        attrs |= {"activation": activation[0]}
    if activation[1]:
        attrs |= {"activation_params": activation[1]}
    close("FusedConv", inputs, attrs, tol=2e-5)


@quick
@given(SEED, st.booleans())
def test_nhwc_fused_conv(seed, with_sum):
    rng = np.random.default_rng(seed)
    x, w, b = array(rng, 2, 7, 6, 3), array(rng, 4, 3, 3, 3), array(rng, 4)
    z = array(rng, 2, 7, 6, 4) if with_sum else None
    attrs = {"activation": "Relu", "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    (got,) = ours("NhwcFusedConv", [x, w, b, z], attrs)
    first = [None if a is None else np.moveaxis(a, -1, 1).copy() for a in (x, z)]
    (wanted,) = ours("FusedConv", [first[0], w, b, first[1]], attrs)
    near(got, np.moveaxis(wanted, 1, -1))


@pytest.mark.parametrize("group", [1, 2])
def test_nhwc_conv(group):
    # No kernel in ONNX Runtime on the CPU.
    rng = np.random.default_rng(0)
    x, w, b = array(rng, 2, 6, 5, 4), array(rng, 6, 3, 2, 4 // group), array(rng, 6)
    (got,) = ours("NhwcConv", [x, w, b], {"pads": [1, 0, 1, 0], "group": group})
    padded = np.pad(x.astype(np.float64), [(0, 0), (1, 1), (0, 0), (0, 0)])
    wanted = np.zeros((2, 6, 4, 6)) + b
    share = 6 // group
    for g in range(group):
        part = padded[..., g * (4 // group) : (g + 1) * (4 // group)]
        for i in range(3):
            for j in range(2):
                tap = w[g * share : (g + 1) * share, i, j].astype(np.float64)
                wanted[..., g * share : (g + 1) * share] += part[:, i : i + 6, j : j + 4] @ tap.T
    near(got, wanted)


@quick
@given(SEED, st.sampled_from([np.uint8, np.int8]))
def test_nhwc_max_pool(seed, dtype):
    rng = np.random.default_rng(seed)
    x = codes(rng, dtype, 2, 7, 6, 3)
    close("NhwcMaxPool", [x], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}, tol=0)


def test_conv_transpose_with_dynamic_pads():
    rng = np.random.default_rng(1)
    x, w, b = array(rng, 1, 3, 4, 5), array(rng, 3, 2, 3, 3), array(rng, 2)
    pads = np.array([1, 0, 1, 2])
    close("ConvTransposeWithDynamicPads", [x, w, pads, b], {"strides": [2, 1]}, tol=2e-5)


GEMM_ACTIVATIONS = [
    ("Relu", {}), ("Tanh", {}), ("Sigmoid", {}), ("Softplus", {}), ("Softsign", {}),
    ("LeakyRelu", {"activation_alpha": 0.3}), ("Elu", {"activation_alpha": 0.7}),
    ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}),
    ("ThresholdedRelu", {"activation_alpha": 0.5}),
]  # fmt: skip


@quick
@given(SEED, st.sampled_from(GEMM_ACTIVATIONS), st.booleans(), st.booleans(), st.booleans())
def test_fused_gemm(seed, activation, left, right, with_c):
    rng = np.random.default_rng(seed)
    m, k, n = (int(d) for d in rng.integers(1, 8, 3))
    a, b = array(rng, *((k, m) if left else (m, k))), array(rng, *((n, k) if right else (k, n)))
    attrs = {"transA": int(left), "transB": int(right), "alpha": 0.7, "beta": 1.3, "activation": activation[0]}
    close("FusedGemm", [a, b, array(rng, n) if with_c else None], attrs | activation[1], tol=2e-5)


@quick
@given(SEED, st.booleans(), st.booleans(), st.sampled_from(["FusedMatMul", "TransposeMatMul"]), st.booleans())
def test_fused_matmul(seed, left, right, op, batches):
    rng = np.random.default_rng(seed)
    m, k, n = (int(d) for d in rng.integers(1, 8, 3))
    lead = (3, 2)
    a, b = array(rng, *lead, *((k, m) if left else (m, k))), array(rng, *lead, *((n, k) if right else (k, n)))
    attrs = {"transA": int(left), "transB": int(right), "alpha": 0.7}
    if op == "FusedMatMul" and batches:
        a, b = (np.ascontiguousarray(np.moveaxis(x, -2, 0)) for x in (a, b))  # the batches follow the first axis
        attrs |= {"transBatchA": 1, "transBatchB": 1}
    close(op, [a, b], attrs, tol=2e-5)


@pytest.mark.parametrize(
    ("activation", "more"), [("Relu", {}), ("LeakyRelu", {"activation_alpha": 0.2}), ("Softmax", {})]
)
def test_fused_matmul_activation(activation, more):
    rng = np.random.default_rng(2)
    a, b = array(rng, 2, 3, 4), array(rng, 2, 4, 5)
    (got,) = ours("FusedMatMulActivation", [a, b], {"activation": activation, "alpha": 0.5, **more})
    y = np.matmul(*wide(a, b)) * 0.5
    wanted = {"Relu": np.maximum(y, 0), "LeakyRelu": np.where(y < 0, 0.2 * y, y), "Softmax": softmax(y)}
    near(got, wanted[activation])


@quick
@given(SEED, st.sampled_from(["Gelu", "FastGelu", "QuickGelu", "BiasGelu"]), st.booleans())
def test_gelus(seed, op, with_bias):
    rng = np.random.default_rng(seed)
    x = array(rng, *rng.integers(1, 9, 3)) * 3
    bias = array(rng, x.shape[-1])
    inputs = [x, bias] if op == "BiasGelu" or (op == "FastGelu" and with_bias) else [x]
    close(op, inputs, {"alpha": 1.3} if op == "QuickGelu" and with_bias else {}, tol=2e-5)


def test_what_onnx_runtime_has_on_gpus_only():
    rng = np.random.default_rng(3)
    x, bias, skip = array(rng, 2, 5, 8), array(rng, 8), array(rng, 2, 5, 8)
    s = np.add(*wide(x, bias))
    near(ours("BiasSplitGelu", [x, bias])[0], s[..., :4] * gelu(s[..., 4:]))
    near(ours("BiasAdd", [x, bias, skip])[0], s + skip)
    w, more = array(rng, 8, 3), array(rng, 3)
    near(ours("GemmFastGelu", [x, w, more])[0], ours("FastGelu", [np.matmul(x, w), more])[0])


@pytest.mark.parametrize(
    ("inner", "axis", "shape"), [(1, 3, (2, 1, 1, 5)), (0, 3, (4, 5)), (1, 2, (2, 4, 5)), (0, 1, (3, 4, 5))]
)
def test_bias_softmax(inner, axis, shape):
    # No kernel in ONNX Runtime on the CPU.
    rng = np.random.default_rng(4)
    x, bias = array(rng, 2, 3, 4, 5), array(rng, *shape)
    (got,) = ours("BiasSoftmax", [x, bias], {"axis": axis, "is_inner_broadcast": inner})
    whole = bias.reshape(2, 1, 4, 5) if shape == (2, 4, 5) else bias
    y = (x.astype(np.float64) + whole).reshape(*x.shape[:axis], -1)
    near(got, softmax(y).reshape(x.shape))


def test_dropouts():
    rng = np.random.default_rng(5)
    x, bias, residual = array(rng, 7, 9), array(rng, 9), array(rng, 7, 9)
    y, mask = ours("BiasDropout", [x, bias, residual], {}, 2)
    near(y, x + bias + residual)
    assert mask.all()
    training = [np.float32(0.4), np.array(True)]
    y, mask = ours("BiasDropout", [x, bias, residual, *training], {"seed": 3}, 2)
    near(y, np.where(mask, (x + bias) / 0.6, 0) + residual)
    assert 0.3 < mask.mean() < 0.9
    z, words = ours("BitmaskBiasDropout", [x, bias, residual, *training], {"seed": 3}, 2)
    assert (words.dtype, words.shape) == (np.uint32, (2,))
    np.testing.assert_array_equal(z, y)
    bits = [words[i // 32] >> np.uint32(i % 32) & 1 for i in range(63)]
    np.testing.assert_array_equal(bits, mask.reshape(-1))
    y, words = ours("BitmaskDropout", [x], {}, 2)
    np.testing.assert_array_equal(y, x)
    assert words.tolist() == [(1 << 32) - 1, (1 << 31) - 1]


@pytest.mark.parametrize("op", ["FusedConv", "FusedGemm", "BiasGelu", "FastGelu", "BiasSplitGelu"])
def test_half_precision(op):
    rng = np.random.default_rng(6)
    inputs = {
        "FusedConv": [array(rng, 1, 2, 4, 4), array(rng, 3, 2, 3, 3)],
        "FusedGemm": [array(rng, 3, 4), array(rng, 4, 5)],
    }.get(op, [array(rng, 3, 4), array(rng, 4)])
    inputs = [x.astype(np.float16) for x in inputs]
    (got,) = ours(op, inputs)
    (wanted,) = ours(op, [x.astype(np.float32) for x in inputs])
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, wanted.astype(np.float16))


def test_unknown_activation():
    with pytest.raises(GpurtError, match="activation is 'Swosh'"):
        ours("FusedGemm", [np.ones((2, 2), np.float32)] * 2, {"activation": "Swosh"})
