"""Choosing elements: the greatest, the unequal to zero, the unique, and boxes that do not overlap."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import axis_in, lifted, scalar
from gpurt_cpu.ops.table import Array, op


@op("TopK")
@lifted
def topk(x: Array, k: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Array, Array]:  # noqa: A002, ARG001
    axis = axis_in(axis, x.ndim)
    count = int(scalar(k))
    length = x.shape[axis]
    if not 0 <= count <= length:
        raise InvalidArgument(f"TopK asks for {count} of {length} elements", remedy=f"Use a K of 0 to {length}")
    rows = np.moveaxis(x, axis, -1)
    if count == 1 and length:
        index = (np.argmax if largest else np.argmin)(rows, axis=-1, keepdims=True)
    else:
        # A stable sort of keys that fall as the rank rises keeps the lower index first among equals.
        keys = _descending(rows) if largest else rows
        if count * 8 < length and length > 64:
            index = _few(keys, count)
        else:
            index = np.argsort(keys, axis=-1, kind="stable")[..., :count]
    index = np.asarray(index).astype(np.int64, copy=False)
    values = np.take_along_axis(rows, index, axis=-1)
    return np.ascontiguousarray(np.moveaxis(values, -1, axis)), np.ascontiguousarray(np.moveaxis(index, -1, axis))


def _descending(x: Array) -> Any:
    """Keys that sort the other way round, without overflow."""
    return ~x if x.dtype.kind in "iub" else -x


def _few(keys: Array, count: int) -> Array:
    """Indices of the least keys in order, the lower index first among equals, without sorting the rest."""
    last = np.partition(keys, count - 1, axis=-1)[..., count - 1 : count]
    if keys.dtype.kind == "f" and np.isnan(last).any():
        return np.argsort(keys, axis=-1, kind="stable")[..., :count]
    below, equal = keys < last, keys == last
    room = count - below.sum(axis=-1, keepdims=True)
    keep = below | (equal & (np.cumsum(equal, axis=-1) <= room))
    index = np.nonzero(keep)[-1].reshape(*keys.shape[:-1], count)
    order = np.argsort(np.take_along_axis(keys, index, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(index, order, axis=-1)


@op("NonZero")
@lifted
def nonzero(x: Array) -> Array:
    if x.ndim == 0:
        return np.zeros((0, int(bool(x))), np.int64)
    return np.array(np.nonzero(x), np.int64)


@op("Unique")
@lifted
def unique(x: Array, *, axis: int | None = None, sorted: int = 1) -> tuple[Array, ...]:  # noqa: A002
    where = None if axis is None else axis_in(axis, x.ndim)
    if where is None:
        x = x.reshape(-1)
    if x.dtype == object and where is not None:
        return _unique_texts(x, where, bool(sorted))
    y, first, inverse, counts = np.unique(x, True, True, True, axis=where, equal_nan=False)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first, kind="stable")
        y = np.take(y, order, axis=where or 0)
        first, counts = first[order], counts[order]
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        inverse = rank[inverse]
    return y, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


def _unique_texts(x: Array, axis: int, ordered: bool) -> tuple[Array, ...]:
    """np.unique refuses an axis for objects: number the texts, and find the unique rows of the numbers."""
    texts, codes = np.unique(x.reshape(-1), return_inverse=True)
    y, first, inverse, counts = unique(codes.reshape(x.shape), axis=axis, sorted=int(ordered))
    return texts[y], first, inverse, counts


@op("NonMaxSuppression")
def non_max_suppression(
    boxes: Array,
    scores: Array,
    max_output_boxes_per_class: Array | None = None,
    iou_threshold: Array | None = None,
    score_threshold: Array | None = None,
    *,
    center_point_box: int = 0,
) -> Array:
    limit = int(scalar(max_output_boxes_per_class, 0))
    overlap = float(scalar(iou_threshold, 0.0))
    least = scalar(score_threshold)
    if limit <= 0:
        return np.zeros((0, 3), np.int64)
    chosen: list[Array] = []
    for batch in range(scores.shape[0]):
        corners = _corners(boxes[batch], center_point_box)
        area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        for group in range(scores.shape[1]):
            score = scores[batch, group]
            order = np.argsort(-score, kind="stable")
            if least is not None:
                order = order[score[order] > least]
            kept = _suppressed(corners, area, order, overlap, limit)
            rows = np.empty((len(kept), 3), np.int64)
            rows[:, 0], rows[:, 1], rows[:, 2] = batch, group, kept
            chosen.append(rows)
    return np.concatenate(chosen) if chosen else np.zeros((0, 3), np.int64)


def _corners(boxes: Array, center_point_box: int) -> Array:
    """Boxes as y1, x1, y2, x2 with the smaller value first."""
    if center_point_box:
        x, y, w, h = boxes.T
        return np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], axis=1)
    first, second = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)


def _suppressed(corners: Array, area: Array, order: Array, overlap: float, limit: int) -> list[int]:
    """Walk down the scores and keep each box that no kept one overlaps too much, a block of boxes at a time."""
    kept: list[int] = []
    for start in range(0, order.size, 256):
        block = order[start : start + 256]
        if kept:
            block = block[~(_overlaps(corners, area, block, np.array(kept)) > overlap).any(axis=1)]
        clash = _overlaps(corners, area, block, block) > overlap
        live = np.ones(block.size, bool)
        for i in range(block.size):
            if live[i]:
                kept.append(int(block[i]))
                if len(kept) == limit:
                    return kept
                live &= ~clash[i]
    return kept


def _overlaps(corners: Array, area: Array, some: Array, others: Array) -> Array:
    """Intersection over union of each pair of boxes."""
    a, b = corners[some][:, None], corners[others]
    height = np.minimum(a[..., 2], b[:, 2]) - np.maximum(a[..., 0], b[:, 0])
    width = np.minimum(a[..., 3], b[:, 3]) - np.maximum(a[..., 1], b[:, 1])
    shared = np.maximum(height, 0) * np.maximum(width, 0)
    union = area[some][:, None] + area[others] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))
