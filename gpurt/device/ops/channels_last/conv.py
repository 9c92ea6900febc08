"""Conv with channels last: a product of pixels and filters that reads its input in place, or Winograd's."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from gpurt.device.chains import behind, chained_text
from gpurt.device.driver import DeviceInfo
from gpurt.device.epilogue import HEADS
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.channels_last.depthwise import depthwise
from gpurt.device.ops.channels_last.winograd import Blocks, winograd
from gpurt.device.ops.conv_shape import Geometry, geometry
from gpurt.device.ops.fed_product import Fed, fed_product
from gpurt.device.ops.gemm import I32_MAX
from gpurt.device.prologue import FED, PRODUCTS
from gpurt.device.scalars import i32
from gpurt.device.table import op
from gpurt.device.tiles import LANES, Tile, candidates, tile_for
from gpurt.device.views import BESIDE, row_of
from gpurt.device.weights import blank
from gpurt.graph.channels_last import DOMAIN
from gpurt.graph.view import NodeView
from gpurt.provider import Refused


def check(node: NodeView, info: DeviceInfo) -> str | None:
    """Why the kernels with channels last do not take a node, None if they do."""
    x = node.inputs[0]
    if info.kernel_class != "cpu":
        return "kernels with channels last are made for CPUs"
    if x is not None and x.rank is not None and not 3 <= x.rank <= 4:
        return f"{node.op_type} over {x.rank - 2} axes with channels last: the kernel is for one and two"
    return None


@op("Conv", domain=DOMAIN, types="float32", check=check)
def conv(c: Lowering) -> None:
    """Conv (ONNX 22) with channels last: x [N, spatial, C], y [N, spatial, M], filters as in ONNX and constant."""
    x, y = c.input(0), c.output()
    g = geometry_of(c.node, x.shape, c.input(1).shape)
    if y.size == 0:
        return
    if max(x.size, y.size) > I32_MAX:
        raise Refused(f"{c.node.op}: tensors of more than 2^31 elements")
    bias = c.input(2) if c.has(2) else None
    if g.group == g.channels == g.filters > 1:
        filters = c.packed(1, "depthwise, channels last", lambda w: w.reshape(len(w), -1).T)
        if filters is not None:
            depthwise(c, g, x, filters, y, bias)
            return
    blocks = Blocks.of(g, c.info)
    if blocks is not None:
        filters = c.packed(1, "winograd, channels last", blocks.pack)
        if filters is not None:
            winograd(c, g, blocks, x, filters, y, bias)
            return
    _direct(c, g, x, y, bias)


HEADS.add(conv)
FED.add(conv)
PRODUCTS.add(conv)
BESIDE.add(conv)


def geometry_of(node: NodeView, x: tuple[int, ...], w: tuple[int, ...]) -> Geometry:
    """A convolution's numbers, from the shape of an input with channels last."""
    return geometry(node, (x[0], x[-1], *x[1:-1]), w)


def _direct(c: Lowering, g: Geometry, x: Ref, y: Ref, bias: Ref | None) -> None:
    channels, filters = g.channels // g.group, g.filters // g.group
    pixels = g.n * g.pixels
    pointwise = all(v == 1 for v in (*g.kernel, *g.stride)) and not any(g.begin) and not any(g.end)
    feeding = pointwise and g.group == 1 and c.prologue is not None
    tile = _tile(c, (g.group, pixels, filters, g.k), " prologue" if feeding else "")
    panels = -(-filters // (LANES * tile.vectors)) * tile.vectors
    w = c.packed(
        1, f"{g.group} groups of {panels} panels, channels last", partial(_panels, group=g.group, count=panels)
    )
    if w is None:
        raise Refused("Conv with channels last and filters that are computed")
    if feeding and fed_product(c, Fed(pixels, filters, channels, w, panels, y, row_of(y), bias), tile):
        return
    tiles = panels // tile.vectors
    # Filters are read once by an item, so its rows are all pixels, unless that leaves cores without work.
    items = min(8 * c.info.compute_units, max(pixels * filters * g.k // 65536, 1))
    parts = max(items // (tiles * g.group), 1)
    rows = -(-pixels // (parts * tile.rows)) * tile.rows
    zeros = c.constant(np.zeros(max(g.kernel[2] * channels, LANES), np.float32))
    text, results = behind(c.epilogue, g.filters)
    args = [x, w, zeros, y, *([] if bias is None else [bias]), *results]
    numbers = (*g.size[1:], g.channels, *g.out[1:], row_of(y), channels, filters, panels, *g.kernel[1:], *g.stride[1:],
             *g.dilation[1:], *g.begin[1:], pixels, rows)  # fmt: skip
    c.launch(
        chained_text(text, "batch.h", "lanes16.h", "panels16.h", "conv_last.cl"),
        "conv_last",
        [*args, *(i32(v) for v in numbers)],
        [tiles, -(-pixels // rows), g.group],
        defines={
            "MR": tile.rows,
            "NV": tile.vectors,
            "HAS_BIAS": int(bias is not None),
            "POINTWISE": int(pointwise),
            "NEIGHBOURS": int(g.group == 1 and g.dilation[2] == 1 and g.kernel[2] > 1),
        },
    )


def _tile(c: Lowering, sizes: tuple[int, int, int, int], before: str) -> Tile:
    """The register tile for groups, pixels, filters of a group and products of a sum: measured, or by the heuristic."""
    _, pixels, filters, _ = sizes
    known = [tuple(t) for t in candidates(filters, c.info.vector_width)]
    default, _ = tile_for(pixels, filters, c.info.vector_width)
    kind = f"float32{before}{'' if c.epilogue is None else ' epilogue'}"
    return Tile(*c.choose("conv_last.tile", sizes, known, tuple(default), kind))


def _panels(w: np.ndarray, group: int, count: int) -> np.ndarray:
    """Filters [M, C, ...] as [group, panel, taps, C, 16], filled up with zeros."""
    filters, channels = len(w) // group, w.shape[1]
    taps = math.prod(w.shape[2:])
    w = w.reshape(group, filters, channels, taps)
    made = blank((group, count, taps, channels, LANES), np.float32)
    for panel in range(-(-filters // LANES)):  # what a panel takes stays in the cache
        part = w[:, panel * LANES : (panel + 1) * LANES]
        made[:, panel, ..., : part.shape[1]] = part.transpose(0, 3, 2, 1)
    return made
