"""Winograd's F(4x4, 3x3) in the CPU class: 3x3 convolutions of stride 1 with a quarter of the multiplications.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). The results differ from a direct sum's by
some 1e-5 of the largest, so it is kept to float32 and to sizes at which the saving pays for the two transforms.
"""

from __future__ import annotations

import numpy as np

import gpurt_kernels
from gpurt.device.epilogue import Epilogue
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.conv_shape import Geometry
from gpurt.device.ops.gemm import FLOAT32, gemm
from gpurt.device.ops.matrices import Mat, Panels
from gpurt.device.scalars import i32, i64
from gpurt.device.weights import blank

TILE = 4
_LANES = 16
_G = np.array(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
) / 24  # fmt: skip
_GG = np.kron(_G, _G)
_CHUNK = 1024


def filters_of(w: np.ndarray) -> np.ndarray:
    """Filters [F, C, 3, 3] as the 36 left operands, float32 [36, F, C]."""
    return transformed(w.reshape(-1, 9).T).reshape(36, *w.shape[:2])


def transformed(taps: np.ndarray) -> np.ndarray:
    """Filters [9, count], in any order, as float32 [36, count]; computed in float64."""
    made = blank((36, taps.shape[1]), np.float32)
    for start in range(0, taps.shape[1], _CHUNK):  # in a core's cache
        made[:, start : start + _CHUNK] = _GG @ taps[:, start : start + _CHUNK].astype(np.float64)
    return made


def tiles_of(g: Geometry) -> tuple[int, int, int]:
    """Tiles in all, rows of tiles and columns of tiles in an image."""
    rows, columns = -(-g.out[1] // TILE), -(-g.out[2] // TILE)
    return g.n * rows * columns, rows, columns


def can_winograd(g: Geometry) -> bool:
    """Whether it is a convolution of the kind at all."""
    return g.kernel == (1, 3, 3) and g.stride == g.dilation == (1, 1, 1) and g.group == 1 and g.size[0] == 1


def pays(g: Geometry) -> bool:
    """Whether the products it saves are worth the transforms and the tiles' waste."""
    if not can_winograd(g):
        return False
    tiles, *_ = tiles_of(g)
    computed = -(-tiles // _LANES) * _LANES * 36
    return g.channels >= 32 and g.filters >= 32 and computed * 2 <= g.n * g.pixels * 9


def winograd(
    c: Lowering, g: Geometry, planes: Ref, w: Ref, y: Ref, bias: Ref | None, epilogue: Epilogue | None
) -> None:  # fmt: skip
    """Emit the convolution.

    Args:
        c: the operator's context.
        g: its numbers, for which pays() holds.
        planes: the input, padded with zeros to whole tiles: [n * channels, 4 * rows + 2, 4 * columns + 2].
        w: what filters_of() made.
        y: the result.
        bias: one for each filter, or None.
        epilogue: what else is done to each element.
    """
    tiles, rows, columns = tiles_of(g)
    count = -(-tiles // _LANES)
    v = c.temp(FLOAT32, (36, count, g.channels, _LANES))
    m = c.temp(FLOAT32, (36, g.filters, count * _LANES))
    items = 4 * c.info.compute_units
    per = max(-(-g.channels * count // items), 8)
    sizes = [i32(s) for s in (tiles, rows, columns)]
    source = "".join(gpurt_kernels.text(n) for n in ("batch.h", "lanes16.h", "winograd.h", "winograd.cl"))
    c.launch(
        source, "winograd_in", [planes, v, *sizes, i32(g.channels), i32(per)],
        [count, -(-g.channels // per)], defines={"HAS_BIAS": 0},
    )  # fmt: skip
    right = Panels(v, (count * g.channels * _LANES,))
    left = Mat(w, g.channels, 1, (g.filters * g.channels,))
    products = Mat(m, count * _LANES, 1, (g.filters * count * _LANES,))
    gemm(c, left, right, products, (g.filters, count * _LANES, g.channels), (36,))
    args: list[Ref | np.generic] = [m, y] if bias is None else [m, y, bias]
    text = ""
    if epilogue is not None and epilogue.fits(1):
        text, more = epilogue.text()
        args += [i64(0), *more]
    per = max(-(-g.filters * count // items), 8)
    c.launch(
        text + source, "winograd_out",
        [*args, *sizes, i32(g.filters), i32(g.out[1]), i32(g.out[2]), i32(per)],
        [count, -(-g.filters // per)], defines={"HAS_BIAS": int(bias is not None)},
    )  # fmt: skip
