"""Winograd's convolution: 3x3 kernels over tiles, whose transforms are matrix products too.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015). A transform of rows and then of columns is one
product with the Kronecker product of its matrix with itself: more arithmetic, but all of it in BLAS and in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gpurt_cpu.ops.padding import strided
from gpurt_cpu.ops.table import Array

if TYPE_CHECKING:
    from gpurt_cpu.memory import Empty
    from gpurt_cpu.ops.padding import Padding

_SCRATCH: Final = 1 << 19  # elements of the transformed tiles that are worked on at a time
_ZERO: Final = np.zeros((), np.float32)

# Edge of a tile of the result -> transforms of the input, the weights and the result.
_MATRICES: Final[dict[int, tuple[Any, Any, Any]]] = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}


def tile_for(kernel: Sequence[int], channels: int, filters: int, out: Sequence[int]) -> int:
    """The tile that a convolution with stride 1 is fastest with; 0 where it is not with any.

    By measurement: large tiles want some tens of them for the products to be worth it, small ones many channels.
    """
    if tuple(kernel) != (3, 3) or min(channels, filters) < 32:
        return 0
    if -(-out[0] // 4) * -(-out[1] // 4) >= 36:
        return 4
    return 2 if min(channels, filters) >= 128 and out[0] * out[1] >= 100 else 0


class Winograd:
    """3x3 weights (M, C, 3, 3), transformed; with a bias (M,), with Relu if that follows, and with what comes after."""

    def __init__(
        self, w: Array, bias: Array, tile: int, relu: bool, after: Callable[[Array], None] | None = None
    ) -> None:
        given, weights, result = (np.array(m, np.float64) for m in _MATRICES[tile])
        filters, channels = w.shape[:2]
        self._tile, self._edge, self._filters, self._channels = tile, tile + 2, filters, channels
        transformed = np.einsum("ai,mcij,bj->abcm", weights, w.astype(np.float64), weights, optimize=True)
        self._weights = np.ascontiguousarray(transformed.reshape(-1, channels, filters), np.float32)
        self._given = np.kron(given, given).astype(np.float32)
        # One more column of ones, for one more row of what it is multiplied by: the bias.
        self._result = np.ones((tile * tile, self._edge**2 + 1), np.float32)
        self._result[:, :-1] = np.kron(result, result)
        self._bias, self._relu, self._after = bias, relu, after

    def method(self, place: Padding) -> Callable[[Array, Array, Empty], None]:
        """What writes an image (height, width, M) from one (H, W, C)."""
        tile, edge, filters, channels = self._tile, self._edge, self._filters, self._channels
        height, width = place.out
        high, wide = -(-height // tile), -(-width // tile)
        rows = max(1, min(high, _SCRATCH // (wide * edge * edge * max(channels, filters))))
        shape = (high * tile + 2, wide * tile + 2)
        exact = height % tile == 0 and width % tile == 0

        def run(x: Array, y: Array, empty: Empty) -> None:
            x = place.apply(x, empty, shape=shape)
            row, column, step = x.strides
            view = strided(x, (edge, edge, high, wide, channels), (row, column, row * tile, column * tile, step))
            cut = empty((edge * edge, rows * wide * channels))
            tiles = empty((edge * edge, rows * wide * channels))
            products = empty((edge * edge + 1, rows * wide * filters))
            results = empty((tile * tile, rows * wide * filters))
            for first in range(0, high, rows):
                count = min(rows, high - first)
                if count < rows:
                    cut, tiles = (a.reshape(-1)[: edge * edge * count * wide * channels] for a in (cut, tiles))
                    cut, tiles = cut.reshape(edge * edge, -1), tiles.reshape(edge * edge, -1)
                    products = products.reshape(-1)[: (edge * edge + 1) * count * wide * filters]
                    products = products.reshape(edge * edge + 1, -1)
                    results = results.reshape(-1)[: tile * tile * count * wide * filters].reshape(tile * tile, -1)
                np.copyto(cut.reshape(edge, edge, count, wide, channels), view[:, :, first : first + count])
                np.matmul(self._given, cut, out=tiles)
                np.matmul(
                    tiles.reshape(edge * edge, -1, channels),
                    self._weights,
                    out=products[:-1].reshape(edge * edge, -1, filters),
                )
                products[-1].reshape(-1, filters)[...] = self._bias
                np.matmul(self._result, products, out=results)
                spread = results.reshape(tile, tile, count, wide, filters).transpose(2, 0, 3, 1, 4)
                bottom = first * tile + count * tile
                target = y[first * tile : bottom] if exact else empty((count * tile, wide * tile, filters))
                self._spread(spread, target.reshape(count, tile, wide, tile, filters))
                if self._after is not None:
                    self._after(target.reshape(-1))
                if not exact:
                    part = y[first * tile : bottom]
                    part[...] = target[: len(part), :width]

        return run

    def _spread(self, results: Array, target: Array) -> None:
        if self._relu:
            np.maximum(results, _ZERO, out=target)
        else:
            np.copyto(target, results)
