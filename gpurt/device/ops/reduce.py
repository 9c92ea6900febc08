"""Reductions (ReduceSum-13, ReduceMax-20, the others at 18) and ArgMax and ArgMin (13)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

import gpurt_kernels
from gpurt.device.chains import chains
from gpurt.device.driver import DeviceInfo
from gpurt.device.epilogue import HEADS, Epilogue
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.lanes import (
    F32,
    F64,
    I64,
    Args,
    accumulator,
    around,
    collapse,
    flat_group,
    group_size,
    lanes,
    measured_group,
    measured_share,
    share,
)
from gpurt.device.prologue import FED, Prologue
from gpurt.device.scalars import i64
from gpurt.device.table import FLOATS, NUMERIC, op
from gpurt.dtypes import kernel_name
from gpurt.graph.view import NodeView
from gpurt.infer import shapes
from gpurt.provider import Refused
from gpurt.symbolic import Size

SPLIT: Final = 65536
"""Elements from which on a few long rows are cut into parts, so that all cores have work."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """How an operator reduces: see the head of reduce.cl."""

    identity: str
    combine: str
    pre: str = "(v)"
    post: str = "(s)"

    def inner_step(self, *, first: bool, last: bool) -> Reduction:
        """The part that one of several launches does: only the first maps elements, only the last the result."""
        return replace(self, pre=self.pre if first else "(v)", post=self.post if last else "(s)")


_ABS: Final = "((v) < 0 ? -(v) : (v))"
SUM: Final = Reduction("0", "((a) + (b))")
KINDS: Final = {
    "ReduceSum": SUM,
    "ReduceMean": replace(SUM, post="((s) / (A)n)"),
    "ReduceSumSquare": replace(SUM, pre="((v) * (v))"),
    "ReduceL1": replace(SUM, pre=_ABS),
    "ReduceL2": replace(SUM, pre="((v) * (v))", post="sqrt(s)"),
    "ReduceLogSum": replace(SUM, post="log(s)"),
    "ReduceProd": Reduction("1", "((a) * (b))"),
    "ReduceMax": Reduction("LOWEST", "MAX_NAN(a, b)"),
    "ReduceMin": Reduction("HIGHEST", "MIN_NAN(a, b)"),
}
LOG_SUM_EXP: Final = Reduction("0", "((a) + (b))", post="log(s)")

# The ends of a type's range. -INFINITY does for both float types; shifts and literal suffixes differ between dialects.
_ENDS: Final = {
    "i8": ("-128", "127"),
    "u8": ("0", "255"),
    "i32": ("(-2147483647 - 1)", "2147483647"),
    "u32": ("0u", "0xffffffffu"),
    "i64": ("(-(i64)0x7fffffffffffffff - 1)", "((i64)0x7fffffffffffffff)"),
    "u64": ("((u64)0)", "(~(u64)0)"),
}


def _limits(dtype: np.dtype) -> dict[str, str]:
    if dtype.kind == "f":
        return {"LOWEST": "(-INFINITY)", "HIGHEST": "INFINITY"}
    lowest, highest = ("0", "1") if dtype == np.bool_ else _ENDS[kernel_name(dtype)]
    return {"LOWEST": lowest, "HIGHEST": highest}


def reduce(
    c: Lowering,
    x: Ref,
    y: Ref,
    axes: Sequence[int],
    kind: Reduction,
    acc: np.dtype,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
) -> None:
    """Emit the reduction of x over axes counted from the front into y, which has the kept elements in their order.

    Prologue and epilogue are what computes x, and what is computed of y, if the kernels can take them.

    Runs of axes are reduced one after the other, the innermost first, through workspaces of type acc; sums of sums and
    log-sum-exp of log-sum-exps are exact in that.
    """
    runs = collapse(x.shape, axes)
    total = math.prod(size for size, reduced in runs if reduced)
    steps: list[tuple[int, int, int, int]] = []  # outer, reduced, inner, parts
    while any(reduced for _, reduced in runs):
        at = max(i for i, (_, reduced) in enumerate(runs) if reduced)
        outer = math.prod(size for size, _ in runs[:at])
        inner = math.prod(size for size, _ in runs[at + 1 :])
        parts = _parts(c, outer, runs[at][0], inner, x.dtype)
        steps.append((outer, runs[at][0], inner, parts))
        if parts > 1:
            steps.append((outer, parts, inner, 1))
        del runs[at]
    if not steps:  # nothing is reduced, but the map of the elements is still to be done
        steps = [(1, 1, x.size, 1)]
    limits = _limits(x.dtype)
    for i, (outer, r, inner, parts) in enumerate(steps):
        last = i + 1 == len(steps)
        out = y if last else c.temp(acc, (outer * parts * inner,))
        now = kind if kind is LOG_SUM_EXP else kind.inner_step(first=i == 0, last=last)
        _step(c, x, out, (outer, r, inner), parts, now, acc, total, limits, prologue, epilogue if last else None)
        x, prologue = out, None


def _parts(c: Lowering, outer: int, r: int, inner: int, dtype: np.dtype) -> int:
    """Into how many parts the reduced axis is cut so that all cores have work."""
    if outer * r * inner < SPLIT:
        return 1
    cores = c.info.compute_units
    if c.cpu_class:
        tasks = outer * -(-inner // 32)
        parts = min(-(-4 * cores // tasks), r // 64) if tasks < 2 * cores else 1
        others, least = [cores * n for n in (1, 2, 4, 8)], 64
    elif inner == 1:
        parts = min(r // 4096, 256) if outer < 4 * cores else 1
        others, least = [16, 64, 256], 1024
    else:
        parts = min(r // 128, -(-16384 // (outer * inner))) if outer * inner < 8192 else 1
        others, least = [16, 64, 256], 32
    if not any(isinstance(n, Size) for n in (outer, r, inner)):
        candidates = list(dict.fromkeys([1, *(n for n in others if n <= r // least)]))
        parts = c.choose("reduce.parts", (outer, r, inner), candidates, parts, str(dtype))
    if parts <= 1:
        return 1
    length = -(-r // parts)
    return -(-r // length)  # with the length rounded up, fewer may do


def _step(
    c: Lowering,
    x: Ref,
    y: Ref,
    sizes: tuple[int, int, int],
    parts: int,
    kind: Reduction,
    acc: np.dtype,
    total: int,
    limits: dict[str, str],
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
) -> None:
    outer, r, inner = sizes
    around = chains(x, r, inner, prologue, epilogue if acc == F32 else None, inner)
    args: Args = around.data
    defines = dict(limits)
    if kind is LOG_SUM_EXP:
        top = c.temp(acc, (outer * parts * inner,))
        _step(c, x, top, sizes, parts, KINDS["ReduceMax"], acc, total, limits)
        args.append(top)
        defines["WITH_MAX"] = ""
    args += [y, *around.results]
    defines |= {
        "IDENTITY": kind.identity,
        "COMBINE(a, b)": kind.combine,
        "PRE(v)": kind.pre,
        "POST(s)": kind.post,
    }
    types = {"T": x.dtype, "A": acc, "U": y.dtype}
    length = -(-r // parts)
    if length >= 2**31:
        raise Refused(f"{c.node.op}: a reduction over {r} elements is too long")
    geometry = [i64(r), i64(parts), i64(length), i64(total)]
    body = around.text + gpurt_kernels.text("reduce.cl")
    slices = outer * parts
    variant = f"{x.dtype}{' columns' if inner > 1 else ''}{around.kind}"
    if c.cpu_class:
        body = lanes(acc, types) + body
        tasks = slices if inner == 1 else slices * -(-inner // 32)
        cost = length if inner == 1 else length * min(inner, 32)
        groups, per = measured_share(c, "reduce", variant, tasks, cost)
        args += [i64(tasks), per, *geometry]
        if inner == 1:
            c.launch(body, "reduce_rows", args, [groups], types=types, defines=defines)
        else:
            c.launch(body, "reduce_columns", [*args, i64(inner)], [groups], types=types, defines=defines)
        return
    if inner == 1 and length >= 32:
        block = measured_group(c, "reduce", variant, slices, length)
        grid = [slices]
        entry, args = "reduce_rows", [*args, *geometry]
    else:
        block = flat_group(c)
        grid = [-(-slices * inner // block)]
        entry, args = "reduce_columns", [*args, i64(slices * inner), *geometry, i64(inner)]
    c.launch(body, entry, args, grid, [block], types=types, defines=defines | {"BLOCK": block})


def reduce_accumulator(op_type: str, dtype: np.dtype) -> np.dtype:
    """The type an operator accumulates in: wider than the elements where a sum needs it."""
    if op_type in ("ReduceMax", "ReduceMin") or dtype.kind == "f":
        return accumulator(dtype)
    if op_type in ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp"):
        return F64
    return I64 if dtype.kind == "i" else np.dtype(np.uint64)


def _needs_double(node: NodeView, info: DeviceInfo) -> str | None:
    x = node.inputs[0]
    if x is not None and x.dtype is not None and not info.fp64 and reduce_accumulator(node.op_type, x.dtype) == F64:
        return f"{node.op} of {x.dtype} is computed in double, which the device has not"
    return None


_SUMMABLE: Final = f"{FLOATS} int32 int64 uint32 uint64"


def _axes(c: Lowering) -> tuple[int, ...]:
    rank = len(c.input(0).shape)
    axes = shapes.axes(c.ints(1) or (), rank) if c.has(1) else ()
    if axes or c.node.attr("noop_with_empty_axes", 0):
        return axes
    return tuple(range(rank))


@op(
    "ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
    "ReduceLogSumExp", types=_SUMMABLE, host=(1,), check=_needs_double,
)  # fmt: skip
@op("ReduceMax", "ReduceMin", types=f"{_SUMMABLE} uint8 int8 bool", host=(1,))
def reduction(c: Lowering) -> None:
    """All the Reduce operators; an empty reduction gives the identity, through the same kernels."""
    x, name = c.input(0), c.node.op_type
    kind = LOG_SUM_EXP if name == "ReduceLogSumExp" else KINDS[name]
    if name == "ReduceMean" and x.dtype.kind in "iu":
        kind = replace(kind, post="((n) ? (s) / (A)(n ? n : 1) : (s))")  # the mean of no integers is 0, not a trap
    if name == "ReduceL1" and x.dtype.kind == "u":
        kind = SUM
    prologue = None if kind is LOG_SUM_EXP else c.prologue  # the maxima are an extra pass over the data
    reduce(c, x, c.output(), _axes(c), kind, reduce_accumulator(name, x.dtype), prologue, c.epilogue)


def arg_extreme(c: Lowering, x: Ref, y: Ref, axis: int, *, largest: bool = True, last: bool = False) -> None:
    """Emit the int64 position of the extreme along an axis; a NaN is more extreme than anything, as in NumPy."""
    outer, r, inner = around(x.shape, axis)
    if r == 0 and y.size:
        raise Refused(f"{c.node.op} of an axis without elements")
    acc = accumulator(x.dtype)
    types = {"T": x.dtype, "A": acc}
    less = "<" if not largest else ">"
    defines: dict[str, int | float | str] = {"BETTER(a, b)": f"((a) {less} (b) || ((a) != (a) && (b) == (b)))"}
    defines["PICK(a, b)"] = "MAX_NAN(a, b)" if largest else "MIN_NAN(a, b)"
    if last:
        defines["LAST"] = ""
    body = gpurt_kernels.text("arg.cl")
    args: Args = [x, y]
    geometry = [i64(r), i64(inner)]
    if c.cpu_class:
        body = lanes(acc, types) + body
        tasks = outer if inner == 1 else outer * -(-inner // 32)
        groups, per = share(tasks, r if inner == 1 else r * min(inner, 32))
        entry = "arg_rows" if inner == 1 else "arg_columns"
        c.launch(body, entry, [*args, i64(tasks), per, *geometry], [groups], types=types, defines=defines)
    elif inner == 1 and r >= 32:
        block = group_size(c, r)
        defines["BLOCK"] = block
        c.launch(body, "arg_rows", [*args, *geometry], [outer], [block], types=types, defines=defines)
    else:
        block, tasks = flat_group(c), outer * inner
        defines["BLOCK"] = block
        args += [i64(tasks), *geometry]
        c.launch(body, "arg_columns", args, [-(-tasks // block)], [block], types=types, defines=defines)


@op("ArgMax", "ArgMin", types=NUMERIC)
def arg(c: Lowering) -> None:
    """Position of the largest or smallest element, the first or the last of equals."""
    x = c.input(0)
    axis = shapes.axis(c.node.attr("axis", 0), len(x.shape)) if x.shape else 0
    last = bool(c.node.attr("select_last_index", 0))
    arg_extreme(c, x, c.output(), axis, largest=c.node.op_type == "ArgMax", last=last)


@op("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", types=FLOATS)
def global_pool(c: Lowering) -> None:
    """A reduction over all axes after the channels."""
    x = c.input(0)
    acc = accumulator(x.dtype)
    kind = {"GlobalAveragePool": KINDS["ReduceMean"], "GlobalMaxPool": KINDS["ReduceMax"]}.get(c.node.op_type)
    if kind is None:
        kind = lp_norm(int(c.node.attr("p", 2)), acc)
    reduce(c, x, c.output(), range(2, len(x.shape)), kind, acc, c.prologue, c.epilogue)


FED.update((reduction, global_pool))
HEADS.update((reduction, global_pool))


def lp_norm(p: int, acc: np.dtype) -> Reduction:
    """The p-norm as a reduction."""
    if p == 1:
        return KINDS["ReduceL1"]
    if p == 2:
        return KINDS["ReduceL2"]
    number = f"{float(p)}" if acc == F64 else f"{float(p)}f"
    one = "1.0" if acc == F64 else "1.0f"
    # pow of a vector wants a vector as exponent, which would differ between dialects; zero and infinity come out right.
    return replace(SUM, pre=f"exp(log{_ABS} * {number})", post=f"exp(log(s) * ({one} / {number}))")
