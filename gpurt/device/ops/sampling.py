"""Sampling at places between the elements: GridSample, AffineGrid and DeformConv."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.gemm import gemm
from gpurt.device.ops.lanes import F32, F64
from gpurt.device.ops.matrices import Mat
from gpurt.device.ops.movement import launch_rows
from gpurt.device.scalars import i32, i64
from gpurt.device.table import FLOATS, op
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import conv_geometry, window_arguments
from gpurt.provider import Refused

_TAPS: Final = {"nearest": 1, "linear": 2, "cubic": 4}
_PADDING: Final = {"zeros": 0, "border": 1, "reflection": 2}
_COLUMN_BYTES: Final = 64 << 20  # of DeformConv's columns at a time: images beyond it take turns


def _precision(*refs: Ref) -> np.dtype:
    return F64 if any(r.dtype == F64 for r in refs) else F32


def _plane(c: Lowering, shape: Sequence[int], axes: int = 3) -> list[np.generic]:
    if math.prod(shape) >= 2**31:
        raise Refused(f"{c.node.op}: a plane of {math.prod(shape)} elements is too large for the kernel")
    return [i32(n) for n in (*shape, *(1,) * (axes - len(shape)))]


def _grid_check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    if node.attr("mode", "linear") not in _TAPS:
        return f"no GridSample kernel for mode {node.attr('mode')!r}"
    if node.attr("padding_mode", "zeros") not in _PADDING:
        return f"no GridSample kernel for padding_mode {node.attr('padding_mode')!r}"
    x = node.inputs[0]
    if x is not None and x.rank is not None and not 3 <= x.rank <= 5:
        return f"GridSample over {x.rank - 2} axes: the kernel is for one to three"
    return None


@op("GridSample", types=FLOATS, check=_grid_check)
def grid_sample(c: Lowering) -> None:
    """GridSample-22: an item finds a point's taps once and reads them in several channels."""
    x, grid, y = c.input(0), c.input(1), c.output()
    spatial = x.shape[2:]
    if not 1 <= len(spatial) <= 3:
        raise Refused(f"GridSample over {len(spatial)} axes: the kernel is for one to three")
    if y.size == 0:
        return
    if x.size == 0:
        raise Refused("GridSample of an empty tensor")
    acc = _precision(x, grid)
    taps = _TAPS[c.node.attr("mode", "linear")]
    block = 64 if c.cpu_class else 8
    defines: dict[str, int | float | str] = {
        "GRID": 1, "DIMS": len(spatial), "K": taps, "BLOCK_C": block,
        "PADDING": _PADDING[c.node.attr("padding_mode", "zeros")],
    }  # fmt: skip
    if c.node.attr("align_corners", 0):
        defines["ALIGN"] = 1
    channels = x.shape[1]
    launch_rows(
        c,
        "sampling.cl",
        "grid_sample",
        [x, grid, y, i32(channels), i64(math.prod(spatial)), *_plane(c, spatial)],
        x.shape[0] * -(-channels // block),
        math.prod(y.shape[2:]),
        types={"T": x.dtype, "G": grid.dtype, "A": acc},
        defines=defines,
        work=taps ** len(spatial) * (4 + min(channels, block)),
    )


_AFFINE = """
ROW_KERNEL affine_grid(INPUT(T, theta), INPUT(A, start), INPUT(A, step), TENSOR(T, y), const i32 n1, const i32 n2,
                       ROW_PARAMS) {
  OPEN_IN(T, theta);
  OPEN_IN(A, start);
  OPEN_IN(A, step);
  OPEN(T, y);
  EACH_ROW(row) {
    const GLOBAL T *matrix = theta + (i64)row * DIMS * (DIMS + 1);
    EACH(i) {
      const i32 at[3] = {(i32)(i / n2 / n1), (i32)(i / n2 % n1), (i32)(i % n2)};
      GLOBAL T *out = y + ((i64)row * inner + i) * DIMS;
      for (i32 r = 0; r < DIMS; r++) {
        A sum = LD_T(matrix, r * (DIMS + 1) + DIMS);
        /* A point's first coordinate runs along the last axis. */
        for (i32 k = 0; k < DIMS; k++)
          sum += (A)LD_T(matrix, r * (DIMS + 1) + k) * (start[k] + step[k] * (A)at[2 - k]);
        ST_T(out, r, sum);
      }
    }
  }
}
"""


@op("AffineGrid", types=FLOATS, host=(1,))
def affine_grid(c: Lowering) -> None:
    """AffineGrid-20: theta times the places of an image of the given size, in [-1, 1]."""
    theta, y = c.input(0), c.output()
    *spatial, dims = y.shape[1:]
    if dims not in (2, 3):
        raise Refused(f"AffineGrid for {dims} axes: the kernel is for two and three")
    if y.size == 0:
        return
    acc = _precision(theta)
    start, step = np.zeros(dims), np.zeros(dims)
    for k, n in enumerate(reversed(spatial)):
        if not c.node.attr("align_corners", 0):
            start[k], step[k] = 1 / n - 1, 2 / n
        elif n > 1:
            start[k], step[k] = -1, 2 / (n - 1)
        # A single element with aligned corners has no extent: it is at 0, as in PyTorch.
    launch_rows(
        c,
        _AFFINE,
        "affine_grid",
        [theta, c.constant(start.astype(acc)), c.constant(step.astype(acc)), y, *_plane(c, spatial[-2:], 2)],
        y.shape[0],
        math.prod(spatial),
        types={"T": theta.dtype, "A": acc},
        defines={"DIMS": dims},
        work=dims * dims,
    )


def _deform_check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    x = node.inputs[0]
    if x is not None and x.rank is not None and not 3 <= x.rank <= 5:
        return f"DeformConv over {x.rank - 2} axes: the kernel is for one to three"
    return None


@op("DeformConv", types=FLOATS, check=_deform_check)
def deform_conv(c: Lowering) -> None:
    """DeformConv-22: the samples of every tap as columns, then a product with the weights."""
    x, w, offset, y, node = c.input(0), c.input(1), c.input(2), c.output(), c.node
    dims = len(x.shape) - 2
    if not 1 <= dims <= 3:
        raise Refused(f"DeformConv over {dims} axes: the kernel is for one to three")
    if y.size == 0:
        return
    kernel, out = w.shape[2:], y.shape[2:]
    strides, dilations, _ = window_arguments(dims, node.attr("strides"), node.attr("dilations"), None)
    _, begins, _ = conv_geometry(x.shape[2:], kernel, strides, dilations, node.attr("pads"))
    groups, sets = node.attr("group", 1), node.attr("offset_group", 1)
    images, channels = x.shape[:2]
    taps, places = math.prod(kernel), math.prod(out)
    if channels % sets or channels % groups or y.shape[1] % groups:
        raise Refused(f"DeformConv: {channels} channels do not divide into {groups} groups or {sets} sets of offsets")
    if c.has(4) and c.input(4).size != images * sets * taps * places:
        raise Refused("DeformConv: the mask does not have one value for each sample")
    if max(kernel) * max(dilations) + max(*begins, *out) * max(strides) >= 2**30:
        raise Refused("DeformConv: places beyond 32 bits")
    acc = _precision(x)
    stored = F32 if c.cpu_class and x.dtype == np.float16 else x.dtype  # the products of a CPU read float32
    rows = channels * taps
    at_once = min(max(_COLUMN_BYTES // max(rows * places * stored.itemsize, 1), 1), images)
    columns = c.temp(stored, (at_once, rows, places))
    defines: dict[str, int | float | str] = {"COLUMNS": 1, "DIMS": dims, "K": 2, "PADDING": 0}
    if c.has(4):
        defines["MASK"] = 1
    lead = (1,) * (3 - dims)
    sizes = [*lead, *kernel][1:], [*lead, *out][1:]
    for first in range(0, images, at_once):
        count = min(at_once, images - first)

        def part(ref: Ref, first: int = first, count: int = count) -> Ref:
            return ref.at(first * math.prod(ref.shape[1:]), (count, *ref.shape[1:]))

        launch_rows(
            c,
            "sampling.cl",
            "deform_columns",
            [
                part(x), part(offset), *([part(c.input(4))] if c.has(4) else []), columns, i32(sets),
                i32(taps), i32(channels // sets), *_plane(c, x.shape[2:]),
                *(i32(v) for size in sizes for v in size),
                *(i32(v) for row in (strides, dilations, begins) for v in (*row, *(0,) * (3 - dims))),
            ],
            count * sets * taps,
            places,
            types={"T": x.dtype, "G": offset.dtype, "D": stored, "A": acc},
            defines=defines,
            work=2**dims * (4 + channels // sets),
        )  # fmt: skip
        m, k = y.shape[1] // groups, rows // groups
        gemm(
            c,
            Mat(w, k, 1, (0, m * k)),
            Mat(columns, places, 1, (rows * places, k * places)),
            Mat(part(y), places, 1, (y.shape[1] * places, m * places)),
            (m, places, k),
            (count, groups),
            add=Mat(c.input(3), 1, 0, (0, m)) if c.has(3) else None,
        )
