"""Winograd's F(4x4, 3x3) with channels last, see winograd_last.cl: a block of tiles stays in a core's cache.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). As the transforms work on vectors of
channels and nothing leaves the cache between the three steps, it pays from 16 channels on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import gpurt_kernels
from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.conv_shape import Geometry
from gpurt.device.ops.gemm import FLOAT32
from gpurt.device.ops.winograd import TILE, transformed
from gpurt.device.scalars import i32, i64
from gpurt.device.tiles import LANES, Tile, tile_for
from gpurt.device.views import row_of
from gpurt.device.weights import blank

_CACHE = 512 * 1024  # bytes of a core's second-level cache that a block's operands and products should not exceed

# In products of one tile with 16 filters, by all channels:
_COLD = 16  # to read 16 filters that no cache has: in a model, the other layers' have driven them out
_WARM = 5  # to read them again for another block, where they are more than a core's cache holds
_KEPT = 1  # and where they are not
_TRANSFORM = 10.8  # to transform a tile's operands, or as many products


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a convolution is cut.

    Attributes:
        rows, columns: tiles in an image.
        tiles: in all images.
        size: tiles of a block.
        items: work-items, each of which computes one block after another.
        parts: into which the filters are cut, with items of their own.
        tile: register tile of the products.
    """

    rows: int
    columns: int
    tiles: int
    size: int
    items: int
    parts: int
    tile: Tile

    @staticmethod
    def of(g: Geometry, info: DeviceInfo) -> Blocks | None:
        """The best way to cut a convolution, or None where a direct one is faster."""
        if g.kernel != (1, 3, 3) or g.stride != (1, 1, 1) or g.dilation != (1, 1, 1) or g.group != 1:
            return None
        if g.channels % LANES or g.filters % LANES:
            return None
        rows, columns = -(-g.out[1] // TILE), -(-g.out[2] // TILE)
        tiles, units = g.n * rows * columns, info.compute_units
        panels = g.filters // LANES
        best, least = None, _direct_cost(g, info)
        for parts in (p for p in (1, 2, 4, 8) if panels % p == 0):
            for count in range(1, 16 * units + 1):
                if count * parts % units:
                    continue
                size = -(-tiles // count)
                tile, cost = _cost(g, info, size, count, parts)
                if cost < least:
                    items = min(max(2 * units // parts, 1), -(-tiles // size))
                    best, least = Blocks(rows, columns, tiles, size, items, parts, tile), cost
        return best

    @staticmethod
    def pack(w: np.ndarray) -> np.ndarray:
        """Filters [F, C, 3, 3] as [36, panel, C, 16]."""
        count, channels = len(w) // LANES, w.shape[1]
        made = blank((36, count, channels, LANES), np.float32)
        for panel in range(count):  # what a panel takes stays in the cache
            part = w[panel * LANES : (panel + 1) * LANES]
            made[:, panel] = transformed(part.transpose(2, 3, 1, 0).reshape(9, -1)).reshape(36, channels, LANES)
        return made


def _cost(g: Geometry, info: DeviceInfo, size: int, count: int, parts: int) -> tuple[Tile, float]:
    """The tile for blocks of a size, and what that many blocks by parts of the filters cost a core."""
    panels, units = g.filters // LANES // parts, info.compute_units
    tile, products = tile_for(size, panels * LANES, info.vector_width, lambda v: panels % v == 0)
    blocks = count * parts / units
    own = min(max(parts / units, 1.0), blocks)  # parts of the filters that a core reads
    large = 36 * g.channels * panels * LANES * FLOAT32.itemsize > 2 * _CACHE
    reads = own * _COLD + (blocks - own) * (_WARM if large else _KEPT)
    transforms = _TRANSFORM * size * (1 + panels * LANES / g.channels)
    cost = blocks * (36 * products + transforms) + 36 * panels * reads
    over = 36 * size * (g.channels + panels * LANES) * FLOAT32.itemsize > _CACHE
    return tile, cost * (1.1 if over else 1.0)


def _direct_cost(g: Geometry, info: DeviceInfo) -> float:
    """What the direct convolution costs a core."""
    pixels, panels = -(-g.n * g.pixels // info.compute_units), g.filters // LANES
    return 9 * (tile_for(pixels, g.filters, info.vector_width)[1] + _COLD * panels / info.compute_units)


def winograd(c: Lowering, g: Geometry, blocks: Blocks, x: Ref, u: Ref, y: Ref, bias: Ref | None) -> None:
    """Emit the convolution.

    Args:
        c: the operator's context.
        g: its numbers.
        blocks: how it is cut.
        x: the input, [n, height, width, channels].
        u: what Blocks.pack() made of the filters.
        y: the result, [n, height, width, filters], or a part of the channels of a larger one.
        bias: one for each filter, or None.
    """
    part = g.filters // blocks.parts
    v = c.temp(FLOAT32, (blocks.items * blocks.parts, 36, blocks.size, g.channels))
    m = c.temp(FLOAT32, (blocks.items * blocks.parts, 36, blocks.size, part))
    text, args = "", list[Ref | np.generic]([x, u, c.constant(np.zeros(LANES, np.float32)), v, m, y])
    if bias is not None:
        args.append(bias)
    if c.epilogue is not None and c.epilogue.fits(g.filters):
        text, more = c.epilogue.text()
        args += [i64(0), *more]
    sizes = (blocks.tiles, blocks.size, blocks.rows, blocks.columns, *g.size[1:], g.channels, *g.out[1:], g.filters,
             row_of(y), part, *g.begin[1:])  # fmt: skip
    c.launch(
        text + "".join(gpurt_kernels.text(n) for n in ("batch.h", "lanes16.h", "winograd.h", "winograd_last.cl")),
        "winograd_last",
        [*args, *(i32(s) for s in sizes)],
        [blocks.items, blocks.parts],
        defines={"MR": blocks.tile.rows, "NV": blocks.tile.vectors, "HAS_BIAS": int(bias is not None)},
    )
