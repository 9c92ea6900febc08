"""Operators of com.microsoft that came before the standard's of the same name, and some that the standard lacks."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import ints, lifted
from gpurt_cpu.ops.create import trilu
from gpurt_cpu.ops.elementwise import arange
from gpurt_cpu.ops.movement import pad
from gpurt_cpu.ops.sampling import grid_sample
from gpurt_cpu.ops.scatter import gather_nd
from gpurt_cpu.ops.select import unique
from gpurt_cpu.ops.table import Array, op

MS = "com.microsoft"

op("GatherND", domain=MS)(gather_nd)
op("GridSample", domain=MS)(grid_sample)
op("Pad", domain=MS)(pad)
op("Trilu", domain=MS)(trilu)


@op("Unique", domain=MS)
def unique_in_order(x: Array) -> tuple[Array, Array, Array]:
    """Elements in the order of their first occurrence, the place of each input among them, and their numbers."""
    if x.ndim != 1:
        raise InvalidArgument(f"Unique got an input of rank {x.ndim}", remedy="com.microsoft's takes rank 1")
    y, _, index, counts = unique(x, sorted=0)
    return y, index, counts


@op("Inverse", domain=MS)
@lifted
def inverse(x: Array) -> Array:
    try:
        return np.linalg.inv(x)
    except np.linalg.LinAlgError:
        raise InvalidArgument(
            "a matrix of the batch is singular", remedy="Inverse needs matrices of full rank"
        ) from None


@op("ExpandDims", domain=MS)
def expand_dims(x: Array, axis: Array) -> Array:
    return np.expand_dims(x, int(axis.reshape(-1)[0]))


@op("Range", domain=MS)
def arange_by_one(start: Array, limit: Array, delta: Array | None = None) -> Any:
    return arange(start, limit, np.ones((), start.dtype) if delta is None else delta)


@op("CDist", domain=MS)
def cdist(a: Array, b: Array, *, metric: str = "sqeuclidean") -> Any:
    if metric not in ("sqeuclidean", "euclidean"):
        raise InvalidArgument(f"metric is {metric!r}", remedy="Use 'sqeuclidean' or 'euclidean'")
    y = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * np.matmul(a, b.T)
    np.maximum(y, 0, out=y)  # what cancels may leave less than nothing
    return y if metric == "sqeuclidean" else np.sqrt(y)


@op("IsAllFinite", domain=MS)
def is_all_finite(*arrays: Array, isinf_only: int = 0, isnan_only: int = 0) -> Array:
    if isinf_only and isnan_only:
        raise InvalidArgument("isinf_only and isnan_only exclude each other", remedy="Set one of them, or neither")
    test = np.isinf if isinf_only else np.isnan if isnan_only else lambda x: ~np.isfinite(x)
    return np.asarray(not any(bool(test(x).any()) for x in arrays))


@op("CropAndResize", domain=MS)
@lifted
def crop_and_resize(
    x: Array,
    rois: Array,
    batch_indices: Array,
    crop_size: Array,
    *,
    extrapolation_value: float = 0.0,
    mode: str = "bilinear",
) -> Array:
    if mode not in ("bilinear", "nearest"):
        raise InvalidArgument(f"mode is {mode!r}", remedy="Use 'bilinear' or 'nearest'")
    sizes = ints(crop_size)
    if len(sizes) != 2 or min(sizes) <= 0:
        raise InvalidArgument(f"crop_size is {sizes}", remedy="Give a height and a width greater than 0")
    if batch_indices.size and not 0 <= batch_indices.min() <= batch_indices.max() < x.shape[0]:
        raise InvalidArgument(f"batch_indices name images outside of a batch of {x.shape[0]}")
    out = np.empty((rois.shape[0], x.shape[1], *sizes), x.dtype)
    for i, (roi, batch) in enumerate(zip(rois, batch_indices, strict=True)):
        image = x[int(batch)]
        (rows, inside_rows), (columns, inside_columns) = (
            _places(roi[k], roi[k + 2], sizes[k], image.shape[1 + k]) for k in (0, 1)
        )
        if mode == "nearest":
            at_row, at_column = (np.floor(v + x.dtype.type(0.5)).astype(np.int64) for v in (rows, columns))
            y = image[:, at_row][:, :, at_column]
        else:
            part = _between(image, rows, 1)
            y = _between(part, columns, 2)
        out[i] = np.where(inside_rows[:, None] & inside_columns, y, x.dtype.type(extrapolation_value))
    return out


def _places(start: Any, stop: Any, count: int, length: int) -> tuple[Array, Array]:
    """Where along an axis the samples of a box lie, its ends included, and which of them are in the image."""
    last = start.dtype.type(length - 1)
    if count > 1:
        at = start * last + np.arange(count, dtype=start.dtype) * ((stop - start) * last / (count - 1))
    else:
        at = np.asarray([(start + stop) * last / 2], start.dtype)
    return np.clip(at, 0, last), (at >= 0) & (at <= last)


def _between(x: Array, at: Array, axis: int) -> Array:
    """Values at places between the elements of an axis."""
    low = np.floor(at).astype(np.int64)
    weight = (at - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    first = np.take(x, low, axis=axis)
    return np.asarray(first + (np.take(x, np.ceil(at).astype(np.int64), axis=axis) - first) * weight)
