"""com.microsoft's attention with key heads that query heads share, a cache of its own, and rotation built in."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.attention import rotary_embedding, split_heads
from gpurt_cpu.ops.common import scalar, widen
from gpurt_cpu.ops.contrib_attention import _joined, _scores
from gpurt_cpu.ops.table import Array, op


def _refuse(kinds: tuple[str, str], sliding_window_cache: int, softcap: float, causal: int, window: int) -> None:
    if set(kinds) != {"NONE"}:
        raise InvalidArgument(f"a cache quantized {kinds}", remedy="Use k_quant_type and v_quant_type 'NONE'")
    if sliding_window_cache:
        raise InvalidArgument("a cache of the window's size", remedy="Use a cache that holds the whole sequence")
    if softcap < 0:
        raise InvalidArgument(f"softcap is {softcap}", remedy="Use 0 for none, or a positive number")
    if not causal and window > 0:
        raise InvalidArgument("a window without causal", remedy="Set local_window_size to -1")


def _normalized_heads(x: Array, weight: Array | None, epsilon: float) -> Array:
    """Each head over its root mean square; the array itself where there is no weight."""
    if weight is None:
        return x
    root = np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    return np.asarray(x / root * widen(weight))


def _cached(
    past: Array | None, new: Array, start: Array, valid: Array, length: int, into: Array | None = None
) -> Array:
    """The cache after a step: for each sequence what was there, then its valid new rows; the rest is zero.

    In the past's own memory only the new rows are written.
    """
    batch, heads, _, size = new.shape
    shape, dtype = (batch, heads, length, size), new.dtype if past is None else past.dtype
    y = into if into is not None and into.shape == shape and into.dtype == dtype else np.zeros(shape, dtype)
    in_place = past is not None and np.may_share_memory(y, past)
    if y is into and not in_place:
        y[...] = 0
    for b in range(batch):
        first, count = int(start[b]), int(valid[b])
        if first and past is not None and not in_place:
            y[b, :, :first] = past[b, :, :first]
        y[b, :, first : first + count] = new[b, :, :count]
    return y


def _weights(scores: Array, sink: Array | None) -> Array:
    """Softmax with one more term in the sum, the exponential of the sink; rows that see nothing are zero."""
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    if sink is not None:
        top = np.maximum(top, sink)
    top = np.where(np.isneginf(top), np.float32(0), top)
    y = np.exp(scores - top)
    total = y.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - top)
    return np.asarray(y / np.where(total == 0, np.float32(1), total))


@op("GroupQueryAttention", domain="com.microsoft", wants_outputs=True, continues={1: 3, 2: 4})
def group_query_attention(
    query: Array,
    key: Array | None,
    value: Array | None,
    past_key: Array | None,
    past_value: Array | None,
    seqlens_k: Array,
    total_sequence_length: Array,
    cos_cache: Array | None = None,
    sin_cache: Array | None = None,
    position_ids: Array | None = None,
    attention_bias: Array | None = None,
    head_sink: Array | None = None,
    k_scale: Array | None = None,  # noqa: ARG001 - of a quantized cache, which is refused
    v_scale: Array | None = None,  # noqa: ARG001
    q_norm_weight: Array | None = None,
    k_norm_weight: Array | None = None,
    query_seqlens: Array | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    causal: int = 1,
    do_rotary: int = 0,
    k_norm_epsilon: float | None = None,
    k_quant_type: str = "NONE",
    kv_cache_bit_width: int = 0,  # noqa: ARG001 - as k_scale
    local_window_size: int = -1,
    q_norm_epsilon: float | None = None,
    qk_norm_epsilon: float = 1e-6,
    qk_output: int = 0,
    rotary_interleaved: int = 0,
    scale: float | None = None,
    sliding_window_cache: int = 0,
    smooth_softmax: int = -1,
    softcap: float = 0.0,
    v_quant_type: str = "NONE",
    outputs: tuple[bool, ...] = (True,),
    into: tuple[Array | None, ...] = (None, None, None),
) -> Any:
    _refuse((k_quant_type, v_quant_type), sliding_window_cache, softcap, causal, local_window_size)
    dtype = query.dtype
    if key is None or value is None:
        size = query.shape[2] // (num_heads + 2 * kv_num_heads)
        query, key, value = np.split(query, [num_heads * size, (num_heads + kv_num_heads) * size], axis=2)
    q, k, v = (split_heads(widen(x), n) for x, n in ((query, num_heads), (key, kv_num_heads), (value, kv_num_heads)))
    q = _normalized_heads(q, q_norm_weight, q_norm_epsilon or qk_norm_epsilon)
    k = _normalized_heads(k, k_norm_weight, k_norm_epsilon or qk_norm_epsilon)
    batch, _, queries, _ = q.shape
    # Positions in the whole sequence: what is cached is before ``start``, and the keys end at ``total``.
    total = seqlens_k.reshape(-1).astype(np.int64) + 1
    valid = np.minimum(total, queries) if query_seqlens is None else query_seqlens.reshape(-1).astype(np.int64)
    start = total - valid
    place = start[:, None] + np.arange(queries)
    if do_rotary:
        if cos_cache is None or sin_cache is None:
            raise InvalidArgument("do_rotary without cos_cache and sin_cache", remedy="Give both")
        at = place
        if position_ids is not None:
            # Of a first prompt the operator reads the first position alone, and counts from there.
            prompt = queries == scalar(total_sequence_length) and query_seqlens is None
            at = position_ids.reshape(-1)[:1] + np.arange(queries)[None] if prompt else position_ids
        at = np.broadcast_to(np.clip(at, 0, cos_cache.shape[0] - 1), (batch, queries))
        turn = {"interleaved": rotary_interleaved, "rotary_embedding_dim": 2 * cos_cache.shape[1]}
        q, k = (rotary_embedding(x, widen(cos_cache), widen(sin_cache), at, **turn) for x in (q, k))
    held = 0 if past_key is None else past_key.shape[2]
    length = max(int(scalar(total_sequence_length)), held)
    if start.max(initial=0) > held or total.max(initial=0) > length:
        raise InvalidArgument(
            f"seqlens_k {seqlens_k.tolist()} do not fit a cache of {held} rows that becomes one of {length}",
            remedy="They are the lengths of the sequences, with the new keys, less one",
        )
    present_key = _cached(past_key, k.astype(dtype, copy=False), start, valid, length, into[1])
    present_value = _cached(past_value, v.astype(dtype, copy=False), start, valid, length, into[2])
    keys = int(total.max(initial=0))
    scores = _scores(q, widen(present_key[:, :, :keys]), scale)
    if softcap > 0:
        scores = np.tanh(scores / np.float32(softcap)) * np.float32(softcap)
    if attention_bias is not None:
        scores = scores + widen(attention_bias[..., :keys])
    ahead = np.arange(keys) - place[:, None, :, None]
    hidden = np.arange(keys) >= total[:, None, None, None]
    if causal:
        hidden = hidden | (ahead > 0)
    if local_window_size > 0:
        hidden = hidden | (ahead <= -local_window_size)
    scores = np.where(hidden, np.float32(-np.inf), scores)
    sink = np.zeros((1, 1, 1, 1), np.float32) if smooth_softmax == 1 else None
    if head_sink is not None:
        sink = widen(head_sink).reshape(1, -1, 1, 1)
    weights = _weights(scores, sink)
    y = _joined(weights, widen(present_value[:, :, :keys]), dtype)
    if not any(outputs[1:]):
        return y
    products = None
    if outputs[3:] == (True,):
        shown = weights if qk_output == 2 else np.where(hidden, np.float32(0), scores)
        products = np.zeros((*scores.shape[:3], length), dtype)
        products[..., :keys] = shown
    return y, present_key, present_value, products
