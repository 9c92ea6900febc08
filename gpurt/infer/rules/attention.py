"""Attention and what goes with it: rotary embedding, linear attention, the preview FlexAttention."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import Inputs, like, need, optional
from gpurt.infer.shapes import Shape, text
from gpurt.infer.table import rule
from gpurt.spec import Spec


def heads_first(node: NodeView, name: str, spec: Spec, heads: int | None) -> Shape:
    """(batch, heads, length, head size) of a 4-D input as it is, or of a 3-D one by its number of heads."""
    if spec.rank == 4:
        return spec.shape
    if spec.rank != 3 or not heads or spec.shape[2] % heads:
        raise ValueError(f"{node.op}: {name} {text(spec.shape)} does not divide into {heads or 0} heads")
    batch, length, hidden = spec.shape
    return batch, heads, length, hidden // heads


@rule("Attention")
def attention(node: NodeView, inputs: Inputs) -> list[Spec]:
    q, k, v = (need(node, inputs, i) for i in range(3))
    past_key = optional(inputs, 4)
    batch, heads, length, size = heads_first(node, "Q", q, node.attr("q_num_heads"))
    _, kv_heads, kv_length, k_size = heads_first(node, "K", k, node.attr("kv_num_heads"))
    _, v_heads, v_length, v_size = heads_first(node, "V", v, node.attr("kv_num_heads"))
    if size != k_size:
        raise ValueError(f"Attention: head sizes {size} of Q {text(q.shape)} and {k_size} of K {text(k.shape)} differ")
    if (kv_heads, kv_length) != (v_heads, v_length) or not kv_heads or heads % kv_heads:
        raise ValueError(
            f"Attention: Q {text(q.shape)}, K {text(k.shape)} and V {text(v.shape)} have {heads}, {kv_heads} and "
            f"{v_heads} heads of lengths {length}, {kv_length} and {v_length}"
        )
    total = kv_length + (past_key.shape[2] if past_key is not None else 0)
    return [
        like(q, (batch, heads, length, v_size) if q.rank == 4 else (batch, length, heads * v_size)),
        like(k, (batch, kv_heads, total, size)),
        like(v, (batch, kv_heads, total, v_size)),
        like(q, (batch, heads, length, total)),
    ]


@rule("FlexAttention", domain="ai.onnx.preview")
def flex_attention(node: NodeView, inputs: Inputs) -> list[Spec]:
    q, v = need(node, inputs, 0), need(node, inputs, 2)
    return [like(q, (*q.shape[:-1], v.shape[-1]))]


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain="com.microsoft")
def rotary_embedding(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if x.rank not in {3, 4}:
        raise ValueError(f"{node.op}: X {text(x.shape)} must have rank 3 or 4")
    return [like(x)]


@rule("LinearAttention")
def linear_attention(node: NodeView, inputs: Inputs) -> list[Spec]:
    q, k, v = (need(node, inputs, i) for i in range(3))
    state = optional(inputs, 3)
    heads, kv_heads = node.attr("q_num_heads"), node.attr("kv_num_heads")
    batch, _, length, _ = heads_first(node, "query", q, heads)
    key_size = heads_first(node, "key", k, kv_heads)[3]
    value_size = heads_first(node, "value", v, kv_heads)[3]
    # The state may be kept wider than the data: it has a type of its own where it is given.
    present = (batch, kv_heads, key_size, value_size)
    return [like(q, (batch, length, heads * value_size)), like(state or q, present)]
