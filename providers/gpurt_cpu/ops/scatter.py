"""Reading and writing at places that the data names: Gather and Scatter in their three forms."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import NARROW, axis_in, widen
from gpurt_cpu.ops.table import Array, op


def _inside(indices: Array, limit: int) -> Array:
    """Indices counted from the front. Raises InvalidArgument if one lies outside."""
    if indices.size:
        low, high = int(indices.min()), int(indices.max())
        if low < -limit or high >= limit:
            raise InvalidArgument(
                f"index {low if low < -limit else high} lies outside an axis of {limit}",
                remedy=f"Use {-limit} to {limit - 1}",
            )
        if low < 0:
            return np.where(indices < 0, indices + limit, indices)
    return indices


@op("Gather")
def gather(x: Array, indices: Array, *, axis: int = 0) -> Any:
    axis = axis_in(axis, x.ndim)
    return np.asarray(np.take(x, _inside(indices, x.shape[axis]), axis=axis), x.dtype)


def _along(shape: tuple[int, ...], indices: Array, axis: int) -> tuple[Array, ...]:
    """Index that reads or writes along an axis, with the other axes cut to the size of the indices."""
    grid = list(np.ogrid[tuple(slice(0, d) for d in indices.shape)])
    grid[axis] = _inside(indices, shape[axis])
    return tuple(grid)


@op("GatherElements")
def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    return x[_along(x.shape, indices, axis_in(axis, x.ndim))]


@op("GatherND")
def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    depth = indices.shape[-1]
    lead = indices.ndim - 1
    grid = np.ogrid[tuple(slice(0, d) for d in x.shape[:batch_dims])] if batch_dims else []
    batch = tuple(g.reshape(g.shape + (1,) * (lead - batch_dims)) for g in grid)
    places = tuple(_inside(indices[..., i], x.shape[batch_dims + i]) for i in range(depth))
    return np.asarray(x[batch + places], x.dtype)


def _write(out: Array, place: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    if reduction == "none":
        out[place] = updates
        return out
    ufuncs: dict[str, np.ufunc] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
    if reduction not in ufuncs:
        raise InvalidArgument(f"reduction is {reduction!r}", remedy="Use 'none', 'add', 'mul', 'max' or 'min'")
    dtype = out.dtype
    wide = widen(out)
    if dtype.kind == "b":
        ufuncs = {"add": np.logical_or, "mul": np.logical_and, "max": np.logical_or, "min": np.logical_and}
    ufuncs[reduction].at(wide, place, widen(updates))
    return wide.astype(dtype, copy=False) if dtype in NARROW else wide


@op("ScatterElements")
@op("Scatter")
def scatter_elements(x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none") -> Array:
    place = _along(x.shape, indices, axis_in(axis, x.ndim))
    return _write(x.copy(), place, updates, reduction)


@op("ScatterND")
def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    place = tuple(_inside(indices[..., i], x.shape[i]) for i in range(indices.shape[-1]))
    if not place:
        return updates.reshape(x.shape).copy()
    return _write(x.copy(), place, updates, reduction)


@op("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(x: Array, indices: Array) -> Array:
    columns = np.take(x, _inside(indices.reshape(-1), x.shape[-1]), axis=-1)
    return columns.reshape(1, -1) if x.ndim == 1 else columns
