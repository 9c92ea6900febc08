"""Softmax, LogSoftmax and Hardmax (13)."""

from __future__ import annotations

from typing import Final

import gpurt_kernels
from gpurt.device.chains import chains
from gpurt.device.epilogue import HEADS, Epilogue
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.lanes import (
    F32,
    I64,
    Args,
    accumulator,
    around,
    flat_group,
    lanes,
    measured_group,
    measured_share,
)
from gpurt.device.ops.reduce import arg_extreme
from gpurt.device.ops.registers import BF16, F16
from gpurt.device.prologue import FED, Prologue
from gpurt.device.scalars import i32, i64
from gpurt.device.table import FLOATS, op
from gpurt.dtypes import to_onnx
from gpurt.infer import shapes
from gpurt.provider import Refused

_STEPWISE: Final = 64
"""Elements of a row up to which narrow floats are rounded after each step."""


def softmax_along(
    c: Lowering,
    x: Ref,
    y: Ref,
    axis: int,
    *,
    log: bool = False,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
) -> None:
    """Emit Softmax or LogSoftmax along an axis counted from the front; y may be the memory of x.

    Prologue and epilogue are what computes x, and what is computed of y, if the kernels can take them.
    """
    outer, r, inner = around(x.shape, axis)
    if r >= 2**31:
        raise Refused(f"{c.node.op}: an axis of {r} elements is too long")
    if x.size == 0:
        return
    acc = accumulator(x.dtype)
    types = {"T": x.dtype, "A": acc}
    defines: dict[str, int | float | str] = {"LOG": ""} if log else {}
    if not log and acc == x.dtype:
        defines["KEEP"] = ""
    nodes = chains(x, r, inner, prologue, epilogue if acc == F32 else None, r if inner == 1 else inner)
    body = nodes.text + gpurt_kernels.text("softmax.cl")
    args: Args = [*nodes.data, y, *nodes.results]
    size, step = i32(r), i64(inner)
    kind = f"{x.dtype}{' columns' if inner > 1 else ''}{nodes.kind}"
    if c.cpu_class:
        if acc == F32:
            defines["FLOAT_LANES"] = ""
        tasks = outer if inner == 1 else outer * -(-inner // 64)
        # An exponential costs several times as much as moving an element.
        groups, per = measured_share(c, "softmax", kind, tasks, 4 * r * min(inner, 64))
        entry = "softmax_rows" if inner == 1 else "softmax_columns"
        args += [i64(tasks), per, size, step]
        c.launch(lanes(acc, types) + body, entry, args, [groups], types=types, defines=defines)
    elif inner == 1 and r >= 32:
        block = measured_group(c, "softmax", kind, outer, r)
        defines["BLOCK"] = block
        c.launch(body, "softmax_rows", [*args, size, step], [outer], [block], types=types, defines=defines)
    else:
        block, tasks = flat_group(c), outer * inner
        defines["BLOCK"] = block
        grid = [-(-tasks // block)]
        args += [i64(tasks), size, step]
        c.launch(body, "softmax_columns", args, grid, [block], types=types, defines=defines)


@op("LogSoftmax", types=FLOATS)
def log_softmax(c: Lowering) -> None:
    """Logarithm of exp(x) / sum(exp(x)) along an axis."""
    softmax_along(c, c.input(0), c.output(), _axis(c), log=True, prologue=c.prologue, epilogue=c.epilogue)


@op("Softmax", types=f"{FLOATS} bfloat16")
def softmax(c: Lowering) -> None:
    """exp(x) / sum(exp(x)) along an axis.

    Narrow floats are rounded after each step over short rows, as the standard's function body says; over longer ones
    they are summed in float32, where bfloat16 would lose most digits of the sum.
    """
    x, y, axis = c.input(0), c.output(), _axis(c)
    narrow = x.dtype in (F16, BF16)
    if narrow and x.size and around(x.shape, axis)[1] <= _STEPWISE:
        _stepwise(c, x, y, axis)
    elif x.dtype == BF16:
        (wide,) = c.emit("Cast", [x], {"to": to_onnx(F32)})
        softmax_along(c, wide, wide, axis)
        c.emit("Cast", [wide], {"to": to_onnx(BF16)}, out=y)
    else:
        softmax_along(c, x, y, axis, prologue=c.prologue, epilogue=c.epilogue)


FED.update((softmax, log_softmax))
HEADS.update((softmax, log_softmax))


def _axis(c: Lowering) -> int:
    rank = len(c.input(0).shape)
    return shapes.axis(c.node.attr("axis", -1), rank) if rank else 0


def _stepwise(c: Lowering, x: Ref, y: Ref, axis: int) -> None:
    outer, r, inner = around(x.shape, axis)
    rows, block = outer * inner, 1 if c.cpu_class else flat_group(c)
    body = gpurt_kernels.text("narrow.h") + gpurt_kernels.text("softmax_stepwise.cl")
    args: Args = [x, y, i64(rows), i32(r), i64(inner)]
    defines = {"BLOCK": block, "IS_BF16": int(x.dtype == BF16)}
    c.launch(body, "softmax_stepwise", args, [-(-rows // block)], [block], types={"T": x.dtype}, defines=defines)


_ONE_HOT = """
KFN(BLOCK, 1, 1) one_hot(INPUT(i64, at), TENSOR(T, y), const i64 n, const i64 r, const i64 inner) {
  OPEN_IN(i64, at);
  OPEN(T, y);
  const i64 begin = INDEX(0) * CHUNK;
  const i64 end = begin + CHUNK < n ? begin + CHUNK : n;
  for (i64 i = begin; i < end; i++) {
    const i64 row = i / inner;
    ST_T(y, i, (T_ACC)(at[row / r * inner + i % inner] == row % r));
  }
}
"""


@op("Hardmax", types=FLOATS)
def hardmax(c: Lowering) -> None:
    """One at the first largest element along an axis, zero elsewhere."""
    x, y = c.input(0), c.output()
    axis = shapes.axis(c.node.attr("axis", -1), len(x.shape)) if x.shape else 0
    outer, r, inner = around(x.shape, axis)
    if x.size == 0:
        return
    at = c.temp(I64, (outer, inner))
    arg_extreme(c, x, at, axis)
    chunk, block = (4096, 1) if c.cpu_class else (1, flat_group(c))
    args: Args = [at, y, i64(x.size), i64(r), i64(inner)]
    defines = {"CHUNK": chunk, "BLOCK": block}
    c.launch(_ONE_HOT, "one_hot", args, [-(-x.size // (chunk * block))], [block], types={"T": x.dtype}, defines=defines)
