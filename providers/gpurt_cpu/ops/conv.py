"""Convolutions: a strided view of the windows, then one matrix product for each group; sums over taps if depthwise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.activation import sigmoid
from gpurt_cpu.ops.common import (
    F32,
    ints,
    lifted,
    ones_like_kernel,
    padded,
    per_channel,
    window_pads,
)
from gpurt_cpu.ops.linalg import centred, exact_type
from gpurt_cpu.ops.quantize import quantized
from gpurt_cpu.ops.table import Array, op
from gpurt_cpu.ops.taps import Phases, banded, depthwise, depthwise_banded, few_filters, tile_of

_MANY = 8  # filters for each channel from which on a matrix product is the faster way
_COLUMN_BYTES = 8 << 20  # columns are built in pieces of about this size


def windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """View of a padded (N, C, spatial) array as (N, C, kernel, out); [.., k, o] is x[.., o*stride + k*dilation]."""
    n = len(kernel)
    out = tuple(max((x.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1, 0) for i in range(n))
    step = x.strides[2:]
    taps = tuple(s * d for s, d in zip(step, dilations, strict=True))
    moves = tuple(s * d for s, d in zip(step, strides, strict=True))
    return as_strided(x, (*x.shape[:2], *kernel, *out), (*x.strides[:2], *taps, *moves), writeable=False)


def convolve(
    x: Array,
    w: Array,
    group: int,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
    prepared: dict[int, Array] | None = None,
) -> Array:
    """Convolution of float arrays (N, C, spatial) and (M, C/group, kernel), without a bias.

    `prepared` keeps, for weights that do not change, what is made of them.
    """
    if x.shape[1] != w.shape[1] * group or w.shape[0] % group:
        raise InvalidArgument(
            f"weights {w.shape} do not fit an input {x.shape} in {group} group(s)",
            remedy="The input needs weights.shape[1] * group channels, and group must divide weights.shape[0]",
        )
    kernel, filters = w.shape[2:], w.shape[0]
    n, channels = x.shape[:2]
    size = [x.shape[2 + i] + sum(pads[i]) - (k - 1) * dilations[i] for i, k in enumerate(kernel)]
    if any(s < 1 for s in size):
        raise InvalidArgument(f"the window {tuple(kernel)} is larger than the padded input of {x.shape}")
    out = tuple((s - 1) // strides[i] + 1 for i, s in enumerate(size))
    if x.size == 0:
        return np.zeros((n, filters, *out), x.dtype)
    if channels == group == filters and len(kernel) == 2 and kernel[1] > 1:
        tile = tile_of(out[1])
        band = None if prepared is None else prepared.get(tile)
        if band is None:
            band = banded(w[:, 0], strides[1], dilations[1], tile)
            if prepared is not None:
                prepared[tile] = band
        y = np.empty((n, filters, *out), x.dtype)
        for i in range(n):
            depthwise_banded(x[i], band, kernel, strides, dilations, pads, y[i])
        return y
    if channels == group and filters < _MANY * group:
        y = np.empty((n, channels, filters // channels, *out), x.dtype)
        weights = w.reshape(channels, -1, *kernel)
        for i in range(n):
            depthwise(Phases(x[i], kernel, strides, dilations, pads, out), weights, y[i])
        return y.reshape(n, filters, *out)
    if group == 1 and filters * 2 <= channels and 1 < math.prod(kernel) <= 9 and max(strides) == 1:
        y = np.empty((n, filters, *out), x.dtype)
        for i in range(n):
            few_filters(Phases(x[i], kernel, strides, dilations, pads, out), w, y[i])
        return y
    x = padded(x, pads)
    view = windows(x, kernel, strides, dilations)
    weights = w.reshape(group, filters // group, -1)
    if math.prod(kernel) == 1:
        columns = view.reshape(n, group, channels // group, -1)
        y = np.matmul(weights[0], columns[:, 0]) if group == 1 else np.matmul(weights, columns)
        return np.asarray(y).reshape(n, filters, *out)
    y = np.empty((n, group, filters // group, math.prod(out)), x.dtype)
    # Pieces of whole rows of the output: as many as fit the budget, for one image at a time.
    rest = math.prod(out[1:])
    row_bytes = channels * math.prod(kernel) * rest * x.dtype.itemsize
    rows = max(1, min(out[0], max(_COLUMN_BYTES // max(row_bytes, 1), -(-256 // rest))))
    lead = 1 + len(kernel)
    for i in range(n):
        for row in range(0, out[0], rows):
            piece = view[i][(slice(None),) * lead + (slice(row, row + rows),)]
            columns = piece.reshape(group, weights.shape[2], -1)
            np.matmul(weights, columns, out=y[i, :, :, row * rest : (row + rows) * rest])
    return y.reshape(n, filters, *out)


@op("Conv", wants_constants=(1,))
@lifted
def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,  # noqa: ARG001 - the weights say it
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
    prepared: dict[int, Array] | None = None,
) -> Any:
    kernel = w.shape[2:]
    moves, taps = ones_like_kernel(strides, len(kernel)), ones_like_kernel(dilations, len(kernel))
    where = window_pads(x.shape[2:], kernel, auto_pad=auto_pad, pads=pads, strides=moves, dilations=taps)
    y = convolve(x, w, group, moves, taps, where, prepared)
    if b is not None:
        y += per_channel(b, y.ndim)
    return y


def _convolve_integers(x: Array, w: Array, x_zero: Array | None, w_zero: Array | None, **attributes: Any) -> Array:
    """Exact convolution of quantised arrays, as integers held in floats."""
    dtype = exact_type(math.prod(w.shape[1:]))
    if w_zero is not None and w_zero.size > 1:
        w_zero = per_channel(w_zero, w.ndim, 0)
    elif w_zero is not None:
        w_zero = w_zero.reshape(())
    zero = None if x_zero is None else x_zero.reshape(())
    return np.asarray(conv(centred(x, zero, dtype), centred(w, w_zero, dtype), **attributes))


@op("ConvInteger")
def conv_integer(
    x: Array, w: Array, x_zero_point: Array | None = None, w_zero_point: Array | None = None, **attributes: Any
) -> Array:
    return _convolve_integers(x, w, x_zero_point, w_zero_point, **attributes).astype(np.int32)


@op("QLinearConv")
def qlinear_conv(
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    b: Array | None = None,
    **attributes: Any,
) -> Array:
    y = _convolve_integers(x, w, x_zero_point, w_zero_point, **attributes)
    if b is not None:
        y = y.astype(np.float64, copy=False)
        y += per_channel(b, y.ndim)
    factor = (x_scale.reshape(()) * w_scale / y_scale.reshape(())).astype(F32)
    factor = per_channel(factor, y.ndim) if factor.size > 1 else factor.reshape(())
    return quantized(y * factor, y_zero_point.reshape(()), y_zero_point.dtype)


@op("ConvTranspose")
@lifted
def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,  # noqa: ARG001 - the weights say it
    output_padding: tuple[int, ...] | None = None,
    output_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Array:
    kernel = w.shape[2:]
    n = len(kernel)
    moves, taps = ones_like_kernel(strides, n), ones_like_kernel(dilations, n)
    extra = output_padding or (0,) * n
    reach = [(x.shape[2 + i] - 1) * moves[i] + (kernel[i] - 1) * taps[i] + 1 for i in range(n)]
    if output_shape is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = tuple(x.shape[2 + i] * moves[i] for i in range(n))
    if output_shape is not None:
        sizes = output_shape[-n:]
        total = [max(reach[i] + extra[i] - sizes[i], 0) for i in range(n)]
        start = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
    else:
        where = window_pads(x.shape[2:], kernel, auto_pad=auto_pad, pads=pads, strides=moves, dilations=taps)
        start = [begin for begin, _ in where]
        sizes = tuple(reach[i] + extra[i] - sum(where[i]) for i in range(n))
    batch, filters = x.shape[0], w.shape[1] * group
    weights = np.swapaxes(w.reshape(group, x.shape[1] // group, -1), 1, 2)
    full = [max(reach[i], start[i] + sizes[i]) for i in range(n)]
    y = np.zeros((batch, filters, *full), x.dtype)
    for i in range(batch):
        columns = np.matmul(weights, x[i].reshape(group, x.shape[1] // group, -1))
        _scatter_taps(columns.reshape(filters, *kernel, *x.shape[2:]), y[i], moves, taps)
    y = y[(slice(None), slice(None), *(slice(start[i], start[i] + sizes[i]) for i in range(n)))]
    return np.ascontiguousarray(y) if b is None else y + per_channel(b, y.ndim)


def _scatter_taps(columns: Array, y: Array, strides: Sequence[int], dilations: Sequence[int]) -> None:
    """Add columns (C, kernel, positions) into an image (C, spatial) where each tap of each position lies."""
    n = y.ndim - 1
    places = columns.shape[1 + n :]
    for tap in np.ndindex(*columns.shape[1 : 1 + n]):
        at = tuple(
            slice(tap[i] * dilations[i], tap[i] * dilations[i] + (places[i] - 1) * strides[i] + 1, strides[i])
            for i in range(n)
        )
        y[(slice(None), *at)] += columns[(slice(None), *tap)]


@op("Col2Im")
@lifted
def col2im(
    x: Array,
    image_shape: Array,
    block_shape: Array,
    *,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Array:
    image, kernel = ints(image_shape), ints(block_shape)
    n = len(image)
    moves, taps = ones_like_kernel(strides, n), ones_like_kernel(dilations, n)
    where = window_pads(image, kernel, auto_pad="NOTSET", pads=pads, strides=moves, dilations=taps)
    full = [image[i] + sum(where[i]) for i in range(n)]
    places = [(full[i] - (kernel[i] - 1) * taps[i] - 1) // moves[i] + 1 for i in range(n)]
    channels = x.shape[1] // math.prod(kernel)
    y = np.zeros((x.shape[0] * channels, *full), x.dtype)
    _scatter_taps(x.reshape(-1, *kernel, *places), y, moves, taps)
    y = y[(slice(None), *(slice(where[i][0], where[i][0] + image[i]) for i in range(n)))]
    return y.reshape(x.shape[0], channels, *image)


@op("DeformConv")
@lifted
def deform_conv(
    x: Array,
    w: Array,
    offset: Array,
    b: Array | None = None,
    mask: Array | None = None,
    *,
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,  # noqa: ARG001 - the weights say it
    offset_group: int = 1,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Array:
    if x.ndim != 4:
        raise InvalidArgument(f"DeformConv got an input of rank {x.ndim}", remedy="Only images (rank 4) are defined")
    (n, channels), (kh, kw) = x.shape[:2], w.shape[2:]
    out = offset.shape[2:]
    moves, taps = ones_like_kernel(strides, 2), ones_like_kernel(dilations, 2)
    begin = pads or (0, 0, 0, 0)
    shifts = offset.reshape(n, offset_group, kh * kw, 2, *out)
    at = []
    for i, k in enumerate((np.repeat(np.arange(kh), kw), np.tile(np.arange(kw), kh))):
        base = (np.arange(out[i]) * moves[i] - begin[i]).reshape((-1, 1) if i == 0 else (1, -1))
        at.append(shifts[:, :, :, i] + (base + (k * taps[i])[:, None, None]).astype(x.dtype))
    weight = None if mask is None else mask.reshape(n, offset_group, kh * kw, *out)
    columns = np.empty((n, channels, kh * kw, *out), x.dtype)
    share = channels // offset_group
    for i, g in itertools.product(range(n), range(offset_group)):
        values = _bilinear(x[i, g * share : (g + 1) * share], at[0][i, g], at[1][i, g])
        columns[i, g * share : (g + 1) * share] = values if weight is None else values * weight[i, g]
    filters = w.shape[0]
    product = np.matmul(
        w.reshape(group, filters // group, -1), columns.reshape(n, group, channels // group * kh * kw, -1)
    )
    y = product.reshape(n, filters, *out)
    return np.asarray(y if b is None else y + per_channel(b, 4))


def _bilinear(x: Array, row: Array, column: Array) -> Array:
    """Sample (C, H, W) between its pixels; what lies outside counts as zero."""
    height, width = x.shape[1:]
    flat = x.reshape(x.shape[0], -1)
    top, left = np.floor(row), np.floor(column)
    down, right = row - top, column - left
    total = np.zeros((x.shape[0], *row.shape), x.dtype)
    for dy, dx in itertools.product((0, 1), (0, 1)):
        r, c = (top + dy).astype(np.int64), (left + dx).astype(np.int64)
        weight = (down if dy else 1 - down) * (right if dx else 1 - right)
        weight = np.where((r >= 0) & (r < height) & (c >= 0) & (c < width), weight, 0)
        place = np.clip(r, 0, height - 1) * width + np.clip(c, 0, width - 1)
        total += flat[:, place] * weight
    return total


@op("CausalConvWithState")
@lifted
def causal_conv_with_state(
    x: Array, w: Array, bias: Array | None = None, past_state: Array | None = None, *, activation: str = "none"
) -> tuple[Array, Array]:
    carry = w.shape[2] - 1
    past = np.zeros((*x.shape[:2], carry), x.dtype) if past_state is None else past_state
    whole = np.concatenate([past, x], axis=2)
    y = convolve(whole, w, x.shape[1], (1,), (1,), [(0, 0)])
    if bias is not None:
        y += per_channel(bias, 3)
    if activation in ("silu", "swish"):
        y *= sigmoid(y)
    elif activation != "none":
        raise InvalidArgument(f"activation is {activation!r}", remedy="Use 'none', 'silu' or 'swish'")
    return y, whole[:, :, whole.shape[2] - carry :].copy()
