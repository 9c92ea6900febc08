"""Scaled dot product attention with caches, masks and windows, and rotary position embedding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.activation import narrow_softmax, softmax
from gpurt_cpu.ops.common import NARROW, dtype_of, lifted, widen
from gpurt_cpu.ops.table import Array, op


def split_heads(x: Array, heads: int | None) -> Array:
    """(batch, length, heads * size) as (batch, heads, length, size); an array of rank 4 is one already."""
    if x.ndim == 4:
        return x
    if x.ndim != 3 or not heads or x.shape[2] % heads:
        raise InvalidArgument(
            f"cannot split {x.shape} into {heads} heads",
            remedy="An input of rank 3 needs q_num_heads and kv_num_heads that divide its last axis",
        )
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _bias(
    shape: tuple[int, int, int],
    mask: Array | None,
    *,
    causal: bool,
    window: tuple[int, int],
    offset: Array,
    lengths: Array | None,
    dtype: np.dtype[Any],
) -> Array | None:
    """What is added to the scores: 0 where a query may look, minus infinity where not, plus a float mask.

    The result broadcasts to (batch, heads, queries, keys). ``offset`` is what precedes the queries, for each batch.
    """
    batch, queries, keys = shape
    allowed: Array | None = None
    ahead = np.arange(keys) - (np.arange(queries)[:, None] + offset.reshape(-1, 1, 1, 1))  # key place less query place
    left, right = window
    for refused in (
        ahead > 0 if causal else None,
        ahead < -left if left >= 0 else None,
        ahead > right if right >= 0 else None,
        None if lengths is None else np.arange(keys) >= lengths.reshape(batch, 1, 1, 1),
    ):
        if refused is not None:
            allowed = ~refused if allowed is None else allowed & ~refused
    if mask is not None:
        missing = keys - mask.shape[-1]
        if missing > 0:
            fill = np.full((*mask.shape[:-1], missing), False if mask.dtype == bool else -np.inf, mask.dtype)
            mask = np.concatenate([mask, fill], axis=-1)
        if mask.dtype == bool:
            allowed = mask if allowed is None else allowed & mask
            mask = None
    if allowed is None:
        return None if mask is None else mask.astype(dtype)
    block = np.where(allowed, dtype.type(0), dtype.type(-np.inf))
    return np.asarray(block if mask is None else block + mask.astype(dtype))


@op("Attention", wants_outputs=True)
def attention(
    q: Array,
    k: Array,
    v: Array,
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    nonpad_kv_seqlen: Array | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    if (past_key is None) != (past_value is None):
        raise InvalidArgument("past_key and past_value come together", remedy="Give both or neither")
    flat, dtype = q.ndim == 3, q.dtype
    query, key, value = split_heads(q, q_num_heads), split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        key, value = np.concatenate([past_key, key], axis=2), np.concatenate([past_value, value], axis=2)
    batch, heads, queries, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    if heads % groups:
        raise InvalidArgument(
            f"{heads} query heads do not share {groups} key heads", remedy="One must divide the other"
        )

    plain = attn_mask is None and nonpad_kv_seqlen is None and not is_causal and softcap == 0 and not any(outputs[1:])
    if plain and dtype == np.float32 and max(left_window_size, right_window_size) < 0 and softmax_precision is None:
        y = _plain(query, key, value, 1 / math.sqrt(size) if scale is None else scale)
        return y.transpose(0, 2, 1, 3).reshape(batch, queries, -1) if flat else y

    def rounded(x: Array) -> Array:
        # Narrow types round after each step, as the standard's own definition of the operator does.
        return x.astype(dtype).astype(np.float32) if dtype in NARROW else x

    root = math.sqrt(1 / math.sqrt(size) if scale is None else scale)
    factor = widen(np.asarray(root, dtype))  # on both sides, so that narrow products do not overflow
    left = rounded(widen(query) * factor).reshape(batch, groups, -1, size)
    right = rounded(widen(key) * factor)
    scores = rounded(np.matmul(left, np.swapaxes(right, 2, 3))).reshape(batch, heads, queries, keys)
    wanted = scores if outputs[3:] == (True,) else None
    if softcap > 0:
        scores = rounded(np.tanh(rounded(scores / softcap)) * softcap)
        if qk_matmul_output_mode == 1 and wanted is not None:
            wanted = scores
    if nonpad_kv_seqlen is not None and past_key is None:
        offset = nonpad_kv_seqlen.reshape(-1) - queries
    else:
        offset = np.array([past])
    bias = _bias(
        (batch, queries, keys),
        attn_mask,
        causal=bool(is_causal),
        window=(left_window_size, right_window_size),
        offset=offset,
        lengths=nonpad_kv_seqlen,
        dtype=scores.dtype,
    )
    if bias is not None:
        scores = rounded(scores + bias)
    if qk_matmul_output_mode == 2 and wanted is not None:
        wanted = scores
    weights = _softmax(scores, bias, dtype if softmax_precision is None else dtype_of(softmax_precision))
    weights = rounded(weights.astype(scores.dtype, copy=False))
    if qk_matmul_output_mode == 3 and wanted is not None:
        wanted = weights
    y = np.matmul(weights.reshape(batch, groups, -1, keys), widen(value)).reshape(batch, heads, queries, -1)
    if flat:
        y = y.transpose(0, 2, 1, 3).reshape(batch, queries, -1)
    y = y.astype(dtype, copy=False)
    return y if not any(outputs[1:]) else (y, key, value, None if wanted is None else wanted.astype(dtype, copy=False))


def _plain(query: Array, key: Array, value: Array, scale: float) -> Array:
    """Attention without mask or cache, one head at a time: its scores stay in cache."""
    batch, heads, queries, _ = query.shape
    share = heads // key.shape[1]
    y = np.empty((batch, heads, queries, value.shape[3]), np.float32)
    scores = np.empty((queries, key.shape[2]), np.float32)
    for place in np.ndindex(batch, heads):
        where = (place[0], place[1] // share)
        np.matmul(query[place] * np.float32(scale), key[where].T, out=scores)
        np.subtract(scores, scores.max(axis=1, keepdims=True, initial=-np.inf), out=scores)
        np.exp(scores, out=scores)
        np.matmul(scores, value[where], out=y[place])
        y[place] /= scores.sum(axis=1, keepdims=True)
    return y


def _softmax(scores: Array, bias: Array | None, precision: np.dtype[Any]) -> Array:
    """Softmax over the keys; rows that may look nowhere are zero."""
    if precision in NARROW:
        y = narrow_softmax(scores, precision).astype(np.float32)
    else:
        y = softmax(scores.astype(precision, copy=False))
    if bias is None:
        return np.asarray(y)
    nowhere = np.isneginf(bias.max(axis=-1, keepdims=True))
    return np.asarray(np.where(nowhere, y.dtype.type(0), y)) if nowhere.any() else y


@op("RotaryEmbedding")
@lifted
def rotary_embedding(
    x: Array,
    cos_cache: Array,
    sin_cache: Array,
    position_ids: Array | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Array:
    heads = x if x.ndim == 3 else x.transpose(0, 2, 1, 3)
    if x.ndim == 3:
        if not num_heads:
            raise InvalidArgument("RotaryEmbedding of rank 3 without num_heads", remedy="Set num_heads")
        heads = x.reshape(*x.shape[:2], num_heads, -1)
    size = heads.shape[3]
    turned = rotary_embedding_dim or size
    half = turned // 2
    cos, sin = (cos_cache, sin_cache) if position_ids is None else (cos_cache[position_ids], sin_cache[position_ids])
    cos, sin = cos[:, :, None, :half], sin[:, :, None, :half]
    part = slice(0, turned, 2) if interleaved else slice(0, half)
    other = slice(1, turned, 2) if interleaved else slice(half, turned)
    real, imaginary = heads[..., part], heads[..., other]
    y = np.empty(heads.shape, np.result_type(heads, cos))
    y[..., part] = real * cos - imaginary * sin
    y[..., other] = real * sin + imaginary * cos
    y[..., turned:] = heads[..., turned:]
    return y.reshape(x.shape) if x.ndim == 3 else np.ascontiguousarray(y.transpose(0, 2, 1, 3))
