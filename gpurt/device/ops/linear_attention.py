"""Recurrences over tokens that stand for attention: LinearAttention, and CausalConvWithState before it."""

from __future__ import annotations

import math

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering
from gpurt.device.ops.lanes import F32, Args
from gpurt.device.ops.movement import launch_rows
from gpurt.device.scalars import i32, i64
from gpurt.device.table import FLOATS, op
from gpurt.graph.view import NodeView
from gpurt.provider import Refused


def _linear_check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    given = [len(node.inputs) > i and node.inputs[i] is not None for i in range(6)]
    rule = node.attr("update_rule", "gated_delta")
    if rule not in ("linear", "gated", "delta", "gated_delta"):
        return f"LinearAttention has update_rule {rule!r}"
    if given[4] != rule.startswith("gated") or given[5] != rule.endswith("delta"):
        return f"LinearAttention: the inputs decay and beta do not fit update_rule {rule!r}"
    return None


@op("LinearAttention", types="float32 float16", check=_linear_check)
def linear_attention(c: Lowering) -> None:
    """LinearAttention-27, token by token; the state is float32, whatever the data is."""
    query, value, y, node = c.input(0), c.input(2), c.output(), c.node
    batch, length, _ = query.shape
    kv_heads = node.attr("kv_num_heads")
    group = node.attr("q_num_heads") // kv_heads
    _, _, d_k, d_v = c.outs[1].shape
    decays = c.input(4).shape[-1] if c.has(4) else 0
    betas = c.input(5).shape[-1] if c.has(5) else 0
    if group * kv_heads != node.attr("q_num_heads") or query.shape[2] != group * kv_heads * d_k:
        raise Refused("LinearAttention: heads of queries and keys do not fit")
    if (c.has(4) and decays not in (kv_heads, kv_heads * d_k)) or (c.has(5) and betas not in (1, kv_heads)):
        raise Refused("LinearAttention: decay or beta do not fit the heads")
    shapes = [c.input(i).shape[:2] for i in (1, 2, 4, 5) if c.has(i)]
    if any(shape != (batch, length) for shape in shapes) or (c.has(3) and c.input(3).shape != c.outs[1].shape):
        raise Refused("LinearAttention: inputs differ in batch or length")
    direct = c.wants(1) and c.outs[1].dtype == F32
    state = c.output(1) if direct else c.temp(F32, c.outs[1].shape)
    scale = float(node.attr("scale", 0.0)) or 1 / math.sqrt(max(d_k, 1))
    cols = 16 if c.cpu_class else 1
    types = {"T": value.dtype, "A": F32}
    defines: dict[str, int | float | str] = {"LINEAR": 1, "COLS": cols}
    args: Args = [query, c.input(1), value]
    for position, name in ((3, "PAST"), (4, "DECAY"), (5, "BETA")):
        if c.has(position):
            args.append(c.input(position))
            defines[name] = 1
    if c.has(3):
        types["S"] = c.input(3).dtype
    sizes = [i32(n) for n in (length, kv_heads, group, d_k, d_v, decays, betas)]
    launch_rows(
        c,
        "recurrence.cl",
        "linear_attention",
        [*args, state, y, *sizes, np.float32(scale)],
        batch * kv_heads,
        -(-d_v // cols),
        types=types,
        defines=defines,
        work=max(length * d_k * cols, 1),
    )
    if c.wants(1) and not direct:
        c.emit("Cast", [state], {"to": 10}, out=c.output(1))


def _conv_check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    if node.attr("activation", "none") not in ("none", "silu", "swish"):
        return f"CausalConvWithState has activation {node.attr('activation')!r}"
    return None


@op("CausalConvWithState", types=FLOATS, check=_conv_check)
def causal_conv(c: Lowering) -> None:
    """CausalConvWithState-27: each channel with its own kernel over the past and the input."""
    x, w, y = c.input(0), c.input(1), c.output()
    batch, channels, length = x.shape
    taps = w.shape[2]
    if taps < 1 or (c.has(3) and c.input(3).shape != (batch, channels, taps - 1)):
        raise Refused(f"CausalConvWithState: a state that does not fit {taps} taps")
    past = [c.input(3)] if c.has(3) and taps > 1 else []
    defines: dict[str, int | float | str] = {"CAUSAL_CONV": 1}
    if past:
        defines["PAST"] = 1
    sizes = [i64(v) for v in (channels, length, taps)]
    if c.wants(1) and c.outs[1].size:
        args: Args = [x, w, *past, c.output(1), *sizes]
        launch_rows(
            c, "recurrence.cl", "causal_conv", args, batch * channels, taps - 1, types={"T": x.dtype}, defines=defines
        )
    bias = [c.input(2)] if c.has(2) else []
    if bias:
        defines["BIAS"] = 1
    if c.node.attr("activation", "none") != "none":
        defines["SILU"] = 1
    launch_rows(
        c,
        "recurrence.cl",
        "causal_conv",
        [x, w, *bias, *past, y, *sizes],
        batch * channels,
        length,
        types={"T": x.dtype},
        defines={**defines, "CONV": 1},
        work=2 * taps,
    )
