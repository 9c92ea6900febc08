"""Pooling: along one axis after the other, since maxima and sums over a window separate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import channels_last, ints, lifted, ones_like_kernel, padded, spatial_mean, window_pads
from gpurt_cpu.ops.table import Array, op


class _Window:
    """The window of a pool over an input: sizes of the output, and padding before and after each spatial axis."""

    def __init__(
        self,
        x: Array,
        kernel: Sequence[int],
        *,
        auto_pad: str,
        ceil_mode: int,
        dilations: Sequence[int] | None,
        pads: Sequence[int] | None,
        strides: Sequence[int] | None,
    ) -> None:
        n = len(kernel)
        if x.ndim != n + 2:
            raise InvalidArgument(f"kernel_shape {tuple(kernel)} does not fit an input {x.shape}")
        self.kernel = tuple(kernel)
        self.strides, self.dilations = ones_like_kernel(strides, n), ones_like_kernel(dilations, n)
        size = x.shape[2:]
        self.pads = window_pads(
            size, kernel, auto_pad=auto_pad, pads=pads, strides=self.strides, dilations=self.dilations
        )
        self.out: list[int] = []
        self.fill: list[tuple[int, int]] = []  # padding that the windows really reach
        for i in range(n):
            reach = (kernel[i] - 1) * self.dilations[i] + 1
            room = size[i] + sum(self.pads[i]) - reach
            steps = -(-room // self.strides[i]) if ceil_mode else room // self.strides[i]
            if ceil_mode and steps * self.strides[i] >= size[i] + self.pads[i][0]:
                steps -= 1  # a window may not start in the padding after the end
            self.out.append(steps + 1)
            last = steps * self.strides[i] + reach
            self.fill.append((self.pads[i][0], max(self.pads[i][1], last - size[i] - self.pads[i][0])))

    def combine(self, x: Array, ufunc: np.ufunc, value: Any) -> Array:
        """Combine each window with a ufunc, of which the value is the identity; memory keeps its order of axes.

        Padding is the identity, so it is left out.
        """
        if channels_last(x):
            n = x.ndim
            y = self._combine(x.transpose(0, *range(2, n), 1), ufunc, value, 1)
            return y.transpose(0, n - 1, *range(1, n - 1))
        return self._combine(x, ufunc, value, 2)

    def _combine(self, x: Array, ufunc: np.ufunc, value: Any, lead: int) -> Array:
        for i, taps in enumerate(self.kernel):
            if taps == 1 and self.strides[i] == 1 and not any(self.pads[i]) and self.out[i] == x.shape[lead + i]:
                continue
            whole, parts = self._taps(x, i, lead)
            if len(whole) > 1:
                y = ufunc(whole[0], whole[1])
            elif whole:
                y = whole[0].copy(order="K")
            else:
                y = np.full((*x.shape[: lead + i], self.out[i], *x.shape[lead + i + 1 :]), value, x.dtype)
            for part in whole[2:]:
                ufunc(y, part, out=y)
            for where, part in parts:
                ufunc(y[where], part, out=y[where])
            x = y
        return x

    def _taps(self, x: Array, i: int, lead: int) -> tuple[list[Array], list[tuple[Any, Array]]]:
        """Views of the input, one for each tap of the kernel along a spatial axis, which `lead` axes precede.

        First those that have an element for each window, then those that have not, with what windows these are for.
        """
        whole: list[Array] = []
        parts: list[tuple[Any, Array]] = []
        step, out, length = self.strides[i], self.out[i], x.shape[lead + i]
        axes = (slice(None),) * (lead + i)
        for tap in range(self.kernel[i]):
            shift = tap * self.dilations[i] - self.pads[i][0]
            first = max(0, -(shift // step))
            last = min(out, (length - 1 - shift) // step + 1)
            if first >= last:
                continue
            start = first * step + shift
            view = x[(*axes, slice(start, start + (last - first - 1) * step + 1, step))]
            if last - first == out:
                whole.append(view)
            else:
                parts.append(((*axes, slice(first, last)), view))
        return whole, parts

    def counts(self, size: Sequence[int], include_pad: int) -> Array:
        """Number of elements that each window averages over."""
        total = np.ones((), np.int64)
        for i, length in enumerate(size):
            begin, end = self.pads[i]
            at = np.arange(self.out[i])[:, None] * self.strides[i] + np.arange(self.kernel[i]) * self.dilations[i]
            low, high = (0, length + begin + end) if include_pad else (begin, begin + length)
            total = total[..., None] * np.sum((at >= low) & (at < high), axis=1)
        return np.asarray(total)


@op("MaxPool", wants_outputs=True)
@lifted
def max_pool(
    x: Array,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    storage_order: int = 0,
    strides: tuple[int, ...] | None = None,
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    window = _Window(
        x, kernel_shape, auto_pad=auto_pad, ceil_mode=ceil_mode, dilations=dilations, pads=pads, strides=strides
    )
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    if not any(outputs[1:]):
        y = window.combine(x, np.maximum, lowest)
        return y.copy() if np.may_share_memory(x, y) else y
    return _max_with_indices(x, window, lowest, storage_order)


def _max_with_indices(x: Array, window: _Window, lowest: Any, storage_order: int) -> tuple[Array, Array]:
    """Greatest values and where in the whole tensor each first occurs."""
    spatial = x.shape[2:]
    weights = np.cumprod((1, *(spatial[:-1] if storage_order else spatial[:0:-1])))
    weights = weights if storage_order else weights[::-1]
    filled = padded(x, window.fill, lowest)
    best = np.full((*x.shape[:2], *window.out), lowest, x.dtype)
    place = np.full(best.shape, -1, np.int64)
    for tap in np.ndindex(*window.kernel):
        index: list[slice] = []
        at = np.zeros((), np.int64)
        inside = np.ones((), bool)
        for i, t in enumerate(tap):
            start = t * window.dilations[i]
            index.append(slice(start, start + (window.out[i] - 1) * window.strides[i] + 1, window.strides[i]))
            source = start + np.arange(window.out[i]) * window.strides[i] - window.pads[i][0]
            at = at[..., None] + source * weights[i]
            inside = inside[..., None] & (source >= 0) & (source < spatial[i])
        value = filled[(slice(None), slice(None), *index)]
        better = inside & ((value > best) | (place < 0))
        np.copyto(best, value, where=better)
        np.copyto(place, np.broadcast_to(at, place.shape), where=better)
    planes = np.arange(x.shape[0] * x.shape[1]) * int(np.prod(spatial, dtype=np.int64))
    return best, place + planes.reshape(*x.shape[:2], *(1,) * len(spatial))


@op("AveragePool")
@lifted
def average_pool(
    x: Array,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Any:
    window = _Window(
        x, kernel_shape, auto_pad=auto_pad, ceil_mode=ceil_mode, dilations=dilations, pads=pads, strides=strides
    )
    counts = window.counts(x.shape[2:], count_include_pad)
    y = window.combine(x, np.add, 0)
    if counts.size and counts.min() == counts.max():
        return y / x.dtype.type(counts.flat[0])
    return y / counts.astype(x.dtype)


@op("LpPool")
@lifted
def lp_pool(
    x: Array,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] | None = None,
    p: int = 2,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Any:
    window = _Window(
        x, kernel_shape, auto_pad=auto_pad, ceil_mode=ceil_mode, dilations=dilations, pads=pads, strides=strides
    )
    return _root(window.combine(_powered(x, p), np.add, 0), p)


def _powered(x: Array, p: int) -> Any:
    return np.abs(x) if p == 1 else x * x if p == 2 else np.power(np.abs(x), p)


def _root(x: Array, p: int) -> Any:
    return x if p == 1 else np.sqrt(x) if p == 2 else np.power(x, 1 / p)


@op("GlobalAveragePool")
@lifted
def global_average_pool(x: Array) -> Any:
    if channels_last(x) and x.dtype.kind == "f":
        return spatial_mean(x)
    rows = x.reshape(*x.shape[:2], -1).mean(axis=2)
    return rows.reshape(*x.shape[:2], *(1,) * (x.ndim - 2))


@op("GlobalMaxPool")
@lifted
def global_max_pool(x: Array) -> Any:
    return x.max(axis=tuple(range(2, x.ndim)), keepdims=True)


@op("GlobalLpPool")
@lifted
def global_lp_pool(x: Array, *, p: int = 2) -> Any:
    return _root(_powered(x, p).sum(axis=tuple(range(2, x.ndim)), keepdims=True), p)


@op("MaxUnpool")
def max_unpool(
    x: Array,
    indices: Array,
    output_shape: Array | None = None,
    *,
    kernel_shape: tuple[int, ...],
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Array:
    n = len(kernel_shape)
    moves = ones_like_kernel(strides, n)
    where = window_pads(x.shape[2:], kernel_shape, auto_pad="NOTSET", pads=pads, strides=moves, dilations=(1,) * n)
    natural = [(x.shape[2 + i] - 1) * moves[i] + kernel_shape[i] - sum(where[i]) for i in range(n)]
    shape = (*x.shape[:2], *natural)
    y = np.zeros(shape, x.dtype)
    y.reshape(-1)[indices.reshape(-1)] = x.reshape(-1)
    if output_shape is None or ints(output_shape) == shape:
        return y
    # The indices count in the natural shape; a larger one asked for adds zeros at the ends.
    target = ints(output_shape)
    out = np.zeros(target, x.dtype)
    part = tuple(slice(0, min(a, b)) for a, b in zip(target, shape, strict=True))
    out[part] = y[part]
    return out
