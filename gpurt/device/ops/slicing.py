"""Slice, CenterCropPad, Trilu and ReverseSequence: a part of the input, or the input with a part changed."""

from __future__ import annotations

import math

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering
from gpurt.device.ops.movement import BITS, Dim, launch_rows, strided_copy, strides
from gpurt.device.ops.pad import pad_window
from gpurt.device.scalars import i64
from gpurt.device.table import STORED, op
from gpurt.graph.view import NodeView
from gpurt.infer.rules.movement import slice_bounds
from gpurt.infer.shapes import axes as fronts
from gpurt.provider import Refused

_TRILU = """
ROW_KERNEL trilu(INPUT(T, x), TENSOR(T, y), const i64 height, const i64 k, ROW_PARAMS) {
  OPEN_IN(T, x);
  OPEN(T, y);
  EACH_ROW(row) {
    const i64 diagonal = (i64)row % height + k;
    GLOBAL const T *p = x + (i64)row * inner;
    GLOBAL T *q = y + (i64)row * inner;
    EACH(i) q[i] = (UPPER ? i >= diagonal : i <= diagonal) ? p[i] : (T)0;
  }
}
"""

# x is (outer, middle, inner): one of the first two is time, the other the batch.
_REVERSE = """
ROW_KERNEL reverse_sequence(INPUT(T, x), INPUT(i64, lengths), TENSOR(T, y), const i64 outer, const i64 middle,
                            ROW_PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(i64, lengths);
  OPEN(T, y);
  const i64 steps = TIME_FIRST ? outer : middle;
  EACH_ROW(row) {
    const i64 a = (i64)row / middle, b = (i64)row - a * middle;
    const i64 given = lengths[TIME_FIRST ? b : a], length = given < steps ? given : steps;
    const i64 time = TIME_FIRST ? a : b;
    const i64 taken = time < length ? length - 1 - time : time;
    GLOBAL const T *p = x + (TIME_FIRST ? taken * middle + b : a * middle + taken) * inner;
    GLOBAL T *q = y + (i64)row * inner;
    EACH(i) q[i] = p[i];
  }
}
"""


@op("Slice", types=STORED, host=(1, 2, 3, 4))
def slice_(c: Lowering) -> None:
    """Slice-13, negative steps included. A part that is contiguous stays in the input's memory."""
    x, y = c.input(0), c.output()
    starts, ends = c.ints(1) or [], c.ints(2) or []
    along = (c.ints(3) if c.has(3) else None) or range(len(starts))
    steps = (c.ints(4) if c.has(4) else None) or [1] * len(starts)
    source, offset = strides(x.shape), 0
    walk = [Dim(n, s, t) for n, s, t in zip(x.shape, source, strides(y.shape), strict=True)]
    for a, start, end, step in zip(fronts(along, len(x.shape)), starts, ends, steps, strict=True):
        first, _, count = slice_bounds(start, end, step, x.shape[a])
        offset += first * source[a]
        walk[a] = Dim(count, source[a] * step, walk[a].t)
    if y.size == 0:
        return
    if all(d.s == d.t for d in walk if d.n > 1):
        c.alias(offset=offset)
        return
    strided_copy(c, y, x.at(offset, ()), walk)


@op("CenterCropPad", types=STORED, host=(1,))
def center_crop_pad(c: Lowering) -> None:
    """CenterCropPad-18: of an odd difference the smaller part goes to the beginning, for crop and pad alike."""
    x, y = c.input(0), c.output()
    if x.shape == y.shape:
        c.alias()
        return
    sizes = list(zip(x.shape, y.shape, strict=True))
    begins = [(want - have) // 2 if want > have else -((have - want) // 2) for have, want in sizes]
    pad_window(c, y, x, begins, "constant", None)


@op("Trilu", types=STORED, host=(1,))
def trilu(c: Lowering) -> None:
    """Trilu-14: the lower or upper triangle of each matrix, zero elsewhere."""
    x = c.input(0)
    height, width = x.shape[-2:]
    (k,) = (c.ints(1) if c.has(1) else None) or [0]
    launch_rows(
        c,
        _TRILU,
        "trilu",
        [x, c.output(), i64(height), i64(max(min(k, 2**31), -(2**31)))],
        math.prod(x.shape[:-1]),
        width,
        types={"T": BITS[x.dtype.itemsize]},
        defines={"UPPER": int(bool(c.node.attr("upper", 1)))},
    )


def _check_reverse(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    found = {node.attr("batch_axis", 1), node.attr("time_axis", 0)}
    return None if found == {0, 1} else "ReverseSequence needs 0 and 1 for batch_axis and time_axis"


@op("ReverseSequence", types={None: STORED, 1: "int64"}, check=_check_reverse)
def reverse_sequence(c: Lowering) -> None:
    """ReverseSequence-28; a length over the number of steps counts as all of them."""
    x = c.input(0)
    outer, middle = x.shape[:2]
    batch = x.shape[c.node.attr("batch_axis", 1)]
    if c.input(1).size != batch:
        raise Refused(f"ReverseSequence: {c.input(1).size} lengths for a batch of {batch}")
    launch_rows(
        c,
        _REVERSE,
        "reverse_sequence",
        [x, c.input(1), c.output(), i64(outer), i64(middle)],
        outer * middle,
        math.prod(x.shape[2:]),
        types={"T": BITS[x.dtype.itemsize]},
        defines={"TIME_FIRST": int(c.node.attr("time_axis", 0) == 0)},
    )
