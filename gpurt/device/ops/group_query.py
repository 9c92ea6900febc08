"""GroupQueryAttention of com.microsoft: heads of keys that groups of queries share, a cache, and rotary positions."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.heads import Heads, Masking, attend
from gpurt.device.ops.movement import launch_rows
from gpurt.device.scalars import i32, i64
from gpurt.device.table import op
from gpurt.graph.view import NodeView
from gpurt.provider import Refused

_OP: Final = "GroupQueryAttention"
_PAST_KEY, _PAST_VALUE, _ENDS, _TOTAL, _COS, _SIN, _POSITIONS, _BIAS = 3, 4, 5, 6, 7, 8, 9, 10


def _check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    given = [len(node.inputs) > i and node.inputs[i] is not None for i in range(17)]
    if any(given[11:]) or node.attr("smooth_softmax", -1) == 1:
        return f"{_OP} with sinks, quantized caches, norms of heads or lengths of queries"
    if given[1] != given[2] or given[_PAST_KEY] != given[_PAST_VALUE]:
        return f"{_OP} has keys or a past key, but no values with them, or the other way round"
    if len(node.outputs) > 3 and node.outputs[3] is not None:
        return f"{_OP} stores its scores"
    if any(node.attr(f"{t}_quant_type", "NONE") != "NONE" for t in "kv") or node.attr("sliding_window_cache", 0):
        return f"{_OP} has a quantized cache, or one of the window's size"
    if node.attr("softcap", 0.0) < 0 or (not node.attr("causal", 1) and node.attr("local_window_size", -1) > 0):
        return f"{_OP} has a negative softcap, or a window without causal"
    if node.attr("do_rotary", 0) and not (given[_COS] and given[_SIN]):
        return f"{_OP} has do_rotary, but no cosines and sines"
    return None


@op(
    _OP,
    types={None: "float32 float16", _ENDS: "int32", _TOTAL: "int32", _POSITIONS: "int64"},
    host=(_TOTAL,),
    check=_check,
    domain="com.microsoft",
)
def group_query_attention(c: Lowering) -> None:
    """GroupQueryAttention-1: new rows turned and put behind the past, then attention over the whole cache."""
    node, x = c.node, c.input(0)
    heads, kv_heads = node.attr("num_heads"), node.attr("kv_num_heads")
    batch, queries, _ = x.shape
    size = c.output(0).shape[2] // heads
    total, capacity = c.number(_TOTAL), c.outs[1].shape[2]
    if c.input(_ENDS).size != batch or total < 1 or c.output(0).size == 0:
        raise Refused(f"{_OP}: {c.input(_ENDS).size} lengths for {batch} sequences, of {total} keys at most")
    if c.has(1):
        q, k, v = (Heads.of(c.input(i), n) for i, n in ((0, heads), (1, kv_heads), (2, kv_heads)))
    else:
        steps = (queries * x.shape[2], size, x.shape[2])
        first = (0, heads * size, (heads + kv_heads) * size)
        q, k, v = (
            Heads(x.at(o, x.shape), n, queries, size, steps)
            for o, n in zip(first, (heads, kv_heads, kv_heads), strict=True)
        )
    rotary = bool(node.attr("do_rotary", 0))
    if rotary:
        turned = c.temp(x.dtype, (batch, heads, queries, size))
        _place(c, q, turned, queries, "", rotary=True, prompt=queries == total)
        q = Heads.of(turned, heads)
    cached = [
        _cached(c, new, past, output, rotary=rotary and output == 1, prompt=queries == total)
        for new, past, output in ((k, _PAST_KEY, 1), (v, _PAST_VALUE, 2))
    ]
    steps = (kv_heads * capacity * size, capacity * size, size)
    k, v = (Heads(ref, kv_heads, total, size, steps) for ref in cached)
    window = node.attr("local_window_size", -1)
    masking = Masking(
        queries,
        total,
        left=window - 1 if window > 0 else -1,
        right=0 if node.attr("causal", 1) else -1,
        mask=c.input(_BIAS) if c.has(_BIAS) else None,
        ends=c.input(_ENDS),
        last=True,
        cap=float(node.attr("softcap", 0.0)),
    )
    scale = float(node.attr("scale") or 0.0) or 1 / math.sqrt(size)
    attend(c, q, k, v, Heads.of(c.output(0), heads), masking, scale)


def _cached(c: Lowering, new: Heads, past: int, output: int, *, rotary: bool, prompt: bool) -> Ref:
    """Keys or values of the whole sequence: the past's memory with the new rows in it where it is long enough."""
    spec = c.outs[output]
    wanted = c.wants(output)
    target = c.output(output) if wanted else c.temp(spec.dtype, spec.shape)
    if wanted and c.has(past) and c.input(past).shape == spec.shape:
        c.carry(output, past)
        _place(c, new, target, new.length, "APPEND", rotary=rotary, prompt=prompt)
    else:
        held = c.input(past) if c.has(past) and c.input(past).size else None
        _place(c, new, target, spec.shape[2], "CACHE", held, rotary=rotary, prompt=prompt)
    return target


def _place(
    c: Lowering, new: Heads, y: Ref, length: int, how: str, past: Ref | None = None, *, rotary: bool, prompt: bool
) -> None:
    """Emit the kernel of group_query.cl with `length` rows for each head."""
    batch = c.input(0).shape[0]
    defines: dict[str, int | float | str] = {how: 1} if how else {}
    args: list[Ref | np.generic] = [new.ref, c.input(_ENDS)]
    if past is not None:
        defines["PAST"] = 1
        args += [past, i64(past.shape[2])]
    if rotary:
        cosines, sines = c.input(_COS), c.input(_SIN)
        half = cosines.shape[-1]
        if cosines.shape != sines.shape or len(cosines.shape) != 2 or 2 * half > new.size or cosines.size == 0:
            raise Refused(f"{_OP}: tables of {list(cosines.shape)} for heads of {new.size}")
        defines["ROTARY"] = 1
        args += [cosines, sines, i32(half), i64(cosines.shape[0])]
        if c.node.attr("rotary_interleaved", 0):
            defines["INTERLEAVED"] = 1
        if c.has(_POSITIONS):
            positions = c.input(_POSITIONS)
            if positions.shape != (batch, new.length) and not (prompt and positions.size):
                raise Refused(f"{_OP}: positions {list(positions.shape)} for {batch} sequences of {new.length}")
            defines["POSITIONS"] = 1
            if prompt:
                defines["PROMPT"] = 1
            args.append(positions)
    sizes = [i32(n) for n in (new.heads, length, new.length, y.shape[2])]
    launch_rows(
        c,
        "group_query.cl",
        "place_heads",
        [*args, y, *(i64(s) for s in new.steps), *sizes],
        batch * new.heads * length,
        new.size,
        types={"T": new.ref.dtype},
        defines=defines,
        work=4 if rotary else 1,
    )
