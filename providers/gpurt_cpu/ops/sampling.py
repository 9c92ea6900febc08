"""Sampling at places that the data names: GridSample with its affine grids, and pooling of regions of interest."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import ints, lifted
from gpurt_cpu.ops.table import Array, op


def _reflected(x: Array, low: float, high: float) -> Array:
    """Mirror coordinates at the borders until they lie between them."""
    span = high - low
    if span <= 0:
        return np.full_like(x, low)
    around = np.mod(x - low, x.dtype.type(2 * span))
    return np.asarray(low + np.minimum(around, 2 * span - around))


def _taps(x: Array, mode: str) -> list[tuple[Array, Array | None]]:
    """Whole coordinates around each place, with their weights; None is a weight of one."""
    if mode == "nearest":
        return [(x, None)]
    base = np.floor(x)
    t = x - base
    if mode == "linear":
        return [(base, 1 - t), (base + 1, t)]
    a = -0.75
    weights = (
        ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
        ((a + 2) * t - (a + 3)) * t * t + 1,
        ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
        ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
    )
    return [(base + k - 1, w) for k, w in enumerate(weights)]


@op("GridSample")
@lifted
def grid_sample(
    x: Array, grid: Array, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Array:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    if mode not in ("nearest", "linear", "cubic") or padding_mode not in ("zeros", "border", "reflection"):
        raise InvalidArgument(f"GridSample with mode {mode!r} and padding_mode {padding_mode!r}")
    size = x.shape[2:]
    out = grid.shape[1:-1]
    dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float32)
    axes = []
    for i, length in enumerate(size):
        place = grid[..., -1 - i].astype(dtype, copy=False).reshape(grid.shape[0], -1)
        low, high = (0.0, length - 1.0) if align_corners else (-0.5, length - 0.5)
        place = (place + 1) / 2 * (length - 1) if align_corners else ((place + 1) * length - 1) / 2
        if mode == "nearest":
            place = np.rint(place)
        if padding_mode == "border":
            place = np.where((place < low) | (place > high), np.clip(place, 0, length - 1), place)
        elif padding_mode == "reflection":
            place = np.where((place < low) | (place > high), _reflected(place, low, high), place)
        taps = []
        for index, weight in _taps(place, mode):
            inside = None
            if padding_mode == "zeros":
                inside = (index >= 0) & (index < length)
            elif padding_mode == "reflection":
                index = np.trunc(_reflected(index, low, high))
            whole = np.clip(np.nan_to_num(index), 0, length - 1).astype(np.int64)
            taps.append((whole, weight, inside))
        axes.append(taps)
    flat = x.reshape(*x.shape[:2], -1)
    n, channels = x.shape[:2]
    y = np.zeros((n, channels, math.prod(out)), dtype)
    for chosen in itertools.product(*axes):
        index = np.zeros((), np.int64)
        share: Any = dtype.type(1)
        for (whole, part, inside), length in zip(chosen, size, strict=True):
            index = index * length + whole
            if part is not None:
                share = share * part
            if inside is not None:
                share = share * inside
        share = np.broadcast_to(share, index.shape)
        for i in range(n):
            y[i] += np.take(flat[i], index[i], axis=1) * share[i]
    return y.reshape(n, channels, *out).astype(x.dtype, copy=False)


@op("AffineGrid")
@lifted
def affine_grid(theta: Array, size: Array, *, align_corners: int = 0) -> Array:
    lengths = ints(size)[2:]
    lines = []
    for length in lengths:
        step = np.arange(length, dtype=np.float64)
        if align_corners:
            lines.append(step * 2 / (length - 1) - 1 if length > 1 else np.zeros(1))
        else:
            lines.append((2 * step + 1) / length - 1)
    grids = np.meshgrid(*lines, indexing="ij")
    points = np.stack([*(g.reshape(-1) for g in reversed(grids)), np.ones(math.prod(lengths))]).astype(theta.dtype)
    return np.ascontiguousarray(np.swapaxes(np.matmul(theta, points), 1, 2)).reshape(
        theta.shape[0], *lengths, len(lengths)
    )


def _roi_points(start: float, size: float, bins: int, samples: int, length: int) -> tuple[Array, Array, Array, Array]:
    """Along one axis: the lower and upper pixel of each sample, the fraction between them, and whether it counts."""
    width = size / bins
    place = start + np.arange(bins)[:, None] * width + (np.arange(samples) + 0.5) * width / max(samples, 1)
    place = place.reshape(-1)
    counts = (place >= -1.0) & (place <= length)
    place = np.maximum(place, 0)
    low = np.minimum(place.astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    return low, high, np.where(low >= length - 1, 0, place - low), counts


@op("RoiAlign")
@lifted
def roi_align(
    x: Array,
    rois: Array,
    batch_indices: Array,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Array:
    if mode not in ("avg", "max"):
        raise InvalidArgument(f"mode is {mode!r}", remedy="Use 'avg' or 'max'")
    half = coordinate_transformation_mode == "half_pixel"
    bins = (output_height, output_width)
    y = np.zeros((rois.shape[0], x.shape[1], *bins), x.dtype)
    corners = rois.astype(x.dtype) * x.dtype.type(spatial_scale) - x.dtype.type(0.5 if half else 0.0)
    for i, (x1, y1, x2, y2) in enumerate(corners.tolist()):
        spans = (y2 - y1, x2 - x1) if half else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        samples = [sampling_ratio if sampling_ratio > 0 else math.ceil(spans[k] / bins[k]) for k in range(2)]
        if min(samples) <= 0:
            continue
        row = _roi_points(y1, spans[0], bins[0], samples[0], x.shape[2])
        column = _roi_points(x1, spans[1], bins[1], samples[1], x.shape[3])
        image = x[int(batch_indices[i])]
        parts = []
        for down, right in itertools.product((0, 1), (0, 1)):
            weight = np.outer(row[2] if down else 1 - row[2], column[2] if right else 1 - column[2])
            weight = weight * np.outer(row[3], column[3])
            parts.append(image[:, row[down][:, None], column[right]] * weight.astype(x.dtype))
        shape = (x.shape[1], bins[0], samples[0], bins[1], samples[1])
        if mode == "avg":
            y[i] = (parts[0] + parts[1] + parts[2] + parts[3]).reshape(shape).mean(axis=(2, 4))
        else:
            y[i] = np.maximum.reduce(parts).reshape(shape).max(axis=(2, 4))
    return y


@op("MaxRoiPool")
@lifted
def max_roi_pool(x: Array, rois: Array, *, pooled_shape: tuple[int, ...], spatial_scale: float = 1.0) -> Array:
    height, width = pooled_shape
    y = np.zeros((rois.shape[0], x.shape[1], height, width), x.dtype)
    corners = (
        np.floor(rois[:, 1:].astype(np.float32) * np.float32(spatial_scale) + np.float32(0.5)).astype(int).tolist()
    )
    for i, (x1, y1, x2, y2) in enumerate(corners):
        image = x[int(rois[i, 0])]
        rows = _roi_bins(y1, y2, height, x.shape[2])
        columns = _roi_bins(x1, x2, width, x.shape[3])
        for (r, rs), (c, cs) in itertools.product(enumerate(rows), enumerate(columns)):
            part = image[:, rs, cs]
            if part.size:
                y[i, :, r, c] = part.max(axis=(1, 2))
    return y


def _roi_bins(start: int, end: int, bins: int, length: int) -> list[slice]:
    size = np.float32(max(end - start + 1, 1)) / np.float32(bins)
    return [
        slice(
            min(max(int(np.floor(k * size)) + start, 0), length),
            min(max(int(np.ceil((k + 1) * size)) + start, 0), length),
        )
        for k in range(bins)
    ]
