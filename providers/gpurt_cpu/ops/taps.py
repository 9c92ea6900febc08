"""Convolutions that move less memory than a matrix of windows: depthwise ones, and those with few filters.

Sums over the taps of the kernel: the input is cut into phases, one for each offset modulo the strides, and each phase
is kept flat: then every tap of every output position is one offset from where the tap at the kernel's origin lies,
and what a tap reads is one long run for each channel. The runs go over the end of each row, so a few columns of the
sum mean nothing and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpurt_cpu.ops.table import Array

_TILE: Final = 16  # columns of the result that one banded matrix yields
_BAND_ELEMENTS: Final = 1 << 17  # rows for the banded matrices that are gathered at a time
_RUN_ELEMENTS: Final = 1 << 15  # a running sum, a product and what they read fit a second-level cache


class Phases:
    """One image (C, spatial) with its padding, as phases (strides, C, flat) for the taps of a kernel.

    Attributes:
        pitch: elements between rows of the first spatial axis in a flat phase.
        length: elements of the flat result: whole rows of that pitch.
    """

    def __init__(
        self,
        x: Array,
        kernel: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
        pads: Sequence[tuple[int, int]],
        out: Sequence[int],
    ) -> None:
        n = len(kernel)
        self._strides, self._dilations, self._out = strides, dilations, out
        reach = [(kernel[i] - 1) * dilations[i] // strides[i] for i in range(n)]
        self._shape = [out[i] + reach[i] for i in range(n)]
        # A last run starts in the last row and is as long as all rows: the slack is never part of a result.
        rows = self._shape[0] + (1 if any(reach[1:]) else 0)
        self._shape[0] = rows
        self.pitch = math.prod(self._shape[1:])
        self.length = out[0] * self.pitch
        whole = np.zeros((x.shape[0], *(p * s for p, s in zip(self._shape, strides, strict=True))), x.dtype)
        target: list[slice] = [slice(None)]
        source: list[slice] = [slice(None)]
        for i in range(n):
            begin = pads[i][0]
            stop = min(begin + x.shape[1 + i], whole.shape[1 + i])
            target.append(slice(max(begin, 0), max(stop, 0)))
            source.append(slice(max(-begin, 0), max(stop, 0) - begin))
        whole[tuple(target)] = x[tuple(source)]
        if max(strides) > 1:
            split = whole.reshape(x.shape[0], *(d for p, s in zip(self._shape, strides, strict=True) for d in (p, s)))
            axes = (*range(2, 2 + 2 * n, 2), 0, *range(1, 1 + 2 * n, 2))
            whole = np.ascontiguousarray(split.transpose(axes))
        self._flat = whole.reshape(*strides, x.shape[0], -1)

    def run(self, tap: Sequence[int], channels: slice = slice(None)) -> Array:
        """What a tap reads: (channels, length)."""
        offset = 0
        phase: list[int] = []
        for i, t in enumerate(tap):
            steps, rest = divmod(t * self._dilations[i], self._strides[i])
            phase.append(rest)
            offset = offset * self._shape[i] + steps
        index: Any = (*phase, channels, slice(offset, offset + self.length))
        return np.asarray(self._flat[index])

    def result(self, flat: Array) -> Array:
        """The meaningful part (.., out) of a flat result (.., length)."""
        view = flat.reshape(*flat.shape[:-1], self._out[0], *self._shape[1:])
        index: Any = (..., slice(None), *(slice(o) for o in self._out[1:]))
        return np.asarray(view[index])


def depthwise(phases: Phases, weights: Array, y: Array) -> None:
    """Write y (C, M/C, out) from weights (C, M/C, kernel): a running sum for a few channels at a time."""
    channels, many = weights.shape[:2]
    block = max(1, _RUN_ELEMENTS // phases.length)
    taps = list(np.ndindex(*weights.shape[2:]))
    sums = np.empty((min(block, channels), phases.length), y.dtype)
    products = np.empty_like(sums)
    for first in range(0, channels, block):
        part = slice(first, first + block)
        count = min(block, channels - first)
        total, product = sums[:count], products[:count]
        for m in range(many):
            for number, tap in enumerate(taps):
                weight = weights[(part, m, *tap, None)]
                np.multiply(phases.run(tap, part), weight, out=product if number else total)
                if number:
                    np.add(total, product, out=total)
            y[part, m] = phases.result(total)


def banded(w: Array, stride: int, dilation: int, columns: int) -> Array:
    """Matrices (C, rows * span, columns) whose product with `span` elements of each row is a depthwise convolution.

    Args:
        w: weights (C, rows, taps).
        stride: elements from one column's first tap to the next one's.
        dilation: elements from tap to tap.
        columns: how many neighbouring results one product yields.
    """
    channels, rows, taps = w.shape
    span = (columns - 1) * stride + (taps - 1) * dilation + 1
    band = np.zeros((channels, rows, span, columns), w.dtype)
    column = np.arange(columns)
    for tap in range(taps):
        band[:, :, tap * dilation + column * stride, column] = w[:, :, tap, None]
    return band.reshape(channels, rows * span, columns)


def tile_of(columns: int) -> int:
    """How many columns a banded matrix should yield where a result has so many."""
    return -(-columns // max(1, round(columns / _TILE)))


def depthwise_banded(
    x: Array,
    band: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
    y: Array,
) -> None:
    """Write y (C, height, width) from an image x (C, H, W): tiles of each row times a banded matrix for each channel.

    Most of what is multiplied is zero, yet a matrix product does it faster than sums over taps, which wait for memory.
    """
    channels, height, width = y.shape
    tile = band.shape[2]
    tiles = -(-width // tile)
    span = band.shape[1] // kernel[0]
    rows = (height - 1) * strides[0] + (kernel[0] - 1) * dilations[0] + 1
    top, left = pads[0][0], pads[1][0]
    whole = np.zeros((channels, rows, (tiles - 1) * tile * strides[1] + span), x.dtype)
    source = x[:, max(-top, 0) : max(rows - top, 0), max(-left, 0) : max(whole.shape[2] - left, 0)]
    top, left = max(top, 0), max(left, 0)
    whole[:, top : top + source.shape[1], left : left + source.shape[2]] = source
    c, r, e = whole.strides
    moves = (c, r * strides[0], e * tile * strides[1], r * dilations[0], e)
    view = as_strided(whole, (channels, height, tiles, kernel[0], span), moves, writeable=False)
    exact = tiles * tile == width
    out = y.reshape(channels, height * tiles, tile) if exact else np.empty((channels, height * tiles, tile), x.dtype)
    block = max(1, _BAND_ELEMENTS // (height * tiles * kernel[0] * span))
    for first in range(0, channels, block):
        part = slice(first, first + block)
        np.matmul(view[part].reshape(-1, height * tiles, kernel[0] * span), band[part], out=out[part])
    if not exact:
        y[...] = out.reshape(channels, height, tiles * tile)[:, :, :width]


def few_filters(phases: Phases, weights: Array, y: Array) -> None:
    """Write y (M, out) from weights (M, C, kernel): one product for each tap, added up in place."""
    taps = list(np.ndindex(*weights.shape[2:]))
    total = np.matmul(weights[(..., *taps[0])], phases.run(taps[0]))
    product = np.empty_like(total)
    for tap in taps[1:]:
        np.matmul(weights[(..., *tap)], phases.run(tap), out=product)
        np.add(total, product, out=total)
    y[...] = phases.result(total)
