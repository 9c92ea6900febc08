"""Depthwise convolutions over memory with the channels last: sums over taps, which einsum adds up in one pass a tap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from gpurt_cpu.memory import Empty
from gpurt_cpu.ops.padding import PART, SCRATCH, Finish, Method, Padding, strided
from gpurt_cpu.ops.table import Array

_FEW: Final = 200  # channels below which einsum's inner loop had better run over several pixels


def depthwise(w: Array, place: Padding, finish: Finish) -> Method:
    """How to compute for weights (C, M/C, kh, kw)."""
    channels, many = w.shape[:2]
    height, width = place.out
    rows = max(1, PART // (width * channels * many))
    sums = [_sums(np.ascontiguousarray(w[:, m].transpose(1, 2, 0)), place) for m in range(many)]

    def run(x: Array, y: Array, empty: Empty) -> None:
        first = sums[0].read(x, empty)
        scratch = empty((2, min(rows, height), width, channels))
        for start in range(0, height, rows):
            part = y[start : start + rows]
            if many == 1:
                sums[0].write(first, start, part, scratch[1, : len(part)])
            else:
                total = scratch[0, : len(part)]
                for m in range(many):
                    sums[m].write(first, start, total, scratch[1, : len(part)])
                    part.reshape(*total.shape, many)[..., m] = total
            finish(part)

    return run


def _sums(w: Array, place: Padding) -> _Sums:
    channels = w.shape[2]
    if channels >= _FEW or place.kernel[0] * place.kernel[1] * place.out[1] * channels > SCRATCH:
        return _Sums(w, place)
    if place.strides[1] == 1:
        return _Runs(w, place)
    if place.strides[1] <= place.kernel[1] and place.dilations[1] == 1:
        return _Phases(w, place)
    return _Sums(w, place)


class _Sums:
    """Sums over the taps of weights (kh, kw, C), one pixel after the other."""

    def __init__(self, w: Array, place: Padding) -> None:
        self.place = place
        self.weights = self.prepared(w)

    def prepared(self, w: Array) -> Sequence[Array]:
        """The weights as the sums read them."""
        return [w]

    def read(self, x: Array, empty: Empty) -> Sequence[Array]:
        """Views of the padded form of an image (H, W, C): [tap row, tap column, row of the result, ..]."""
        return [self.place.windows(self.place.apply(x, empty))]

    def write(self, views: Sequence[Array], start: int, y: Array, _: Array) -> None:
        """Write some rows (rows, width, C) of the result, from one on; the last argument is scratch of that shape."""
        np.einsum("abhwc,abc->hwc", views[0][:, :, start : start + len(y)], self.weights[0], out=y)


class _Runs(_Sums):
    """With a stride of 1, what a tap reads for a row of the result is one run of memory; weights are repeated along."""

    def prepared(self, w: Array) -> Sequence[Array]:
        return [_repeated(w, self.place.out[1])]

    def read(self, x: Array, empty: Empty) -> Sequence[Array]:
        place = self.place
        x = place.apply(x, empty)
        row, column, one = x.strides
        shape = (*place.kernel, place.out[0], place.out[1] * x.shape[2])
        strides = (row * place.dilations[0], column * place.dilations[1], row * place.strides[0], one)
        return [strided(x, shape, strides)]

    def write(self, views: Sequence[Array], start: int, y: Array, _: Array) -> None:
        _add_up(views[0], start, self.weights[0], y)


class _Phases(_Sums):
    """With a larger stride, the columns of each remainder by it are brought together first, and their taps."""

    def prepared(self, w: Array) -> Sequence[Array]:
        step = self.place.strides[1]
        return [_repeated(w[:, p::step], self.place.out[1]) for p in range(step)]

    def read(self, x: Array, empty: Empty) -> Sequence[Array]:
        place = self.place
        (height, width), (kh, kw) = place.out, place.kernel
        reach = (height - 1) * place.strides[0] + (kh - 1) * place.dilations[0] + 1
        phases = place.phases(x, (reach, width + (kw - 1) // place.strides[1]), empty)
        _, row, column, one = phases.strides
        strides = (row * place.dilations[0], column, row * place.strides[0], one)
        return [
            strided(phase, (kh, w.shape[1], height, w.shape[2]), strides)
            for phase, w in zip(phases, self.weights, strict=True)
        ]

    def write(self, views: Sequence[Array], start: int, y: Array, scratch: Array) -> None:
        for number, (view, weights) in enumerate(zip(views, self.weights, strict=True)):
            _add_up(view, start, weights, scratch if number else y)
            if number:
                np.add(y, scratch, out=y)


def _repeated(w: Array, width: int) -> Array:
    """Weights (kh, kw, C) as (kh, kw, width * C)."""
    kh, kw, channels = w.shape
    return np.ascontiguousarray(np.broadcast_to(w[:, :, None], (kh, kw, width, channels))).reshape(kh, kw, -1)


def _add_up(view: Array, start: int, weights: Array, y: Array) -> None:
    np.einsum("abhw,abw->hw", view[:, :, start : start + len(y)], weights, out=y.reshape(len(y), -1))
