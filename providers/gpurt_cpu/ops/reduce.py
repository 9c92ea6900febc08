"""Reductions along axes, running sums and products, and the places of the extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpurt_cpu.ops.common import axis_in, channels_last, ints, lifted, scalar, spatial_mean
from gpurt_cpu.ops.table import Array, op


def _reduction(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of (array, axes, keepdims): the axes input and the attributes are handled here."""

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        @op(name)
        @lifted
        def kernel(x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
            if axes is None or axes.size == 0:
                # Without axes there is nothing to combine, but the function that maps each element still applies.
                where = () if noop_with_empty_axes else tuple(range(x.ndim))
            else:
                where = tuple(axis_in(a, x.ndim) for a in ints(axes))
            return np.asarray(fn(x, where, bool(keepdims))).astype(x.dtype, copy=False)

        return fn

    return register


@_reduction("ReduceSum")
def reduce_sum(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    return np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype)


@_reduction("ReduceMean")
def reduce_mean(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    count = math.prod(x.shape[a] for a in axes)
    if x.dtype.kind == "f":
        if keepdims and sorted(axes) == list(range(2, x.ndim)) and channels_last(x):
            return spatial_mean(x)
        return np.sum(x, axis=axes, keepdims=keepdims) / x.dtype.type(count)
    return np.trunc(np.sum(x, axis=axes, keepdims=keepdims, dtype=np.int64) / count)


@_reduction("ReduceProd")
def reduce_prod(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    return np.prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype)


@_reduction("ReduceMax")
def reduce_max(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    if x.dtype == bool:
        return np.any(x, axis=axes, keepdims=keepdims)
    if x.size:
        return np.max(x, axis=axes, keepdims=keepdims)
    return np.max(x, axis=axes, keepdims=keepdims, initial=_least(x.dtype))


@_reduction("ReduceMin")
def reduce_min(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    if x.dtype == bool:
        return np.all(x, axis=axes, keepdims=keepdims)
    if x.size:
        return np.min(x, axis=axes, keepdims=keepdims)
    return np.min(x, axis=axes, keepdims=keepdims, initial=_greatest(x.dtype))


def _least(dtype: np.dtype[Any]) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _greatest(dtype: np.dtype[Any]) -> Any:
    return np.inf if dtype.kind == "f" else np.iinfo(dtype).max


@_reduction("ReduceL1")
def reduce_l1(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    return np.sum(np.abs(x), axis=axes, keepdims=keepdims, dtype=x.dtype)


@_reduction("ReduceL2")
def reduce_l2(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    if x.dtype.kind == "f":
        return np.sqrt(np.sum(x * x, axis=axes, keepdims=keepdims))
    return np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=axes, keepdims=keepdims))


@_reduction("ReduceSumSquare")
def reduce_sum_square(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    return np.sum(x * x, axis=axes, keepdims=keepdims, dtype=x.dtype)


@_reduction("ReduceLogSum")
def reduce_log_sum(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    total = np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype)
    return np.log(total)


@_reduction("ReduceLogSumExp")
def reduce_log_sum_exp(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    wide = x if x.dtype.kind == "f" else x.astype(np.float64)
    top = np.max(wide, axis=axes, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    total = np.log(np.sum(np.exp(wide - top), axis=axes, keepdims=True)) + top
    return total if keepdims else np.squeeze(total, axes)


def _cumulate(ufunc: np.ufunc, start: int, x: Array, axis: int, *, exclusive: int, reverse: int) -> Array:
    axis = axis_in(axis, x.ndim)
    if reverse:
        x = np.flip(x, axis)
    y = ufunc.accumulate(x, axis=axis, dtype=x.dtype)
    if exclusive:
        shifted = np.full_like(y, start)
        ahead, behind = [slice(None)] * x.ndim, [slice(None)] * x.ndim
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        shifted[tuple(ahead)] = y[tuple(behind)]
        y = shifted
    return np.ascontiguousarray(np.flip(y, axis)) if reverse else y


@op("CumSum")
@lifted
def cumsum(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    return _cumulate(np.add, 0, x, scalar(axis), exclusive=exclusive, reverse=reverse)


@op("CumProd")
@lifted
def cumprod(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    return _cumulate(np.multiply, 1, x, scalar(axis), exclusive=exclusive, reverse=reverse)


def _extreme(find: Callable[..., Any], x: Array, *, axis: int, keepdims: int, last: int) -> Array:
    axis = axis_in(axis, x.ndim)
    if not last:
        return np.asarray(find(x, axis=axis, keepdims=bool(keepdims))).astype(np.int64, copy=False)
    place = np.asarray(find(np.flip(x, axis), axis=axis, keepdims=bool(keepdims)))
    return np.asarray((x.shape[axis] - 1 - place).astype(np.int64, copy=False))


@op("ArgMax")
@lifted
def argmax(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    return _extreme(np.argmax, x, axis=axis, keepdims=keepdims, last=select_last_index)


@op("ArgMin")
@lifted
def argmin(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    return _extreme(np.argmin, x, axis=axis, keepdims=keepdims, last=select_last_index)
