"""Attention of com.microsoft with packed weights or for several heads, and rotation; contrib_gqa shares key heads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.activation import softmax
from gpurt_cpu.ops.attention import rotary_embedding, split_heads
from gpurt_cpu.ops.common import scalar, widen
from gpurt_cpu.ops.contrib_quantized import matmul_integer_to_float
from gpurt_cpu.ops.table import Array, op

MS = "com.microsoft"


def _scores(q: Array, k: Array, scale: float | None) -> Array:
    """Scaled products (batch, heads, queries, keys); fewer key heads are shared by runs of query heads."""
    batch, heads, queries, size = q.shape
    factor = scale or 1 / math.sqrt(size)  # 0 says that the attribute is not set
    shared = (q * q.dtype.type(factor)).reshape(batch, k.shape[1], -1, size)
    return np.asarray(np.matmul(shared, np.swapaxes(k, 2, 3))).reshape(batch, heads, queries, k.shape[2])


def _joined(weights: Array, v: Array, dtype: np.dtype[Any]) -> Array:
    """Weighted sums of the values, the heads side by side: (batch, queries, heads * size)."""
    batch, heads, queries, keys = weights.shape
    y = np.asarray(np.matmul(weights.reshape(batch, v.shape[1], -1, keys), v)).reshape(batch, heads, queries, -1)
    return y.transpose(0, 2, 1, 3).reshape(batch, queries, -1).astype(dtype, copy=False)


def _mask_bias(
    mask: Array | None, *, batch: int, queries: int, keys: int, new: int, causal: bool, filtered: float
) -> Array | None:
    """What is added to the scores for a mask in any of its forms, and for what lies ahead of a query.

    The forms are a flag for each key or each pair, or for each sequence its end, with all the starts behind the ends.
    """
    bias: Array | None = None
    if mask is not None:
        if mask.ndim == 1 and mask.size in (batch, 2 * batch):
            place = np.arange(keys)
            seen = place < mask[:batch, None]
            if mask.size == 2 * batch:
                seen &= place >= mask[batch:, None]
            seen = seen[:, None, None, :]
        elif mask.ndim in (2, 3) and mask.shape[-1] in (keys, new):
            seen = mask > 0
            if mask.shape[-1] != keys:  # it tells of the new keys; those of the past are seen
                seen = np.pad(seen, [(0, 0)] * (mask.ndim - 1) + [(keys - new, 0)], constant_values=True)
            seen = seen[:, None] if mask.ndim == 3 else seen[:, None, None]
        else:
            raise InvalidArgument(
                f"a mask {mask.shape} does not fit {batch} sequences of {queries} queries and {keys} keys",
                remedy="Use (batch), (2 * batch), (batch, keys) or (batch, queries, keys)",
            )
        bias = np.where(seen, np.float32(0), np.float32(filtered))
    if causal and queries > 1:
        ahead = np.arange(keys) > np.arange(queries)[:, None] + (keys - queries)
        # Stronger than the mask: where that hides all that is behind, what is ahead is still not seen.
        bias = np.where(ahead, np.finfo(np.float32).min, np.float32(0) if bias is None else bias)
    return bias


def _softmax_of(scores: Array, *biases: Array | None) -> Array:
    for bias in biases:
        if bias is not None:
            scores = scores + widen(bias)
    return softmax(scores)


def _no_rotation(do_rotary: int, what: str) -> None:
    if do_rotary:
        raise InvalidArgument(
            f"{what} with do_rotary", remedy="Export with RotaryEmbedding nodes, or as GroupQueryAttention"
        )


def _packed_attention(
    qkv: Array,
    mask: Array | None,
    past: Array | None,
    attention_bias: Array | None,
    past_length: Array | None,
    *,
    num_heads: int,
    sizes: tuple[int, int, int],
    causal: bool,
    filtered: float,
    scale: float | None,
    share: bool,
    dtype: np.dtype[Any],
) -> tuple[Array, Array | None]:
    """Attention over queries, keys and values that lie side by side, and the cache that it leaves."""
    if sum(sizes) != qkv.shape[2] or any(s % num_heads for s in sizes):
        raise InvalidArgument(f"{sizes} in {num_heads} heads do not add up to weights of {qkv.shape[2]} columns")
    q, k, v = (split_heads(x, num_heads) for x in np.split(qkv, np.cumsum(sizes[:2]), axis=2))
    batch, _, queries, _ = q.shape
    if past is not None and share:  # a buffer of full length, of which the first part is filled
        filled = int(scalar(past_length, 0))
        kept: Array | None = past.copy()
        assert kept is not None
        kept[0, :, :, filled : filled + queries], kept[1, :, :, filled : filled + queries] = k, v
        k, v = (widen(x[:, :, : filled + queries]) for x in kept)
    else:
        if past is not None:
            k, v = (np.concatenate([widen(p), x], axis=2) for p, x in zip(past, (k, v), strict=True))
        kept = np.stack([k, v]) if k.shape == v.shape else None  # a cache holds keys and values of one size
    keys = k.shape[2]
    bias = _mask_bias(mask, batch=batch, queries=queries, keys=keys, new=queries, causal=causal, filtered=filtered)
    weights = _softmax_of(_scores(q, k, scale), attention_bias, bias)
    return _joined(weights, v, dtype), None if kept is None else kept.astype(dtype, copy=False)


@op("Attention", domain=MS)
def attention(
    x: Array,
    weights: Array,
    bias: Array | None = None,
    mask_index: Array | None = None,
    past: Array | None = None,
    attention_bias: Array | None = None,
    past_sequence_length: Array | None = None,
    *,
    num_heads: int,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: tuple[int, ...] | None = None,
    rotary_embedding_dim: int = 0,  # noqa: ARG001 - without rotation there is nothing that it says
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Array, Array | None]:
    _no_rotation(do_rotary, "Attention")
    qkv = np.matmul(widen(x), widen(weights))
    if bias is not None:
        qkv += widen(bias)
    q, k, v = qkv_hidden_sizes or (weights.shape[1] // 3,) * 3
    return _packed_attention(
        qkv, mask_index, past, attention_bias, past_sequence_length, num_heads=num_heads, sizes=(q, k, v),
        causal=bool(unidirectional), filtered=mask_filter_value, scale=scale, share=bool(past_present_share_buffer),
        dtype=x.dtype,
    )  # fmt: skip


@op("QAttention", domain=MS)
def qattention(
    x: Array,
    weights: Array,
    bias: Array,
    x_scale: Array,
    weight_scale: Array,
    mask_index: Array | None = None,
    x_zero: Array | None = None,
    weight_zero: Array | None = None,
    past: Array | None = None,
    *,
    num_heads: int,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    past_present_share_buffer: int = 0,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Array, Array | None]:
    _no_rotation(do_rotary, "QAttention")
    if past_present_share_buffer:
        raise InvalidArgument("QAttention with a shared buffer", remedy="It has no input that says how much is filled")
    qkv = matmul_integer_to_float(x, weights, widen(x_scale), widen(weight_scale), x_zero, weight_zero, bias)
    third = weights.shape[1] // 3
    return _packed_attention(
        qkv, mask_index, past, None, None, num_heads=num_heads, sizes=(third, third, third),
        causal=bool(unidirectional), filtered=mask_filter_value, scale=scale, share=False, dtype=bias.dtype,
    )  # fmt: skip


@op("MultiHeadAttention", domain=MS, wants_outputs=True)
def multi_head_attention(
    query: Array,
    key: Array | None = None,
    value: Array | None = None,
    bias: Array | None = None,
    key_padding_mask: Array | None = None,
    attention_bias: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    past_sequence_length: Array | None = None,
    cache_indirection: Array | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    scale: float | None = None,
    unidirectional: int = 0,
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    if cache_indirection is not None:
        raise InvalidArgument("MultiHeadAttention with cache_indirection", remedy="Beams must be put in order before")
    dtype = query.dtype
    q, k, v = _unpacked(query, key, value)
    if bias is not None:
        parts = np.split(widen(bias), np.cumsum([x.shape[2] for x in (q, k) if x.ndim == 3] or [bias.size]))
        q = widen(q) + parts[0]
        if k.ndim == 3:  # keys and values of rank 4 were projected, with their bias, in an earlier step
            k, v = widen(k) + parts[1], widen(v) + parts[2]
    ready = k.ndim == 4
    q, k, v = (split_heads(widen(x), num_heads) for x in (q, k, v))
    new = k.shape[2]
    if past_key is not None and past_value is not None and not ready:
        if past_sequence_length is not None:
            filled = int(scalar(past_sequence_length))
            present = [past_key.copy(), past_value.copy()]
            present[0][:, :, filled : filled + new], present[1][:, :, filled : filled + new] = k, v
            k, v = (widen(x[:, :, : filled + new]) for x in present)
        else:
            k, v = np.concatenate([widen(past_key), k], axis=2), np.concatenate([widen(past_value), v], axis=2)
            present = [k, v]
    else:
        present = [k, v]
    mask = _mask_bias(
        key_padding_mask, batch=q.shape[0], queries=q.shape[2], keys=k.shape[2], new=new,
        causal=bool(unidirectional), filtered=mask_filter_value,
    )  # fmt: skip
    scores = _scores(q, k, scale)
    for extra in (attention_bias, mask):
        if extra is not None:
            scores += widen(extra)
    y = _joined(softmax(scores), v, dtype)
    if not any(outputs[1:]):
        return y
    return (y, *(x.astype(dtype, copy=False) for x in present), scores.astype(dtype, copy=False))


def _unpacked(query: Array, key: Array | None, value: Array | None) -> tuple[Array, Array, Array]:
    """Query, key and value apart, of rank 3 (batch, length, hidden) or 4 (batch, heads, length, size)."""
    if query.ndim == 5:  # (batch, length, heads, 3, size)
        q, k, v = (query[:, :, :, i].reshape(*query.shape[:2], -1) for i in range(3))
        return q, k, v
    if key is None:
        raise InvalidArgument(f"a query {query.shape} without a key", remedy="A packed query has rank 5")
    if key.ndim == 5:  # (batch, length, heads, 2, size)
        k, v = (key[:, :, :, i].reshape(*key.shape[:2], -1) for i in range(2))
        return query, k, v
    if value is None:
        raise InvalidArgument(f"a key {key.shape} without a value", remedy="A packed key has rank 5")
    return query, key, value


@op("RotaryEmbedding", domain=MS)
def rotary_embedding_by_position(
    x: Array,
    position_ids: Array,
    cos_cache: Array,
    sin_cache: Array,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,  # noqa: ARG001 - only lets a batch be longer than the cache
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,  # noqa: ARG001 - ONNX Runtime's kernels take no notice of it
) -> Array:
    batch, length = (x.shape[0], x.shape[1] if x.ndim == 3 else x.shape[2])
    if position_ids.size == 1 and position_ids.ndim == 1:  # the position of the first element of each sequence
        position_ids = np.broadcast_to(position_ids + np.arange(length), (batch, length))
    heads = num_heads or (x.shape[2] // (2 * cos_cache.shape[1]) if x.ndim == 3 else 0)
    y: Array = rotary_embedding(
        x, cos_cache, sin_cache, position_ids, interleaved=interleaved, num_heads=heads,
        rotary_embedding_dim=rotary_embedding_dim,
    )  # fmt: skip
    return y
