"""Attention and what goes with it: RotaryEmbedding, LinearAttention, CausalConvWithState."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

import gpurt_kernels
from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.gemm import gemm
from gpurt.device.ops.lanes import F32, F64, Args, group_size, lanes, share
from gpurt.device.ops.matrices import Mat, dense_strides
from gpurt.device.ops.movement import Dim, launch_rows, strided_copy
from gpurt.device.scalars import i32, i64
from gpurt.device.table import FLOATS, op
from gpurt.graph.view import NodeView
from gpurt.provider import Refused

_SCORE_BYTES: Final = 64 << 20  # of scores at a time: queries beyond it take turns


@dataclass(frozen=True, slots=True, eq=False)
class _Heads:
    """A tensor of heads, with strides in elements: (batch, heads, length, size) or (batch, length, heads * size)."""

    ref: Ref
    heads: int
    length: int
    size: int
    steps: tuple[int, int, int]  # to the next batch entry, head and token

    @staticmethod
    def of(ref: Ref, heads: int | None) -> _Heads:
        if len(ref.shape) == 4:
            _, count, length, size = ref.shape
            return _Heads(ref, count, length, size, dense_strides(ref.shape)[:3])  # type: ignore[arg-type]
        _, length, hidden = ref.shape
        assert heads, "the shape rule has seen to it"
        size = hidden // heads
        return _Heads(ref, heads, length, size, (length * hidden, size, hidden))


def _present(c: Lowering, x: _Heads, past: int, output: int) -> _Heads:
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
    return _Heads(target, heads, total, size, steps)


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
    """Attention-25: two products over strided heads and a masked softmax between them, in parts of the queries.

    Scores of halves are float32, whatever softmax_precision says.
    """
    node, y = c.node, c.output()
    q = _Heads.of(c.input(0), node.attr("q_num_heads"))
    k = _present(c, _Heads.of(c.input(1), node.attr("kv_num_heads")), 4, 1)
    v = _present(c, _Heads.of(c.input(2), node.attr("kv_num_heads")), 5, 2)
    out = _Heads.of(y, q.heads)
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
    acc = F64 if q.ref.dtype == F64 else F32
    scale = node.attr("scale")
    scale = 1 / math.sqrt(q.size) if scale is None else float(scale)
    softmax = _Softmax.of(c, acc, q, keys)
    line = batch * q.heads * keys * acc.itemsize
    at_once = queries if c.wants(3) else min(queries, max(1, _SCORE_BYTES // line))
    for first in range(0, queries, at_once):
        rows = min(at_once, queries - first)
        used = softmax.keys_for(c, first + rows)
        scores = c.temp(acc, (batch, q.heads, rows, used))
        _product(c, _rows(q, first, rows), k, scores, used, k_heads=k.heads, scale=scale)
        softmax.launch(c, scores, first)
        _weighted(c, scores, v, _rows(out, first, rows))


def _rows(x: _Heads, first: int, rows: int) -> _Heads:
    return replace(x, ref=x.ref.at(first * x.steps[2], x.ref.shape), length=rows)


def _grouped(x: _Heads, k_heads: int) -> tuple[int, int, tuple[int, int, int]]:
    """Rows of a product, the stride between them, and the batch strides: sequence, head of keys, head in its group.

    With one query a sequence the heads of a group are the rows: they have keys and values in common.
    """
    group = x.heads // k_heads
    if x.length == 1:
        return group, x.steps[1], (x.steps[0], group * x.steps[1], 0)
    return x.length, x.steps[2], (x.steps[0], group * x.steps[1], x.steps[1])


def _score_heads(scores: Ref) -> _Heads:
    _, heads, rows, used = scores.shape
    return _Heads(scores, heads, rows, used, (heads * rows * used, rows * used, used))


def _product(c: Lowering, q: _Heads, k: _Heads, scores: Ref, used: int, *, k_heads: int, scale: float) -> None:
    rows, q_row, q_batch = _grouped(q, k_heads)
    _, s_row, s_batch = _grouped(_score_heads(scores), k_heads)
    gemm(
        c,
        Mat(q.ref, q_row, 1, q_batch),
        Mat(k.ref, 1, k.steps[2], (k.steps[0], k.steps[1], 0)),
        Mat(scores, s_row, 1, s_batch),
        (rows, used, q.size),
        (scores.shape[0], k_heads, 1 if q.length == 1 else q.heads // k_heads),
        alpha=scale,
    )


def _weighted(c: Lowering, scores: Ref, v: _Heads, out: _Heads) -> None:
    rows, y_row, y_batch = _grouped(out, v.heads)
    _, s_row, s_batch = _grouped(_score_heads(scores), v.heads)
    gemm(
        c,
        Mat(scores, s_row, 1, s_batch),
        Mat(v.ref, v.steps[2], 1, (v.steps[0], v.steps[1], 0)),
        Mat(out.ref, y_row, 1, y_batch),
        (rows, v.size, scores.shape[3]),
        (scores.shape[0], v.heads, 1 if out.length == 1 else out.heads // v.heads),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Softmax:
    """The masks of one Attention."""

    acc: np.dtype
    heads: int
    queries: int
    keys: int
    past: int
    left: int
    right: int
    mask_keys: int
    mask_steps: tuple[int, int, int]
    cap: float

    @staticmethod
    def of(c: Lowering, acc: np.dtype, q: _Heads, keys: int) -> _Softmax:
        node = c.node
        right = node.attr("right_window_size", -1)
        if node.attr("is_causal", 0):
            right = 0  # a window to the right adds nothing to what is causal
        past = c.input(4).shape[2] if c.has(4) else 0
        mask_keys, steps = keys, (0, 0, 0)
        if c.has(3):
            mask = c.input(3)
            if not 1 <= len(mask.shape) <= 4 or mask.shape[-1] > keys:
                raise Refused(f"Attention: a mask of shape {list(mask.shape)} for {keys} keys")
            # A shorter mask hides the keys beyond it, one of a single key too.
            mask_keys = mask.shape[-1]
            shape = (1,) * (4 - len(mask.shape)) + mask.shape
            for size, full in zip(shape[:3], (q.ref.shape[0], q.heads, q.length), strict=True):
                if size not in (1, full):
                    raise Refused(f"Attention: a mask of shape {list(mask.shape)} for {q.length} queries")
            batch_step, head_step, query_step = (
                0 if n == 1 else s for n, s in zip(shape[:3], dense_strides(shape)[:3], strict=True)
            )
            steps = batch_step, head_step, query_step
        cap = float(node.attr("softcap", 0.0))
        left = node.attr("left_window_size", -1)
        return _Softmax(acc, q.heads, q.length, keys, past, left, right, mask_keys, steps, cap)

    def keys_for(self, c: Lowering, queries: int) -> int:
        """Keys that the first queries can see, where that is known when the plan is made; others need no scores."""
        if self.right < 0 or c.has(6) or c.wants(3):
            return self.keys
        return min(self.keys, self.past + queries + self.right)

    def launch(self, c: Lowering, scores: Ref, first: int) -> None:
        batch, heads, rows, used = scores.shape
        types = {"A": self.acc, "T": c.input(0).dtype}
        defines: dict[str, int | float | str] = {}
        args: Args = [scores]
        if c.has(3):
            defines["MASK"] = 1
            types["M"] = c.input(3).dtype
            if types["M"] == np.bool_:
                defines["MASK_BOOL"] = 1
            args.append(c.input(3))
        if c.has(6):
            defines["VALID"] = 1
            args.append(c.input(6))
        if c.wants(3):
            defines["QK"] = int(c.node.attr("qk_matmul_output_mode", 0))
            args.append(c.output(3))
        if self.cap > 0:
            defines["CAP"] = 1
        tasks = batch * heads * rows
        groups, per = share(tasks, 8 * used) if c.cpu_class else (tasks, i64(1))
        block = 1 if c.cpu_class else group_size(c, used)
        defines["GROUP_SIZE"] = block
        args += [i64(s) for s in self.mask_steps] + [i64(tasks), per]
        args += [
            i32(n)
            for n in (heads, self.queries, rows, first, used, used, self.past, self.left, self.right, self.mask_keys)
        ]
        body = gpurt_kernels.text("attention.cl")
        if c.cpu_class:
            body = lanes(self.acc, {role: dtype for role, dtype in types.items() if role != "T"}) + body
        c.launch(
            body, "masked_softmax", [*args, self.acc.type(self.cap)], [groups], [block], types=types, defines=defines
        )


def _rotary_check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    x = node.inputs[0]
    if x is not None and x.rank == 3 and not node.attr("num_heads", 0):
        return "RotaryEmbedding of rank 3 without num_heads"
    return None


@op("RotaryEmbedding", types={None: "float32 float16", 3: "int64"}, check=_rotary_check)
def rotary_embedding(c: Lowering) -> None:
    """RotaryEmbedding-23."""
    x, y, node = c.input(0), c.output(), c.node
    if y.size == 0:
        return
    if len(x.shape) == 4:
        batch, heads, length, size = x.shape
    else:
        batch, length, hidden = x.shape
        heads = node.attr("num_heads", 0)
        if not heads or hidden % heads:
            raise Refused(f"RotaryEmbedding: {hidden} elements do not divide into {heads} heads")
        size = hidden // heads
    half = (node.attr("rotary_embedding_dim", 0) or size) // 2
    cosines, sines = c.input(1), c.input(2)
    places = c.input(3).shape if c.has(3) else cosines.shape[:-1]
    wanted = 2 if c.has(3) else 3
    if 2 * half > size or cosines.shape != sines.shape or len(cosines.shape) != wanted or cosines.shape[-1] != half:
        raise Refused(f"RotaryEmbedding: tables of {list(cosines.shape)} for {half} angles")
    if len(places) != 2 or places[0] not in (1, batch) or places[1] != length or cosines.size == 0:
        raise Refused(f"RotaryEmbedding: {list(places)} positions for {batch} sequences of {length}")
    defines: dict[str, int | float | str] = {"ROTARY": 1}
    if len(x.shape) == 4:
        defines["HEADS_FIRST"] = 1
    if c.has(3):
        defines["POSITIONS"] = 1
    if node.attr("interleaved", 0):
        defines["INTERLEAVED"] = 1
    launch_rows(
        c,
        "recurrence.cl",
        "rotary",
        [
            x, cosines, sines, *([c.input(3)] if c.has(3) else []), y, i32(heads), i32(length),
            i32(half), i64(0 if places[0] == 1 else length), i64(cosines.shape[0]),
        ],
        batch * heads * length,
        size,
        types={"T": x.dtype},
        defines=defines,
        work=4,
    )  # fmt: skip


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
