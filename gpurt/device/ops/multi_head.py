"""com.microsoft's MultiHeadAttention and RotaryEmbedding, as ONNX Runtime's optimizer writes them."""

from __future__ import annotations

import math
from typing import Final

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.attention import present
from gpurt.device.ops.heads import Heads, Masking, attend
from gpurt.device.table import op
from gpurt.graph.view import NodeView
from gpurt.provider import Refused

_MS: Final = "com.microsoft"
_BIAS, _PADDING, _SCORES_BIAS, _PAST_KEY, _PAST_VALUE = 3, 4, 5, 6, 7


def _check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    given = [len(node.inputs) > i and node.inputs[i] is not None for i in range(10)]
    if given[_PADDING] or any(given[8:]):
        return f"{node.op_type} with a mask of padding, or a cache that is filled in part"
    if given[_PAST_KEY] != given[_PAST_VALUE]:
        return f"{node.op_type} has a past key or a past value, but not both"
    if len(node.outputs) > 3 and node.outputs[3] is not None:
        return f"{node.op_type} stores its scores"
    return None


@op("MultiHeadAttention", types="float32 float16", check=_check, domain=_MS)
def multi_head_attention(c: Lowering) -> None:
    """MultiHeadAttention-1: queries, keys and values apart, or packed side by side in each head."""
    heads, past = c.node.attr("num_heads"), c.has(_PAST_KEY)
    if c.output(0).size == 0:
        return
    q, k, v = _parts(c, heads)
    if past and c.has(1) and len(c.input(1).shape) == 4:
        raise Refused("MultiHeadAttention: keys of rank 4 with a past")
    k, v = present(c, k, _PAST_KEY, 1), present(c, v, _PAST_VALUE, 2)
    if k.length != v.length or k.length == 0:
        raise Refused(f"MultiHeadAttention: {k.length} keys and {v.length} values")
    masking = Masking(
        q.length,
        k.length,
        past=k.length - q.length,
        right=0 if c.node.attr("unidirectional", 0) else -1,
        mask=c.input(_SCORES_BIAS) if c.has(_SCORES_BIAS) else None,
    )
    scale = float(c.node.attr("scale") or 0.0) or 1 / math.sqrt(q.size)
    attend(c, q, k, v, Heads.of(c.output(0), heads), masking, scale)


def _parts(c: Lowering, heads: int) -> tuple[Heads, Heads, Heads]:
    query = c.input(0)
    if len(query.shape) == 5:
        if c.has(_BIAS):
            raise Refused("MultiHeadAttention: a bias of packed queries")
        q, k, v = (_packed(query, i) for i in range(3))
        return q, k, v
    key = c.input(1)
    if len(key.shape) == 5:
        if c.has(_BIAS):
            raise Refused("MultiHeadAttention: a bias of packed keys")
        return Heads.of(query, heads), _packed(key, 0), _packed(key, 1)
    refs = [query, key, c.input(2)]
    if c.has(_BIAS):
        first = 0
        for i, ref in enumerate(refs):
            if len(ref.shape) == 3:  # of rank 4 they were projected, with their bias, in an earlier step
                width = ref.shape[2]
                refs[i] = c.emit("Add", [ref, c.input(_BIAS).at(first, (width,))])[0]
                first += width
    q, k, v = (Heads.of(ref, heads) for ref in refs)
    return q, k, v


def _packed(x: Ref, part: int) -> Heads:
    """One of the parts of (batch, length, heads, parts, size)."""
    _, length, heads, parts, size = x.shape
    steps = (length * heads * parts * size, parts * size, heads * parts * size)
    return Heads(x.at(part * size, x.shape), heads, length, size, steps)


@op("RotaryEmbedding", types={None: "float32 float16", 1: "int64"}, domain=_MS)
def rotary_embedding(c: Lowering) -> None:
    """RotaryEmbedding-1 with a position for each token; the standard's has other places for the same inputs."""
    x, positions, cosines = c.input(0), c.input(1), c.input(2)
    if len(positions.shape) != 2:
        raise Refused("com.microsoft.RotaryEmbedding: positions that count from one offset")
    turned = c.node.attr("rotary_embedding_dim", 0)
    heads = c.node.attr("num_heads", 0)
    if len(x.shape) == 3 and not heads:
        heads = x.shape[2] // (2 * cosines.shape[-1])
    attrs = {"interleaved": c.node.attr("interleaved", 0), "num_heads": heads, "rotary_embedding_dim": turned}
    c.emit("RotaryEmbedding", [x, cosines, c.input(3), positions], attrs, out=c.output())
