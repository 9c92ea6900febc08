"""Slice, CenterCropPad, Trilu and ReverseSequence: a part of the input, or the input with a part changed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpurt.device.lowering import Lowering
from gpurt.device.ops.movement import BITS, Dim, ceil_div, position_type, split_rows, strided_copy, strides
from gpurt.device.ops.pad import pad_window
from gpurt.device.table import ANY, op
from gpurt.infer.shapes import axis as front
from gpurt.infer.shapes import axes as fronts


@op("Slice", types=ANY, host=(1, 2, 3, 4))
def slice_(c: Lowering) -> None:
    """Slice-13, negative steps included. A part that is contiguous stays in the input's memory."""
    x, y = c.input(0), c.output()
    starts, ends = c.ints(1) or [], c.ints(2) or []
    along = c.ints(3) if c.has(3) else list(range(len(starts)))
    steps = c.ints(4) if c.has(4) else [1] * len(starts)
    source, offset = strides(x.shape), 0
    walk = [Dim(n, s, t) for n, s, t in zip(x.shape, source, strides(y.shape), strict=True)]
    for a, start, end, step in zip(fronts(along or [], len(x.shape)), starts, ends, steps or [], strict=True):
        picked = range(x.shape[a])[slice(start, end, step)]  # Python clamps as ONNX asks
        offset += picked.start * source[a]
        walk[a] = Dim(len(picked), source[a] * step, walk[a].t)
    if y.size == 0:
        return
    if _contiguous(walk):
        c.alias(offset=offset)
        return
    strided_copy(c, y, x.at(offset, ()), walk)


def _contiguous(walk: Sequence[Dim]) -> bool:
    return all(d.s == d.t for d in walk if d.n > 1)


@op("CenterCropPad", types=ANY, host=(1,))
def center_crop_pad(c: Lowering) -> None:
    """CenterCropPad-18: an odd difference leaves the smaller part at the beginning, for crop and pad alike."""
    x, y = c.input(0), c.output()
    begins = []
    for have, want in zip(x.shape, y.shape, strict=True):
        begins.append((want - have) // 2 if want > have else -((have - want) // 2))
    pad_window(c, y, x, begins, "constant", None)


def _check_trilu(node: NodeView, info: DeviceInfo) -> str | None:
    return None


_ROWS = """
/* Rows of the last dimension; TRILU: zero outside of a triangle, else REVERSE: taken from another row. */
#ifdef GP_CPU_CLASS
#define FOR_ITEM for (i64 at = INDEX(0) * CHUNK; at < total && at < (INDEX(0) + 1) * CHUNK; at++)
KFN(1, 1, 1)
#else
#define FOR_ITEM const i64 at = INDEX(0); if (at < total)
KFN(256, 1, 1)
#endif
"""
