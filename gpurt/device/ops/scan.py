"""Running sums and products (CumSum-14, CumProd-26), and TopK (24)."""

from __future__ import annotations

import numpy as np

import gpurt_kernels
from gpurt.device.lowering import Lowering
from gpurt.device.ops.lanes import Args, accumulator, around, flat_group, group_size, lanes, share
from gpurt.device.scalars import i64
from gpurt.device.table import FLOATS, NUMERIC, op
from gpurt.infer import shapes
from gpurt.provider import Refused
from gpurt.spec import Unknown


@op("CumSum", "CumProd", types=f"{FLOATS} int32 int64 uint32 uint64", host=(1,))
def cumulate(c: Lowering) -> None:
    """Sum or product of the elements up to each one along an axis."""
    x, y = c.input(0), c.output()
    axis = c.ints(1)
    if axis is None:
        raise Unknown(f"{c.node.op} needs the content of input 1")
    outer, r, inner = around(x.shape, shapes.axis(axis[0], len(x.shape)))
    acc = accumulator(x.dtype)
    types = {"T": x.dtype, "A": acc}
    product = c.node.op_type == "CumProd"
    defines: dict[str, int | float | str] = {
        "STEP(a, v)": "((a) * (v))" if product else "((a) + (v))",
        "START": int(product),
    }
    if c.node.attr("exclusive", 0):
        defines["EXCLUSIVE"] = ""
    if c.node.attr("reverse", 0):
        defines["REVERSE"] = ""
    body = gpurt_kernels.text("cumsum.cl")
    sizes = [i64(r), i64(inner)]
    if x.size == 0:
        return
    args: Args
    if c.cpu_class:
        tasks = outer * -(-inner // 32)
        groups, per = share(tasks, r * min(inner, 32))
        args = [x, y, i64(tasks), per, *sizes]
        c.launch(lanes(acc, types) + body, "cumulate", args, [groups], types=types, defines=defines)
    elif inner == 1 and r >= 64:
        defines["BLOCK"] = block = group_size(c, r)
        c.launch(body, "cumulate_rows", [x, y, i64(r)], [outer], [block], types=types, defines=defines)
    else:
        defines["BLOCK"] = block = flat_group(c)
        tasks = outer * inner
        args = [x, y, i64(tasks), *sizes]
        c.launch(body, "cumulate", args, [-(-tasks // block)], [block], types=types, defines=defines)


@op("TopK", types=NUMERIC, host=(1,))
def top_k(c: Lowering) -> None:
    """The k largest or smallest elements along an axis, sorted whether asked for or not."""
    x, y = c.input(0), c.output()
    outer, r, inner = around(x.shape, shapes.axis(c.node.attr("axis", -1), len(x.shape)))
    k = y.size // max(outer * inner, 1)
    if y.size == 0:
        return
    if k > 1024:
        # An insertion into a sorted list costs its length: sorting, which the host does well, is another algorithm.
        raise Refused(f"TopK of {k} elements: the kernel is for up to 1024")
    at = c.output(1) if c.wants(1) else c.temp(np.dtype(np.int64), y.shape)
    acc = accumulator(x.dtype)
    less = ">" if c.node.attr("largest", 1) else "<"
    nan = "((a) != (a) && (b) == (b))" if c.node.attr("largest", 1) else "((a) == (a) && (b) != (b))"
    tasks = outer * inner
    groups, per, block = -(-tasks // flat_group(c)), i64(1), flat_group(c)
    if c.cpu_class:
        groups, per = share(tasks, 4 * r)
        block = 1
    args: Args = [x, y, at, i64(tasks), per, i64(r), i64(inner), i64(k)]
    c.launch(
        "topk.cl",
        "top_k",
        args,
        [groups],
        [block],
        types={"T": x.dtype, "A": acc},
        defines={"BLOCK": block, "BETTER(a, b)": f"((a) {less} (b) || {nan})"},
    )
