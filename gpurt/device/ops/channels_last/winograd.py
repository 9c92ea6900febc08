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

_CACHE = 512 * 1024  # bytes of a core's second-level cache that a block's operands and products should not exceed
_FILTERS = 5  # tiles that could be computed while a block's filters are read
_TRANSFORM = 0.3  # of a vector's two transforms, in products of a tile of one vector by 16 channels


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a convolution is cut.

    Attributes:
        rows, columns: tiles in an image.
        tiles: in all images.
        size: tiles of a block.
        items: work-items, each of which computes one block after another.
        tile: register tile of the products.
    """

    rows: int
    columns: int
    tiles: int
    size: int
    items: int
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
        for count in range(units, 16 * units + 1, units):
            size = -(-tiles // count)
            tile, products = tile_for(size, g.filters, info.vector_width, lambda v: panels % v == 0)
            transforms = _TRANSFORM * size * 36 * LANES * (1 / g.filters + 1 / g.channels) * panels
            cost = count / units * (36 * (products + _FILTERS * panels) + transforms)
            if 36 * size * (g.channels + g.filters) * FLOAT32.itemsize > _CACHE:
                cost *= 1.1
            if cost < least:
                best, least = Blocks(rows, columns, tiles, size, min(2 * units, -(-tiles // size)), tile), cost
        return best

    @staticmethod
    def pack(w: np.ndarray) -> np.ndarray:
        """Filters [F, C, 3, 3] as [36, panel, C, 16]."""
        count, channels = len(w) // LANES, w.shape[1]
        made = np.empty((36, count, channels, LANES), np.float32)
        for panel in range(count):  # what a panel takes stays in the cache
            part = w[panel * LANES : (panel + 1) * LANES]
            made[:, panel] = transformed(part.transpose(2, 3, 1, 0).reshape(9, -1)).reshape(36, channels, LANES)
        return made


def _direct_cost(g: Geometry, info: DeviceInfo) -> float:
    """What the direct convolution costs a core, in rows of one vector by all channels."""
    pixels = -(-g.n * g.pixels // info.compute_units)
    return 9 * tile_for(pixels, g.filters, info.vector_width)[1]


def winograd(c: Lowering, g: Geometry, blocks: Blocks, x: Ref, u: Ref, y: Ref, bias: Ref | None) -> None:
    """Emit the convolution.

    Args:
        c: the operator's context.
        g: its numbers.
        blocks: how it is cut.
        x: the input, [n, height, width, channels].
        u: what Blocks.pack() made of the filters.
        y: the result, [n, height, width, filters].
        bias: one for each filter, or None.
    """
    v = c.temp(FLOAT32, (blocks.items, 36, blocks.size, g.channels))
    m = c.temp(FLOAT32, (blocks.items, 36, blocks.size, g.filters))
    text, args = "", list[Ref | np.generic]([x, u, c.constant(np.zeros(LANES, np.float32)), v, m, y])
    if bias is not None:
        args.append(bias)
    if c.epilogue is not None and c.epilogue.fits(g.filters):
        text, more = c.epilogue.text()
        args += [i64(0), *more]
    sizes = (blocks.tiles, blocks.size, blocks.rows, blocks.columns, *g.size[1:], g.channels, *g.out[1:], g.filters,
             *g.begin[1:])  # fmt: skip
    c.launch(
        text + "".join(gpurt_kernels.text(n) for n in ("batch.h", "lanes16.h", "winograd.h", "winograd_last.cl")),
        "winograd_last",
        [*args, *(i32(s) for s in sizes)],
        [blocks.items],
        defines={"MR": blocks.tile.rows, "NV": blocks.tile.vectors, "HAS_BIAS": int(bias is not None)},
    )
