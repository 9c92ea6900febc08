"""Pools over windows: MaxPool, AveragePool and LpPool (22). The global ones are reductions, see reduce.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpurt.device.chains import behind, chained_text
from gpurt.device.driver import DeviceInfo
from gpurt.device.epilogue import HEADS
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.lanes import F32, F64, Args, accumulator, flat_group, lanes, share
from gpurt.device.prologue import FED
from gpurt.device.scalars import i32, i64
from gpurt.device.table import FLOATS, op
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import conv_geometry, window_arguments

_OFTEN = 4  # windows of one element up to which a prologue is computed in each: more than those of usual pools
_LINE = 512  # columns: with a half-window of any usual size it stays in the first-level cache
_LARGER = "((v) > (a) ? (v) : (a))"
_LOWEST = {"f": "(-INFINITY)", "u": "0", "i": "-128"}


def _padded(values: Sequence[int], fill: int) -> list[int]:
    return [fill] * (3 - len(values)) + [int(v) for v in values]


def _window(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    kernel = node.attr("kernel_shape") or ()
    if not 1 <= len(kernel) <= 3:
        return f"{node.op} over {len(kernel)} axes: the kernel is for one to three"
    if node.op_type == "LpPool" and node.attr("p", 2) < 1:
        return f"LpPool with p = {node.attr('p')}"
    return None


def _macros(node: NodeView, acc: np.dtype, stored: np.dtype) -> dict[str, int | float | str]:
    if node.op_type == "MaxPool":
        return {"START": _LOWEST[stored.kind], "ADD(a, v)": _LARGER, "COMBINE(a, v)": _LARGER, "END(a)": "(a)"}
    if node.op_type == "AveragePool":
        macros: dict[str, int | float | str] = {
            "AVERAGE": "",
            "START": "0",
            "ADD(a, v)": "((a) + (v))",
            "COMBINE(a, b)": "((a) + (b))",
            "END(a)": "((a) / count)",
        }
        if node.attr("count_include_pad", 0):
            macros["INCLUDE_PAD"] = ""
        return macros
    p = int(node.attr("p", 2))
    sums: dict[str, int | float | str] = {"START": "0", "COMBINE(a, b)": "((a) + (b))"}
    if p == 1:
        return {**sums, "ADD(a, v)": "((a) + fabs(v))", "END(a)": "(a)"}
    if p == 2:
        return {**sums, "ADD(a, v)": "((a) + (v) * (v))", "END(a)": "sqrt(a)"}
    suffix = "" if acc == F64 else "f"
    # pow is slow, and of a vector it wants a vector; zero comes out right through minus infinity.
    return {
        **sums,
        "ADD(a, v)": f"((a) + exp(log(fabs(v)) * {float(p)}{suffix}))",
        "END(a)": f"exp(log(a) * (1.0{suffix} / {float(p)}{suffix}))",
    }


def windowed(
    c: Lowering, x: Ref, rows: tuple[int, int], kernel: Sequence[int], strides: Sequence[int]
) -> tuple[str, list[Ref | np.generic]]:
    """Text and arguments for a kernel's data: the prologue's, or none and x itself.

    A prologue is computed once for each window that an element is in: where that is often, storing it costs less.

    Args:
        c: the operator's context.
        x: the data.
        rows: as Prologue.over wants them.
        kernel, strides: of the windows.
    """
    windows = math.prod(kernel) / math.prod(strides)
    if c.prologue is None or windows > _OFTEN or (windows > 1 and c.prologue.costly):
        return "", [x]
    return c.prologue.over(*rows) or ("", [x])


@op("MaxPool", types=f"{FLOATS} int8 uint8", check=_window)
@op("AveragePool", "LpPool", types=FLOATS, check=_window)
def pool(c: Lowering) -> None:
    """Maximum, mean or p-norm of each window; MaxPool also gives the places of its maxima, in either storage order."""
    x, y, node = c.input(0), c.output(), c.node
    kernel = [int(k) for k in node.attr("kernel_shape")]
    auto_pad, ceil_mode = node.attr("auto_pad", "NOTSET"), bool(node.attr("ceil_mode", 0))
    strides, dilations, _ = window_arguments(len(kernel), node.attr("strides"), node.attr("dilations"), None)
    sizes, begins, ends = conv_geometry(
        x.shape[2:], kernel, strides, dilations, node.attr("pads"), auto_pad, ceil_mode
    )  # fmt: skip
    if y.size == 0:
        return
    acc = accumulator(x.dtype)
    types = {"T": x.dtype, "A": acc}
    defines = _macros(node, acc, x.dtype)
    limits = [size + end for size, end in zip(x.shape[2:], ends, strict=True)]
    data = _padded(x.shape[2:], 1)
    columns = (data, _padded(sizes, 1), _padded(kernel, 1), _padded(strides, 1), _padded(dilations, 1),
               _padded(begins, 0), _padded(limits, 1))  # fmt: skip
    geometry: list[np.generic] = [i32(v) for column in columns for v in column]
    around, given = "", list[Ref | np.generic]([x])
    if not c.cpu_class:  # a CPU's line would be computed again for each row of windows, eight columns at a time
        around, given = windowed(c, x, (x.shape[-1], 1), kernel, strides)
    given.append(y)
    wants_places = node.op_type == "MaxPool" and c.wants(1)
    if wants_places:
        given.append(c.output(1))
        defines["INDICES"] = ""
        steps = [data[1] * data[2], data[2], 1]
        if node.attr("storage_order", 0):  # the first spatial axis runs fastest
            present = x.shape[2:]
            steps = _padded([math.prod(present[:i]) for i in range(len(present))], 0)
        geometry += [i64(v) for v in steps]
    if not wants_places and max(dilations) == 1 and len(kernel) <= 2 and max(kernel) <= 3:
        defines["TAPS_H"], defines["TAPS_W"] = _padded(kernel, 1)[1:]
    more, results = behind(c.epilogue if acc == F32 else None, 1)
    given += results
    body = chained_text(around + more, "chains.h", "pool.cl")
    args: Args
    if c.cpu_class:
        if not wants_places and dilations[-1] * (kernel[-1] - 1) < _LINE // 2 and strides[-1] <= _LINE // 2:
            defines["LINE"] = _LINE
            defines["STRIDE_W"] = strides[-1] if strides[-1] <= 2 else 0
            defines["STRIDE_MAX"] = 2 if strides[-1] <= 2 else _LINE // 2
        tasks = y.size // max(sizes[-1], 1)
        # With eight lanes a tap costs about as much as copying an element.
        grid, per = share(tasks, data[-1] * max(math.prod(kernel[:-1]), 1) + sizes[-1] * kernel[-1])
        args = [*given, i64(tasks), per, *geometry]
        c.launch(lanes(acc, types) + body, "pool", args, [grid], types=types, defines=defines)
        return
    defines["BLOCK"] = block = flat_group(c)
    args = [*given, i64(y.size), i64(1), *geometry]
    c.launch(body, "pool", args, [-(-y.size // block)], [block], types=types, defines=defines)


HEADS.add(pool)
FED.add(pool)
