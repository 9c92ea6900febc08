"""Depthwise convolution in the CPU class: every filter sees one channel, so there is no product to make of it."""

from __future__ import annotations

import numpy as np

import gpurt_kernels
from gpurt.device.epilogue import Epilogue
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.conv_shape import Geometry
from gpurt.device.ops.matrices import Columns
from gpurt.device.scalars import i32, i64

ROWS = 8  # of pixels that are summed at a time, so that enough sums are under way to hide an addition's latency


def is_depthwise(g: Geometry) -> bool:
    """Whether the kernel is made for it: one channel to a group, two spatial axes."""
    return g.group == g.channels > 1 and g.kernel[0] == g.size[0] == g.out[0] == 1


def depthwise(
    c: Lowering, g: Geometry, columns: Columns, w: Ref, y: Ref, bias: Ref | None, epilogue: Epilogue | None
) -> None:
    """Emit the convolution.

    Args:
        c: the operator's context.
        g: its numbers, for which is_depthwise() holds.
        columns: its padded planes.
        w: filters [F, 1, kh, kw].
        y: the result.
        bias: one for each filter, or None.
        epilogue: what else is done to each element.
    """
    planes, (_, height, width) = g.n * g.filters, g.out
    items = 8 * c.info.compute_units
    per = max(planes // items, 1)
    parts = max(items // planes, 1)
    rows_per = -(-height // parts // ROWS) * ROWS if parts > 1 else height
    rows_per = max(rows_per, ROWS)
    args: list[Ref | np.generic] = [columns.ref, w, y]
    if bias is not None:
        args.append(bias)
    args.append(columns.table)
    text = ""
    if epilogue is not None and epilogue.fits(g.pixels):
        text, more = epilogue.text()
        args += [i64(0), *more]
    sizes = (planes, g.filters, g.filters // g.group)
    args += [i32(v) for v in sizes]
    args += [i64(columns.batch[1])]
    args += [i32(v) for v in (columns.plane[1], height, width, per, rows_per)]
    c.launch(
        text + "".join(gpurt_kernels.text(n) for n in ("batch.h", "lanes16.h", "depthwise.cl")),
        "depthwise",
        args,
        [-(-planes // per), -(-height // rows_per)],
        defines={
            "TAPS": g.kernel[1] * g.kernel[2],
            "ROWS": min(ROWS, 1 << (height - 1).bit_length()),
            "HAS_BIAS": int(bias is not None),
        },
    )
