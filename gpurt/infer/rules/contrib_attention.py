"""Attention of com.microsoft: packed weights, multi-head, grouped query with its cache, and the embedding layer."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import I32, Inputs, integer, like, need, optional
from gpurt.infer.rules.contrib import MS
from gpurt.infer.shapes import text
from gpurt.infer.table import rule
from gpurt.spec import Spec


def _packed(node: NodeView, x: Spec, w: Spec, past: Spec | None) -> list[Spec]:
    if x.rank != 3 or w.rank != 2 or x.shape[2] != w.shape[0]:
        raise ValueError(f"{node.op}: weights {text(w.shape)} do not fit the input {text(x.shape)}")
    batch, length, _ = x.shape
    heads = node.attr("num_heads")
    sizes = node.attr("qkv_hidden_sizes") or (w.shape[1] // 3,) * 3
    total = length + (past.shape[3] if past is not None else 0)
    return [like(x, (batch, length, sizes[2])), like(x, (2, batch, heads, total, sizes[1] // heads))]


@rule("Attention", domain=MS)
def attention(node: NodeView, inputs: Inputs) -> list[Spec]:
    past = optional(inputs, 4)
    specs = _packed(node, need(node, inputs, 0), need(node, inputs, 1), past)
    if past is not None and node.attr("past_present_share_buffer", 0):
        specs[1] = like(past)
    return specs


@rule("QAttention", domain=MS)
def qattention(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w, scale = need(node, inputs, 0), need(node, inputs, 1), need(node, inputs, 3)
    return [like(spec, dtype=scale.dtype) for spec in _packed(node, x, w, optional(inputs, 8))]


@rule("MultiHeadAttention", domain=MS)
def multi_head_attention(node: NodeView, inputs: Inputs) -> list[Spec]:
    q, k, v, past = need(node, inputs, 0), optional(inputs, 1), optional(inputs, 2), optional(inputs, 6)
    heads = node.attr("num_heads")
    batch, length = q.shape[:2]
    if q.rank == 5:  # [batch, length, heads, 3, size]: query, key and value in one
        size = value_size = q.shape[4]
        new = length
    elif q.rank == 3 and k is not None and q.shape[2] % heads == 0:
        size = value_size = q.shape[2] // heads
        # Keys: [batch, length, hidden], [batch, heads, length, size], or with values [batch, length, heads, 2, size].
        new = k.shape[2] if k.rank == 4 else k.shape[1]
        if v is not None:
            value_size = v.shape[3] if v.rank == 4 else v.shape[2] // heads
    else:
        raise ValueError(f"{node.op}: query {text(q.shape)} does not fit {heads} heads")
    # Keys of rank 4 hold the past already.
    total = new + (past.shape[2] if past is not None and (k is None or k.rank != 4) else 0)
    if past is not None and optional(inputs, 8) is not None:  # past_sequence_length: the cache has its full length
        total = past.shape[2]
    return [
        like(q, (batch, length, heads * value_size)),
        like(q, (batch, heads, total, size)),
        like(q, (batch, heads, total, value_size)),
        like(q, (batch, heads, length, total)),
    ]


@rule("GroupQueryAttention", domain=MS)
def group_query_attention(node: NodeView, inputs: Inputs) -> list[Spec]:
    q, k, past = need(node, inputs, 0), optional(inputs, 1), optional(inputs, 3)
    heads, kv_heads = node.attr("num_heads"), node.attr("kv_num_heads")
    batch, length, hidden = q.shape
    size = hidden // (heads if k is not None else heads + 2 * kv_heads)  # without keys the query holds all three
    # The cache grows to total_sequence_length, or is a buffer that is long enough already.
    total = integer(node, inputs, 6, "total_sequence_length")
    if past is not None:
        total = max(total, past.shape[2])
    cache = like(past or q, (batch, kv_heads, total, size))
    return [like(q, (batch, length, heads * size)), cache, cache, like(q, (batch, heads, length, total))]


@rule("EmbedLayerNormalization", domain=MS)
def embed_layer_normalization(node: NodeView, inputs: Inputs) -> list[Spec]:
    ids, words = need(node, inputs, 0), need(node, inputs, 2)
    embedded = like(words, (*ids.shape, words.shape[1]))
    return [embedded, Spec(I32, ids.shape[:1]), embedded]
