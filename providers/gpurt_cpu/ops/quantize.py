"""Quantisation and its inverse: for the whole tensor, along an axis, or in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.cast import cast_to
from gpurt_cpu.ops.common import NARROW, SMALL_INTS, axis_in, dtype_of, per_channel, widen
from gpurt_cpu.ops.table import Array, op


def limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Least and greatest value of an integer type, those of fewer than eight bits included."""
    if dtype in SMALL_INTS:
        return SMALL_INTS[dtype]
    info = np.iinfo(dtype)
    return info.min, info.max


def quantized(x: Array, zero_point: Array | None, dtype: np.dtype[Any], saturate: int = 1) -> Array:
    """Scaled floats rounded to even, moved by the zero point and clipped to the type; float types round themselves."""
    if dtype in NARROW:
        if zero_point is not None and np.any(widen(zero_point) != 0):
            x = x + widen(zero_point)
        return cast_to(np.asarray(x), dtype, saturate=bool(saturate))
    low, high = limits(dtype)
    y = np.rint(x)
    if zero_point is not None:
        y += zero_point.astype(y.dtype)
    return np.asarray(np.clip(y, low, high)).astype(np.int8 if dtype in SMALL_INTS else dtype).astype(dtype, copy=False)


def _spread(v: Array, x: Array, axis: int, block_size: int) -> Array:
    """A scale or zero point, viewed or repeated so that it broadcasts over the data."""
    if v.size == 1 and v.ndim <= 1:
        return v.reshape(())
    axis = axis_in(axis, x.ndim)
    if v.ndim == 1 and not block_size:
        if v.size != x.shape[axis]:
            raise InvalidArgument(
                f"a scale of {v.size} values does not fit axis {axis} of {x.shape}",
                remedy=f"Give one value, or {x.shape[axis]}",
            )
        return per_channel(v, x.ndim, axis)
    if not block_size:
        return v
    repeated = np.repeat(v, block_size, axis=axis)
    return repeated[tuple(slice(0, d) for d in x.shape)]


@op("QuantizeLinear")
def quantize_linear(
    x: Array,
    y_scale: Array,
    y_zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Array:
    if output_dtype:
        dtype = dtype_of(output_dtype)
    else:
        dtype = np.dtype(np.uint8) if y_zero_point is None else y_zero_point.dtype
    wide = np.dtype(np.float32)
    if precision:
        asked = dtype_of(precision)
        wide = asked if asked == np.float64 else wide
    values = x.astype(wide, copy=False)
    scale = _spread(y_scale, x, axis, block_size).astype(wide, copy=False)
    zero = None if y_zero_point is None else _spread(y_zero_point, x, axis, block_size)
    ratio = values / scale
    rounding = dtype_of(precision) if precision else y_scale.dtype
    if rounding in NARROW and rounding.itemsize == 2:  # the division is meant to happen in the scale's precision
        ratio = np.asarray(ratio).astype(rounding).astype(np.float32)
    return quantized(ratio, zero, dtype, saturate)


@op("DequantizeLinear")
def dequantize_linear(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Array:
    dtype = dtype_of(output_dtype) if output_dtype else x_scale.dtype
    wide = np.float64 if x.dtype == np.int32 else np.float32
    y: Array = x.astype(wide)
    if x_zero_point is not None and np.any(x_zero_point.astype(np.float32) != 0):
        y -= _spread(x_zero_point, x, axis, block_size).astype(wide)
    y = y * _spread(x_scale, x, axis, block_size).astype(np.float32)
    return np.asarray(y).astype(dtype, copy=False)


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Array) -> tuple[Array, Array, Array]:
    low = np.minimum(0, x.min(initial=0)).astype(np.float32)
    high = np.maximum(0, x.max(initial=0)).astype(np.float32)
    scale = (high - low) / np.float32(255)
    if scale == 0:
        scale = np.float32(1)
    zero = np.rint(np.clip(-low / scale, 0, 255)).astype(np.uint8)
    return quantized(x / scale, np.asarray(zero), np.dtype(np.uint8)), np.asarray(scale), np.asarray(zero)
