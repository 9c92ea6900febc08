"""Images with the channels last in memory: their padded form, and the views that ways to compute convolutions read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpurt_cpu.memory import Empty
from gpurt_cpu.ops.table import Array

SCRATCH: Final = 1 << 19  # elements of a matrix of windows, or of partial sums: what a second-level cache holds
PART: Final = 1 << 17  # elements of the result that are computed and finished at a time

Method = Callable[[Array, Array, Empty], None]
"""Writes an image (height, width, filters) from one (H, W, C)."""

Finish = Callable[[Array], None]
"""Changes dense memory in place, each of its elements for itself but for its channel."""


def last(x: Array) -> Array:
    """View of (N, C, H, W) as (N, H, W, C)."""
    return x.transpose(0, 2, 3, 1)


def strided(x: Array, shape: Sequence[int], strides: Sequence[int]) -> Array:
    """View of dense memory with a shape and strides of its own, which NumPy checks; much quicker than as_strided."""
    return np.ndarray(shape, x.dtype, x, 0, strides)


def split(view: Array, group: int) -> Array:
    """View with the channels, the last axis, split into groups."""
    share = view.shape[-1] // group
    step = view.strides[-1]
    return as_strided(view, (*view.shape[:-1], group, share), (*view.strides[:-1], step * share, step), writeable=False)


def matrix_of(x: Array, empty: Empty) -> Array:
    """The pixels of (H, W, C) as the rows of a matrix that BLAS can read: no copy for dense memory of either layout."""
    if x.flags.c_contiguous:
        return x.reshape(-1, x.shape[2])
    first = x.transpose(2, 0, 1)
    if first.flags.c_contiguous:
        return first.reshape(x.shape[2], -1).T
    dense = empty((math.prod(x.shape[:2]), x.shape[2]))
    dense.reshape(x.shape)[...] = x
    return dense


class Padding:
    """Where an image lies in its padded form, which windows of a kernel are read from.

    Attributes:
        out: size of the result.
        kernel, strides, dilations: those of the windows.
        shape: height and width of the padded form.
        padded: whether that is not the image itself.
    """

    def __init__(
        self,
        size: Sequence[int],
        pads: Sequence[tuple[int, int]],
        out: tuple[int, int],
        kernel: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
    ) -> None:
        self.out, self.kernel = out, (kernel[0], kernel[1])
        self._size, self.strides, self.dilations = tuple(size), tuple(strides), tuple(dilations)
        self._begin = (pads[0][0], pads[1][0])
        self.shape = tuple(size[i] + sum(pads[i]) for i in range(2))
        self.padded = any(p for pair in pads for p in pair)
        ends = [min(b + n, whole) for b, n, whole in zip(self._begin, size, self.shape, strict=True)]
        self._where = tuple(slice(max(b, 0), max(e, 0)) for b, e in zip(self._begin, ends, strict=True))
        self._source = tuple(slice(max(-b, 0), max(e, 0) - b) for b, e in zip(self._begin, ends, strict=True))

    def apply(
        self, x: Array, empty: Empty, *, slack: int = 0, shape: Sequence[int] | None = None, first: bool = False
    ) -> Array:
        """The padded form of (H, W, C), dense: the image itself if that is so already, and no more is asked for.

        Args:
            x: the image.
            empty: makes memory.
            slack: pixels that must follow in memory, zeros; the result then is (pixels, C).
            shape: height and width if these are to be larger than the padding makes them; zeros follow.
            first: whether memory is to have the channels first; the shape stays.
        """
        if first:
            whole = empty((x.shape[2], *self.shape)).transpose(1, 2, 0)
            self._fill(x, whole)
            return whole
        if not self.padded and not slack and shape is None and x.flags.c_contiguous:
            return x.reshape(-1).reshape(x.shape)  # with the strides of axes of one element, too
        height, width = shape or self.shape
        channels = x.shape[2]
        flat = empty((height * width + slack, channels))
        whole = flat[: height * width].reshape(height, width, channels)
        flat[height * width :] = 0
        self._fill(x, whole)
        return flat if slack else whole

    def _fill(self, x: Array, whole: Array) -> None:
        """Put an image where it belongs in memory for its padded form, or for one with more rows and columns after."""
        (top, left), source = self._where, self._source
        if self.padded or whole.shape[:2] != self.shape:
            whole[: top.start] = 0
            whole[top.stop :] = 0
            whole[top, : left.start] = 0
            whole[top, left.stop :] = 0
        whole[top, left] = x[source]

    def phases(self, x: Array, shape: tuple[int, int], empty: Empty) -> Array:
        """The padded form as (stride, height, width, C): [p, h, w] is its column ``w * stride + p``.

        Args:
            x: the image (H, W, C).
            shape: height and width of each phase.
            empty: makes memory.
        """
        (height, width), step = shape, self.strides[1]
        whole = empty((step, height, width, x.shape[2]))
        top, left = self._begin
        first, last = max(top, 0), min(top + self._size[0], height)
        whole[:, :first] = 0
        whole[:, last:] = 0
        for p in range(step):
            begin = max(0, -((p - left) // step))  # the first column that lies in the image
            end = max(begin, min(width, -((p - left - self._size[1]) // step)))
            whole[p, first:last, :begin] = 0
            whole[p, first:last, end:] = 0
            start = begin * step + p - left
            stop = start + (end - begin - 1) * step + 1 if end > begin else start
            whole[p, first:last, begin:end] = x[first - top : last - top, start:stop:step]
        return whole

    def windows(self, x: Array) -> Array:
        """View (kh, kw, height, width, C) of what each tap reads from the padded form."""
        row, column, step = x.strides
        return (strided if x.flags.c_contiguous else as_strided)(
            x,
            (*self.kernel, *self.out, x.shape[2]),
            (
                row * self.dilations[0],
                column * self.dilations[1],
                row * self.strides[0],
                column * self.strides[1],
                step,
            ),
        )
