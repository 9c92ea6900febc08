"""Depthwise convolution with channels last: a filter sees one channel, so vectors of channels go through alone."""

from __future__ import annotations

import numpy as np

import gpurt_kernels
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.conv_shape import Geometry
from gpurt.device.scalars import i32, i64
from gpurt.device.views import row_of

PIXELS = 4  # neighbours that share a tap's weights


def lanes_of(channels: int) -> int:
    """Width of the vectors of channels: the largest of 16, 8, 4 and 1 that a pixel fills."""
    return next(n for n in (16, 8, 4, 1) if n <= max(channels, 1))


def rows_each(rows: int, work: int, units: int) -> int:
    """Rows that an item computes: some items to a core, but none with so little work (elements) that it costs more."""
    items = max(min(rows, 4 * units, rows * work // 16384), 1)
    return -(-rows // items)


def depthwise(c: Lowering, g: Geometry, x: Ref, w: Ref, y: Ref, bias: Ref | None) -> None:
    """Emit the convolution.

    Args:
        c: the operator's context.
        g: its numbers: as many groups as channels and filters, up to two spatial axes.
        x: the input, [n, height, width, channels].
        w: filters, [kh * kw, channels].
        y: the result, [n, height, width, channels], or a part of the channels of a larger one.
        bias: one for each channel, or None.
    """
    text, args = "", list[Ref | np.generic]([x, w, y])
    if bias is not None:
        args.append(bias)
    if c.epilogue is not None and c.epilogue.fits(g.filters):
        text, more = c.epilogue.text()
        args += [i64(0), *more]
    rows = g.n * g.out[1]
    per = rows_each(rows, g.out[2] * g.channels * g.kernel[1] * g.kernel[2], c.info.compute_units)
    sizes = (*g.size[1:], g.channels, row_of(y), *g.out[1:], *g.stride[1:], *g.dilation[1:], *g.begin[1:], rows, per)
    c.launch(
        text + "".join(gpurt_kernels.text(n) for n in ("batch.h", "channels_last.h", "depthwise_last.cl")),
        "depthwise_last",
        [*args, *(i32(v) for v in sizes)],
        [-(-rows // per)],
        defines={
            "LANES": lanes_of(g.channels),
            "PIXELS": min(PIXELS, g.out[2]),
            "KH": g.kernel[1],
            "KW": g.kernel[2],
            "HAS_BIAS": int(bias is not None),
        },
    )
