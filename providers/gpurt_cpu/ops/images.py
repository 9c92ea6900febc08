"""Convolutions of images with constant weights, over memory with the channels last.

An array keeps ONNX's shape (N, C, H, W); only its strides say that the channels lie next to each other. So every other
kernel can read it, and what a window takes from a row is one run of memory. Of the ways to compute a convolution the
one is taken that moves the least: a product as it stands (1x1), sums over taps (depthwise), Winograd's tiles, products
with whole runs of a row that are added up, and a matrix of windows for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.memory import Empty
from gpurt_cpu.ops.common import ones_like_kernel, window_pads
from gpurt_cpu.ops.depthwise import depthwise
from gpurt_cpu.ops.padding import PART, SCRATCH, Finish, Method, Padding, last, matrix_of, split, strided
from gpurt_cpu.ops.table import Array
from gpurt_cpu.ops.winograd import Winograd, tile_for

_SHAPES: Final = 16  # sizes of the input that are prepared for
_RUN: Final = 1 << 12  # elements of a bias that is repeated
_ZERO: Final = np.zeros((), np.float32)
_INFINITE: Final = np.full((), np.inf, np.float32)


class Convolution:
    """A convolution of float32 images; call it with an array (N, C, H, W), or (N, C, W), and what makes memory.

    Args:
        w: weights (M, C/group, kh, kw) or (M, C/group, kw), which do not change.
        bias: (M,) or None.
        relu: whether what is negative becomes zero.
        attributes: those of ONNX's Conv.

    Attributes:
        after: what else is done to each element of the result, while it is in cache; set before the first call.
    """

    def __init__(self, w: Array, bias: Array | None, *, relu: bool = False, **attributes: Any) -> None:
        n = w.ndim - 2
        self._group: int = attributes.get("group", 1)
        strides, dilations = (ones_like_kernel(attributes.get(name), n) for name in ("strides", "dilations"))
        pads = attributes.get("pads")
        if n == 1:  # an image of one row
            w, strides, dilations = w[:, :, None], (1, *strides), (1, *dilations)
            pads = (0, pads[0], 0, pads[1]) if pads and len(pads) == 2 else pads
        self._rank = n
        self._w, self._strides, self._dilations, self._pads = w, strides, dilations, pads
        self._auto_pad: str = attributes.get("auto_pad", "NOTSET")
        self._relu = relu
        self.after: Finish | None = None
        self._bias = bias
        self._run = None if bias is None else np.tile(bias, max(1, _RUN // bias.size))
        self._methods: dict[tuple[int, ...], tuple[Method, tuple[int, int]]] = {}
        self._weights: dict[Any, Any] = {}  # what ways to compute make of the weights, whatever the size of the input

    def __call__(self, x: Array, empty: Empty) -> Array:
        """The result (N, M, height, width), in memory with the channels last."""
        if x.ndim != 2 + self._rank:
            raise InvalidArgument(f"weights of rank {2 + self._rank} do not fit an input {x.shape}")
        if self._rank == 1:
            return self._images(x[:, :, None], empty)[:, :, 0]
        return self._images(x, empty)

    def _images(self, x: Array, empty: Empty) -> Array:
        found = self._methods.get(x.shape[1:])
        if found is None:
            if len(self._methods) >= _SHAPES:
                self._methods.clear()
            found = self._methods[x.shape[1:]] = self._choose(x.shape)
        method, out = found
        y = empty((x.shape[0], *out, self._w.shape[0]))
        if x.size:
            for image, result in zip(last(x), y, strict=True):
                method(image, result, empty)
        else:
            y.fill(0)
            self._finish(y)
        return y.transpose(0, 3, 1, 2)

    def _finish(self, y: Array) -> None:
        """Add the bias to dense memory, cut off what is negative, and do what comes after."""
        flat = y.reshape(-1)
        run = self._run
        if run is not None:
            whole = flat.size // run.size * run.size
            if whole:
                rows = flat[:whole].reshape(-1, run.size)
                np.add(rows, run, out=rows)
            if whole < flat.size:
                rest = flat[whole:]
                np.add(rest, run[: rest.size], out=rest)
        if self._relu:
            np.clip(flat, _ZERO, _INFINITE, out=flat)  # faster than maximum, and keeps NaN as that does
        if self.after is not None:
            self.after(flat)

    def _choose(self, shape: Sequence[int]) -> tuple[Method, tuple[int, int]]:
        """How to compute for an input of a shape, and the size of the result."""
        channels, size = shape[1], shape[2:]
        w, group, kernel = self._w, self._group, self._w.shape[2:]
        filters = w.shape[0]
        if channels != w.shape[1] * group or filters % group:
            raise InvalidArgument(
                f"weights {w.shape} do not fit an input {tuple(shape)} in {group} group(s)",
                remedy="The input needs weights.shape[1] * group channels, and group must divide weights.shape[0]",
            )
        pads = window_pads(
            size, kernel, auto_pad=self._auto_pad, pads=self._pads, strides=self._strides, dilations=self._dilations
        )
        room = [size[i] + sum(pads[i]) - (kernel[i] - 1) * self._dilations[i] for i in range(2)]
        if min(room) < 1:
            raise InvalidArgument(f"the window {tuple(kernel)} is larger than the padded input of {tuple(shape)}")
        out = ((room[0] - 1) // self._strides[0] + 1, (room[1] - 1) // self._strides[1] + 1)
        place = Padding(size, pads, out, kernel, self._strides, self._dilations)
        plain = max(self._strides) == 1 and max(self._dilations) == 1
        if group == channels > 1:
            return depthwise(w.reshape(channels, -1, *kernel), place, self._finish), out
        if group > 1:
            return self._grouped(place), out
        if max(kernel) == 1:
            return self._pointwise(place), out
        tile = tile_for(kernel, channels, filters, out) if plain else 0
        if tile:
            winograd = self._weights.get(tile)
            if winograd is None:
                bias = np.zeros(filters, np.float32) if self._bias is None else self._bias
                winograd = self._weights[tile] = Winograd(w, bias, tile, self._relu, self.after)
            return winograd.method(place), out
        if kernel[1] * channels <= 12:
            return self._planes(place), out
        if plain and kernel[1] > 1 and channels >= 16 and 2 * filters <= 3 * channels and out[1] >= 20:
            return self._sliding(place), out
        return self._windows(place), out

    def _kept(self, name: str, make: Callable[[], Array]) -> Array:
        """Weights in the form that a way to compute wants, made once."""
        found: Array | None = self._weights.get(name)
        if found is None:
            found = self._weights[name] = make()
        return found

    def _pointwise(self, place: Padding) -> Method:
        weights = self._kept("pointwise", lambda: np.ascontiguousarray(self._w[:, :, 0, 0].T))
        rows, columns = self._strides

        def run(x: Array, y: Array, empty: Empty) -> None:
            if place.padded:
                x = place.apply(x, empty)
            if rows > 1 or columns > 1:
                x = x[: (y.shape[0] - 1) * rows + 1 : rows, : (y.shape[1] - 1) * columns + 1 : columns]
            pixels, target = matrix_of(x, empty), y.reshape(-1, y.shape[2])
            count = max(256, PART // y.shape[2])
            for start in range(0, len(target), count):
                part = target[start : start + count]
                np.matmul(pixels[start : start + count], weights, out=part)
                self._finish(part)

        return run

    def _grouped(self, place: Padding) -> Method:
        group, (height, width), (kh, kw) = self._group, place.out, place.kernel
        many = self._w.shape[0] // group
        weights = self._kept(
            "grouped",
            lambda: np.ascontiguousarray(
                self._w.reshape(group, many, -1, kh * kw).transpose(0, 3, 2, 1).reshape(group, -1, many)
            ),
        )
        moves = kh * kw > 1 or place.padded or max(self._strides) > 1

        def run(x: Array, y: Array, empty: Empty) -> None:
            out = y.reshape(-1, group, many).transpose(1, 0, 2)
            if not moves:
                np.matmul(matrix_of(x, empty).reshape(height * width, group, -1).transpose(1, 0, 2), weights, out=out)
                self._finish(y)
                return
            view = split(place.windows(place.apply(x, empty)), group)
            columns = empty((group, height * width, weights.shape[1]))
            columns.reshape(group, height, width, kh, kw, -1)[...] = view.transpose(4, 2, 3, 0, 1, 5)
            np.matmul(columns, weights, out=out)
            self._finish(y)

        return run

    def _windows(self, place: Padding) -> Method:
        """A matrix of windows, a few rows of the result at a time."""
        (height, width), (kh, kw) = place.out, place.kernel
        filters = self._w.shape[0]
        weights = self._kept(
            "windows", lambda: np.ascontiguousarray(self._w.transpose(2, 3, 1, 0).reshape(-1, filters))
        )
        length = weights.shape[0]
        rows = max(1, min(height, SCRATCH // (width * length)))
        dense = self._dilations[1] == 1

        def run(x: Array, y: Array, empty: Empty) -> None:
            x = place.apply(x, empty)
            if dense:  # the taps of a row and their channels are one run
                row, column, one = x.strides
                strides = (row * self._strides[0], column * self._strides[1], row * self._dilations[0], one)
                runs = strided(x, (height, width, kh, kw * x.shape[2]), strides)
            else:
                runs = place.windows(x).transpose(2, 3, 0, 1, 4)
            columns = empty((rows * width, length))
            for start in range(0, height, rows):
                part = runs[start : start + rows]
                matrix = columns[: len(part) * width]
                matrix.reshape(part.shape)[...] = part
                target = y[start : start + rows]
                np.matmul(matrix, weights, out=target.reshape(-1, filters))
                self._finish(target)

        return run

    def _planes(self, place: Padding) -> Method:
        """As `_windows` for few channels: what each tap reads is a row of a matrix, and long runs of memory."""
        (height, width), (_kh, _kw) = place.out, place.kernel
        filters, _channels = self._w.shape[:2]
        weights = self._kept("planes", lambda: np.ascontiguousarray(self._w.reshape(filters, -1).T))
        length = weights.shape[0]
        rows = max(1, min(height, SCRATCH // (width * length)))

        def run(x: Array, y: Array, empty: Empty) -> None:
            first = place.apply(x, empty, first=True)
            view = place.windows(first).transpose(4, 0, 1, 2, 3)
            for start in range(0, height, rows):
                part = view[:, :, :, start : start + rows]
                columns = empty((length, part.shape[3] * width))
                columns.reshape(part.shape)[...] = part
                target = y[start : start + rows]
                np.matmul(columns.T, weights, out=target.reshape(-1, filters))
                self._finish(target)

        return run

    def _sliding(self, place: Padding) -> Method:
        """Products of runs of `kw` pixels as they lie in memory with all rows of the kernel, added up with a shift.

        Runs that begin at neighbouring pixels overlap, which BLAS cannot read as one matrix: so one product takes each
        `kw`-th run. Runs over the end of a row mean nothing and are left out.
        """
        (height, width), (kh, kw) = place.out, place.kernel
        filters, channels = self._w.shape[:2]
        weights = self._kept(
            "sliding", lambda: np.ascontiguousarray(self._w.transpose(3, 1, 2, 0).reshape(kw * channels, -1))
        )
        pitch = place.shape[1]
        rows = max(1, min(height, SCRATCH // (pitch * kh * filters)))

        def run(x: Array, y: Array, empty: Empty) -> None:
            pixels = place.apply(x, empty, slack=2 * kw).reshape(-1, channels)
            sums = empty(((rows + kh) * pitch + kw, kh * filters))
            for start in range(0, height, rows):
                target = y[start : start + rows]
                count = len(target) + kh - 1  # rows of the padded form that the part reads
                runs = -(-count * pitch // kw)
                out = sums[: runs * kw].reshape(runs, kw, -1)
                first = start * pitch
                for b in range(kw):
                    matrix = pixels[first + b : first + b + runs * kw].reshape(runs, kw * channels)
                    np.matmul(matrix, weights, out=out[:, b])
                parts = sums[: count * pitch].reshape(count, pitch, kh, filters)[:, :width]
                if kh == 1:
                    np.copyto(target, parts[:, :, 0])
                else:
                    np.add(parts[: len(target), :, 0], parts[1 : len(target) + 1, :, 1], out=target)
                for a in range(2, kh):
                    np.add(target, parts[a : a + len(target), :, a], out=target)
                self._finish(target)

        return run


class Upsampling:
    """A transposed convolution whose windows do not overlap: its kernel is as large as its strides.

    Args:
        w: weights (C, M, kh, kw), which do not change.
        bias: (M,) or None.
    """

    def __init__(self, w: Array, bias: Array | None) -> None:
        self._shape = w.shape
        self._weights = np.ascontiguousarray(w.transpose(0, 2, 3, 1).reshape(w.shape[0], -1))
        self._bias = None if bias is None else np.tile(bias, w.shape[3])  # for the taps of a row

    def __call__(self, x: Array, empty: Empty) -> Array:
        """The result (N, M, height, width), in memory with the channels last."""
        channels, filters, kh, kw = self._shape
        if x.ndim != 4 or x.shape[1] != channels:
            raise InvalidArgument(f"weights {self._shape} do not fit an input {x.shape}")
        n, _, height, width = x.shape
        y = empty((n, height * kh, width * kw, filters))
        for image, result in zip(last(x), y, strict=True):
            products = empty((height * width, kh * kw * filters))
            np.matmul(matrix_of(image, empty), self._weights, out=products)
            spread = products.reshape(height, width, kh, kw * filters).transpose(0, 2, 1, 3)
            target = result.reshape(height, kh, width, kw * filters)
            if self._bias is None:
                np.copyto(target, spread)
            else:
                np.add(spread, self._bias, out=target)
        return y.transpose(0, 3, 1, 2)
