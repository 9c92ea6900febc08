"""Attention with packed weights and for several heads, and rotation, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import array, both, close, codes, near, ours, quick

from gpurt.errors import GpurtError

SEED = st.integers(0, 1 << 20)
MASK = st.sampled_from(["none", "ends", "ends and starts", "keys", "pairs"])


def mask_of(rng, kind, batch, queries, keys):
    if kind == "none":
        return None
    if kind == "keys":
        return rng.integers(0, 2, (batch, keys)).astype(np.int32)
    if kind == "pairs":
        return rng.integers(0, 2, (batch, queries, keys)).astype(np.int32)
    ends = rng.integers(1, keys + 1, batch)
    starts = np.array([rng.integers(0, e) for e in ends])
    return (ends if kind == "ends" else np.concatenate([ends, starts])).astype(np.int32)


@quick
@given(SEED, MASK, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_attention(seed, mask, causal, with_past, with_bias, other_value_size):
    rng = np.random.default_rng(seed)
    batch, length, hidden, heads, size, past = (int(v) for v in rng.integers(1, 6, 6))
    past *= with_past
    value_size = size + 2 if other_value_size and not with_past else size
    sizes = [heads * size, heads * size, heads * value_size]
    inputs = [
        array(rng, batch, length, hidden),
        array(rng, hidden, sum(sizes)),
        array(rng, sum(sizes)),
        mask_of(rng, mask, batch, length, past + length),
        array(rng, 2, batch, heads, past, size) if with_past else None,
        array(rng, batch, heads, length, past + length) if with_bias and not with_past else None,
    ]
    attrs = {"num_heads": heads, "unidirectional": int(causal)}
    if value_size != size:
        attrs["qkv_hidden_sizes"] = sizes
    if rng.random() < 0.5:
        attrs["scale"] = 0.3
    close("Attention", inputs, attrs, [True, with_past], tol=2e-5)


def test_attention_in_a_shared_buffer():
    rng = np.random.default_rng(4)
    x, w, b = array(rng, 2, 1, 6), array(rng, 6, 24), array(rng, 24)
    past = array(rng, 2, 2, 2, 3, 4)
    wanted, grown = ours("Attention", [x, w, b, None, past], {"num_heads": 2}, 2)
    buffer = np.zeros((2, 2, 2, 7, 4), np.float32)
    buffer[:, :, :, :3] = past
    got, present = ours("Attention", [x, w, b, None, buffer, None, np.array([3], np.int32)],
                        {"num_heads": 2, "past_present_share_buffer": 1}, 2)  # fmt: skip
    near(got, wanted)
    assert present.shape == buffer.shape
    near(present[:, :, :, :4], grown)


@quick
@given(SEED, MASK, st.booleans(), st.booleans(), st.sampled_from([np.uint8, np.int8]))
def test_qattention(seed, mask, causal, with_past, dtype):
    rng = np.random.default_rng(seed)
    batch, length, hidden, heads, size, past = (int(v) for v in rng.integers(1, 6, 6))
    past *= with_past
    columns = 3 * heads * size
    if mask == "ends and starts":
        mask = "ends"
    inputs = [
        codes(rng, np.uint8, batch, length, hidden), codes(rng, dtype, hidden, columns), array(rng, columns),
        np.float32(0.02), np.float32(0.03), mask_of(rng, mask, batch, length, past + length),
        np.uint8(120), dtype(3), array(rng, 2, batch, heads, past, size) if with_past else None,
    ]  # fmt: skip
    close("QAttention", inputs, {"num_heads": heads, "unidirectional": int(causal)}, [True, with_past], tol=2e-5)


@quick
@given(
    SEED,
    st.sampled_from(["none", "ends", "keys", "pairs"]),
    st.booleans(),
    st.sampled_from(["self", "past", "cross", "ready"]),
    st.booleans(),
)
def test_multi_head_attention(seed, mask, causal, kind, with_bias):
    rng = np.random.default_rng(seed)
    batch, length, heads, size, other = (int(v) for v in rng.integers(1, 6, 5))
    past = int(rng.integers(1, 5)) if kind == "past" else 0
    new = other if kind in ("cross", "ready") else length
    causal = causal and new == length  # ONNX Runtime has no causal cross attention
    hidden, keys = heads * size, past + new
    value_size = size if kind in ("past", "ready") else size + int(rng.integers(0, 2))
    q = array(rng, batch, length, hidden)
    if kind == "ready":
        k, v = array(rng, batch, heads, new, size), array(rng, batch, heads, new, value_size)
    else:
        k, v = array(rng, batch, new, hidden), array(rng, batch, new, heads * value_size)
    inputs = [
        q, k, v,
        array(rng, 2 * hidden + heads * value_size) if with_bias and kind != "ready" else None,
        mask_of(rng, mask, batch, length, keys),
        array(rng, 1, heads, length, keys) if rng.random() < 0.5 else None,
        array(rng, batch, heads, past, size) if past else None,
        array(rng, batch, heads, past, size) if past else None,
    ]  # fmt: skip
    wanted = 3 if kind == "past" else 1
    close("MultiHeadAttention", inputs, {"num_heads": heads, "unidirectional": int(causal)}, wanted, tol=2e-5)


@pytest.mark.parametrize("packed", [3, 2])
def test_packed_keys_are_the_same_keys(packed):
    # ONNX Runtime has these on GPUs only.
    rng = np.random.default_rng(5)
    parts = array(rng, 2, 4, 3, 3, 5)  # batch, length, heads, which, size
    q, k, v = (np.ascontiguousarray(parts[:, :, :, i]).reshape(2, 4, 15) for i in range(3))
    (wanted,) = ours("MultiHeadAttention", [q, k, v], {"num_heads": 3})
    inputs = [parts] if packed == 3 else [q, np.ascontiguousarray(parts[:, :, :, 1:])]
    (got,) = ours("MultiHeadAttention", inputs, {"num_heads": 3})
    near(got, wanted)


def test_multi_head_attention_in_a_shared_buffer():
    rng = np.random.default_rng(6)
    q, k, v = (array(rng, 2, 1, 6) for _ in range(3))
    past = array(rng, 2, 2, 3, 3)
    wanted = ours("MultiHeadAttention", [q, k, v, None, None, None, past, past], {"num_heads": 2}, 3)
    buffer = np.zeros((2, 2, 8, 3), np.float32)
    buffer[:, :, :3] = past
    filled = np.array([3], np.int32)
    got = ours("MultiHeadAttention", [q, k, v, None, None, None, buffer, buffer, filled], {"num_heads": 2}, 3)
    near(got[0], wanted[0])
    near(got[1][:, :, :4], wanted[1])


def test_multi_head_attention_shows_its_products():
    rng = np.random.default_rng(7)
    q, k, v = array(rng, 2, 3, 8), array(rng, 2, 5, 8), array(rng, 2, 5, 8)
    pairs = both("MultiHeadAttention", [q, k, v], {"num_heads": 2}, [True, False, False, True])
    for got, wanted in pairs:
        near(got, wanted)


@quick
@given(SEED, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_rotary_embedding(seed, interleaved, rank4, partial, offset):
    rng = np.random.default_rng(seed)
    batch, heads, length = (int(v) for v in rng.integers(1, 5, 3))
    half = int(rng.integers(1, 5))
    turned = 2 * half
    size = turned + 2 * int(rng.integers(1, 3)) if partial else turned
    if rank4:
        x = array(rng, batch, heads, length, size)
    else:
        x = array(rng, batch, length, heads * size)
    angles = rng.uniform(0, 6, (20, half)).astype(np.float32)
    if offset:
        position = rng.integers(0, 20 - length, 1)
    else:
        position = rng.integers(0, 20, (batch, length))
    attrs = {"interleaved": int(interleaved)}
    if partial:
        attrs |= {"rotary_embedding_dim": turned, "num_heads": heads}
    close("RotaryEmbedding", [x, position, np.cos(angles), np.sin(angles)], attrs)


def test_refusals():
    x, w = np.zeros((1, 2, 4), np.float32), np.zeros((4, 12), np.float32)
    with pytest.raises(GpurtError, match="do_rotary"):
        ours("Attention", [x, w], {"num_heads": 2, "do_rotary": 1})
    with pytest.raises(GpurtError, match="mask"):
        ours("Attention", [x, w, None, np.zeros((1, 5), np.int32)], {"num_heads": 2})
