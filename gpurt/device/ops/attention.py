"""Attention of the standard: with masks, windows, and keys and values of the past."""

from __future__ import annotations

import math

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering
from gpurt.device.ops.heads import Heads, Masking, attend
from gpurt.device.ops.movement import Dim, strided_copy
from gpurt.device.table import FLOATS, op
from gpurt.graph.view import NodeView
from gpurt.provider import Refused


def present(c: Lowering, x: Heads, past: int, output: int) -> Heads:
    """Keys or values with those of the past before them, in the output for them where it is wanted."""
    if not c.has(past) and not c.wants(output):
        return x
    spec = c.outs[output]
    if not c.has(past) and len(x.ref.shape) == 4:
        c.alias(output, output)  # outputs 1 and 2 are inputs 1 and 2
        return x
    target = c.output(output) if c.wants(output) else c.temp(spec.dtype, spec.shape)
    batch, heads, total, size = spec.shape
    before = total - x.length
    steps = (heads * total * size, total * size, size)
    if before:
        old = (heads * before * size, before * size, size)
        walk = [Dim(n, s, t) for n, s, t in zip((batch, heads, before), old, steps, strict=True)]
        strided_copy(c, target, c.input(past), [*walk, Dim(size, 1, 1)])
    walk = [Dim(n, s, t) for n, s, t in zip((batch, heads, x.length), x.steps, steps, strict=True)]
    strided_copy(c, target.at(before * size, ()), x.ref, [*walk, Dim(size, 1, 1)])
    return Heads(target, heads, total, size, steps)


def _attention_check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    q, v = (node.inputs[i].dtype if node.inputs[i] is not None else None for i in (0, 2))  # type: ignore[union-attr]
    if (q == np.float64) != (v == np.float64):
        return "Attention mixes double with a narrower type"
    present = [len(node.inputs) > i and node.inputs[i] is not None for i in range(7)]
    if present[4] != present[5]:
        return "Attention has a past key or a past value, but not both"
    if present[4] and present[6]:
        return "Attention has a past and nonpad_kv_seqlen"
    if node.attr("left_window_size", -1) < -1 or node.attr("right_window_size", -1) < -1:
        return "Attention has a window below -1"
    if node.attr("qk_matmul_output_mode", 0) not in range(4):
        return f"Attention has qk_matmul_output_mode {node.attr('qk_matmul_output_mode')}"
    return None


@op("Attention", types={None: FLOATS, 3: f"{FLOATS} bool", 6: "int64"}, check=_attention_check)
def attention(c: Lowering) -> None:
    """Attention-25: two products over strided heads and a masked softmax between them.

    Scores of halves are float32, whatever softmax_precision says.
    """
    node, y = c.node, c.output()
    q = Heads.of(c.input(0), node.attr("q_num_heads"))
    k = present(c, Heads.of(c.input(1), node.attr("kv_num_heads")), 4, 1)
    v = present(c, Heads.of(c.input(2), node.attr("kv_num_heads")), 5, 2)
    out = Heads.of(y, q.heads)
    batch, queries, keys = c.input(0).shape[0], q.length, k.length
    if max(queries, keys) >= 2**30:
        raise Refused(f"Attention over {queries} queries and {keys} keys")
    if c.input(1).shape[0] != batch or c.input(2).shape[0] != batch or v.length != keys:
        raise Refused("Attention: keys and values do not belong to the queries")
    if c.has(6) and c.input(6).size != batch:
        raise Refused("Attention: nonpad_kv_seqlen does not have one length for each sequence")
    if y.size == 0 and not c.wants(3):
        return
    if keys == 0 or q.size == 0:
        raise Refused("Attention without keys")
    scale = node.attr("scale")
    attend(c, q, k, v, out, _masking(c, queries, keys), 1 / math.sqrt(q.size) if scale is None else float(scale))


def _masking(c: Lowering, queries: int, keys: int) -> Masking:
    node = c.node
    if c.has(3) and c.input(3).shape and c.input(3).shape[-1] > keys:
        raise Refused(f"Attention: a mask of shape {list(c.input(3).shape)} for {keys} keys")
    return Masking(
        queries,
        keys,
        past=c.input(4).shape[2] if c.has(4) else 0,
        left=node.attr("left_window_size", -1),
        # A window to the right adds nothing to what is causal.
        right=0 if node.attr("is_causal", 0) else node.attr("right_window_size", -1),
        mask=c.input(3) if c.has(3) else None,
        ends=c.input(6) if c.has(6) else None,
        cap=float(node.attr("softcap", 0.0)),
        kept=(int(node.attr("qk_matmul_output_mode", 0)), c.output(3)) if c.wants(3) else None,
    )
