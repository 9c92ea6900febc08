"""Normalisations with what is fused into them, against ONNX Runtime or, where it has no kernel on the CPU, NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import array, close, near, ours, quick, theirs

from gpurt.errors import GpurtError

SEED = st.integers(0, 1 << 20)


@quick
@given(SEED, st.sampled_from([np.float32, np.float64]), st.integers(-3, 2), st.booleans())
def test_simplified_layer_normalization(seed, dtype, axis, statistics):
    rng = np.random.default_rng(seed)
    x = array(rng, *rng.integers(1, 7, 3), dtype=dtype)
    scale = array(rng, *x.shape[axis:], dtype=dtype)
    # gpurt knows it in this domain too; ONNX Runtime has it in the standard's alone.
    attrs = {"axis": axis, "epsilon": 1e-3}
    got = ours("SimplifiedLayerNormalization", [x, scale], attrs, 1 + statistics)
    for g, w in zip(got, theirs("SimplifiedLayerNormalization", [x, scale], attrs, got, domain=""), strict=True):
        near(g, w)


@quick
@given(SEED, st.booleans(), st.booleans(), st.sampled_from(["same", "one", "flat"]))
def test_skip_layer_normalization(seed, with_beta, with_bias, skip):
    rng = np.random.default_rng(seed)
    batch, length, size = (int(d) for d in rng.integers(1, 7, 3))
    lead = {"same": (batch, length), "one": (1, length), "flat": (length,)}[skip]
    inputs = [
        array(rng, batch, length, size), array(rng, *lead, size), array(rng, size),
        array(rng, size) if with_beta else None, array(rng, size) if with_bias else None,
    ]  # fmt: skip
    close("SkipLayerNormalization", inputs, {"epsilon": 1e-3}, [True, False, False, True])


@quick
@given(SEED, st.booleans(), st.booleans())
def test_skip_simplified_layer_normalization(seed, with_bias, rank2):
    rng = np.random.default_rng(seed)
    shape = tuple(int(d) for d in rng.integers(1, 7, 2 if rank2 else 3))
    inputs = [
        array(rng, *shape),
        array(rng, *shape),
        array(rng, shape[-1]),
        array(rng, shape[-1]) if with_bias else None,
    ]
    close("SkipSimplifiedLayerNormalization", inputs, {"epsilon": 1e-3}, [True, False, False, True])


def test_statistics_of_the_sum():
    # ONNX Runtime leaves these outputs unwritten on the CPU.
    rng = np.random.default_rng(0)
    x, skip, gamma = array(rng, 2, 3, 8), array(rng, 2, 3, 8), array(rng, 8)
    total = x.astype(np.float64) + skip
    mean = total.mean(axis=-1, keepdims=True)
    for op, spread in (
        ("SkipLayerNormalization", ((total - mean) ** 2)),
        ("SkipSimplifiedLayerNormalization", total**2),
    ):
        _, got, inverse, _ = ours(op, [x, skip, gamma], {}, 4)
        near(got, mean)
        near(inverse, 1 / np.sqrt(spread.mean(axis=-1, keepdims=True)))


@quick
@given(SEED, st.booleans(), st.booleans(), st.sampled_from(["none", "one", "all"]))
def test_embed_layer_normalization(seed, with_segments, with_mask, positions):
    rng = np.random.default_rng(seed)
    batch, length, size = (int(d) for d in rng.integers(1, 7, 3))
    size += 1
    ids = rng.integers(0, 9, (batch, length)).astype(np.int32)
    place = rng.integers(0, 8, (1 if positions == "one" else batch, length)).astype(np.int32)
    inputs = [
        ids,
        rng.integers(0, 2, (batch, length)).astype(np.int32) if with_segments else None,
        array(rng, 9, size), array(rng, 8, size), array(rng, 2, size) if with_segments else None,
        array(rng, size), array(rng, size),
        rng.integers(0, 2, (batch, length)).astype(np.int32) if with_mask else None,
        None if positions == "none" else place,
    ]  # fmt: skip
    close("EmbedLayerNormalization", inputs, {"epsilon": 1e-3}, 3)


def group_norm(x, gamma, beta, groups, activation, channels_last):
    """The operator as its documentation has it, in float64."""
    y = x if channels_last else np.moveaxis(x, 1, -1)
    shape, parts = y.shape, y.reshape(y.shape[0], -1, groups, y.shape[-1] // groups)
    mean, deviation = parts.mean(axis=(1, 3), keepdims=True), parts.std(axis=(1, 3), keepdims=True)
    y = ((parts - mean) / np.sqrt(deviation**2 + 1e-5)).reshape(shape) * gamma + beta
    y = y / (1 + np.exp(-y)) if activation else y
    return y if channels_last else np.moveaxis(y, -1, 1)


@quick
@given(SEED, st.booleans(), st.booleans(), st.sampled_from(["none", "same", "one place", "flat"]), st.booleans())
def test_group_norms(seed, channels_last, activation, skip, with_bias):
    # No kernel in ONNX Runtime on the CPU.
    rng = np.random.default_rng(seed)
    groups, share = (int(d) for d in rng.integers(1, 4, 2))
    n, h, w = (int(d) for d in rng.integers(1, 5, 3))
    c = groups * share

    def shaped(h, w):
        return (n, h, w, c) if channels_last else (n, c, h, w)

    x, gamma, beta = array(rng, *shaped(h, w)), array(rng, c), array(rng, c)
    attrs = {"activation": int(activation), "groups": groups, "channels_last": int(channels_last)}
    if skip == "none":
        (got,) = ours("GroupNorm", [x, gamma, beta], attrs)
        near(got, group_norm(x.astype(np.float64), gamma, beta, groups, activation, channels_last), 1e-4)
        return
    s = array(rng, *{"same": shaped(h, w), "one place": shaped(1, 1), "flat": (n, c)}[skip])
    bias = array(rng, c) if with_bias else None
    got, total = ours("SkipGroupNorm", [x, gamma, beta, s, bias], attrs, 2)
    wanted = x.astype(np.float64) + (s.reshape(shaped(1, 1)) if skip == "flat" else s)
    if with_bias:
        wanted = wanted + (bias if channels_last else bias[:, None, None])
    near(total, wanted)
    near(got, group_norm(wanted, gamma, beta, groups, activation, channels_last), 1e-4)


def test_group_norm_in_half_precision_with_float_weights():
    rng = np.random.default_rng(1)
    x, gamma, beta = array(rng, 1, 3, 3, 4, dtype=np.float16), array(rng, 4), array(rng, 4)
    (got,) = ours("GroupNorm", [x, gamma, beta], {"activation": 1, "groups": 2})
    assert got.dtype == np.float16
    near(got, group_norm(x.astype(np.float64), gamma, beta, 2, True, True), 2e-3)


def test_refusals():
    x, c = np.zeros((1, 2, 2, 3), np.float32), np.zeros(3, np.float32)
    with pytest.raises(GpurtError, match="activation is 2"):
        ours("GroupNorm", [x, c, c], {"activation": 2, "groups": 1})
    with pytest.raises(GpurtError, match="2 groups"):
        ours("GroupNorm", [x, c, c], {"activation": 0, "groups": 2})
    ids, table = np.array([[5]], np.int32), np.zeros((3, 3), np.float32)
    with pytest.raises(GpurtError, match="word ids"):
        ours("EmbedLayerNormalization", [ids, None, table, table, None, c, c])
