"""Resize and Upsample: interpolation separates, so each axis is resampled on its own by gathering a few taps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import axis_in, channels_last, ints, is_floating, lifted, round_half_up
from gpurt_cpu.ops.table import Array, op

_SHORT: Final = 160  # elements of an axis up to which a product with a matrix is faster than gathering


@dataclass(frozen=True, slots=True)
class _Rule:
    """The attributes of Resize that say where to sample and with what weights."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    antialias: bool
    exclude_outside: bool
    extrapolation: float


def _origins(rule: _Rule, length: int, size: int, scale: float, roi: tuple[float, float]) -> Any:
    """Place in the input of each element of an axis of the output."""
    # Nearest neighbours are chosen in float32, as ONNX Runtime does, so that ties fall alike.
    dtype = np.dtype(np.float32 if rule.mode == "nearest" else np.float64)
    x: Any = np.arange(size, dtype=dtype)
    scale = dtype.type(scale)
    target = scale * length  # may be fractional
    match rule.coordinates:
        case "half_pixel":
            return (x + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            return length / 2 * (1 - size / target) + (x + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (x + 0.5) / scale - 0.5 if size > 1 else np.full(size, -0.5 if target == 1 else 0.0)
        case "align_corners":
            return x * (length - 1) / (target - 1) if target != 1 else np.zeros(size)
        case "asymmetric":
            return x / scale
        case "tf_crop_and_resize":
            start, end = roi
            if target == 1:
                return np.full(size, (start + end) * (length - 1) / 2)
            return start * (length - 1) + x * (end - start) * (length - 1) / (target - 1)
    raise InvalidArgument(f"coordinate_transformation_mode is {rule.coordinates!r}")


def _nearest(rule: _Rule, x: Array) -> Array:
    match rule.nearest:
        case "round_prefer_floor":
            return np.ceil(x - 0.5)
        case "round_prefer_ceil":
            return np.floor(x + 0.5)
        case "floor":
            return np.floor(x)
        case "ceil":
            return np.ceil(x)
    raise InvalidArgument(f"nearest_mode is {rule.nearest!r}")


def _cubic(distance: Array, a: float) -> Array:
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _taps(rule: _Rule, x: Array, length: int, scale: float) -> tuple[Array, Array]:
    """Indices into the input and weights, both (size, taps)."""
    reach = 1 if rule.mode == "linear" else 2
    shrink = min(scale, 1.0) if rule.antialias else 1.0
    width = math.ceil(reach / shrink)
    # Left of an integer place the taps start one earlier, where their weight is zero.
    index = (np.ceil(x) - 1)[:, None] + np.arange(1 - width, width + 1)
    distance = (index - x[:, None]) * shrink
    weight = np.clip(1 - np.abs(distance), 0, 1) if reach == 1 else _cubic(distance, rule.cubic_a)
    if rule.exclude_outside:
        weight = np.where((index >= 0) & (index < length), weight, 0)
    if rule.exclude_outside or rule.antialias:
        weight = weight / weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, length - 1).astype(np.int64), weight


def _resample(x: Array, axis: int, index: Array, weight: Array) -> Array:
    shape = [1] * x.ndim
    shape[axis] = index.shape[0]
    if index.shape[1] > 4 or (x.shape[axis] <= _SHORT and np.isfinite(np.dot(x.reshape(-1), x.reshape(-1)))):
        # Gather by a matrix, which is mostly zeros but goes to BLAS. Zero times infinity would spread.
        matrix = np.zeros((index.shape[0], x.shape[axis]), x.dtype)
        np.add.at(matrix, (np.arange(index.shape[0])[:, None], index), weight.astype(x.dtype))
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        if after and math.prod(after) > 1:
            product = np.matmul(matrix, x.reshape(math.prod(before), x.shape[axis], -1))
        else:
            product = np.matmul(x.reshape(-1, x.shape[axis]), matrix.T)
        return np.asarray(product).reshape(*before, -1, *after)
    weight = weight.astype(x.dtype)
    y: Array | None = None
    for t in range(index.shape[1]):
        if weight[:, t].any():
            part = np.take(x, index[:, t], axis=axis)
            part *= weight[:, t].reshape(shape)
            y = part if y is None else np.add(y, part, out=y)
    return np.zeros([*x.shape[:axis], index.shape[0], *x.shape[axis + 1 :]], x.dtype) if y is None else y


def _sizes(
    x: Array, axes: Sequence[int], scales: Array | None, sizes: Array | None, policy: str
) -> tuple[list[int], list[float]]:
    """Size and scale of each axis that is resized."""
    if sizes is not None and sizes.size:
        wanted = list(ints(sizes))
        if len(wanted) != len(axes):
            raise InvalidArgument(f"sizes has {len(wanted)} values", remedy=f"Give {len(axes)}")
        ratio = [s / x.shape[a] if x.shape[a] else 1.0 for s, a in zip(wanted, axes, strict=True)]
        if policy == "stretch":
            return wanted, ratio
        if policy not in ("not_larger", "not_smaller"):
            raise InvalidArgument(f"keep_aspect_ratio_policy is {policy!r}")
        one = min(ratio) if policy == "not_larger" else max(ratio)
        return [round_half_up(one * x.shape[a]) for a in axes], [one] * len(axes)
    if scales is None or scales.size != len(axes):
        raise InvalidArgument("Resize needs scales or sizes", remedy=f"Give {len(axes)} values of one of them")
    values = scales.astype(np.float32).reshape(-1)
    grown = [int(np.floor(s * np.float32(x.shape[a]))) for s, a in zip(values, axes, strict=True)]
    return grown, [float(s) for s in values]


@op("Resize")
@lifted
def resize(
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    if mode not in ("nearest", "linear", "cubic"):
        raise InvalidArgument(f"mode is {mode!r}", remedy="Use 'nearest', 'linear' or 'cubic'")
    rule = _Rule(mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, bool(antialias),
                 bool(exclude_outside), extrapolation_value)  # fmt: skip
    where = list(range(x.ndim)) if axes is None else [axis_in(a, x.ndim) for a in axes]
    lengths, ratios = _sizes(x, where, scales, sizes, keep_aspect_ratio_policy)
    crop = rule.coordinates == "tf_crop_and_resize"
    if crop and (roi is None or roi.size != 2 * len(where)):
        raise InvalidArgument("tf_crop_and_resize needs a roi", remedy=f"Give {2 * len(where)} values")
    corners = roi.reshape(-1).tolist() if crop and roi is not None else [0.0] * len(where) + [1.0] * len(where)
    wide = x if mode == "nearest" or x.dtype.kind == "f" else x.astype(np.float32)
    turned = channels_last(wide)
    if turned:  # axes by where they lie in memory
        wide = wide.transpose(0, *range(2, x.ndim), 1)
        where = [0 if a == 0 else x.ndim - 1 if a == 1 else a - 1 for a in where]
    outside: list[tuple[int, Array]] = []
    for axis, size, scale, start, end in sorted(
        zip(where, lengths, ratios, corners[: len(where)], corners[len(where) :], strict=True), key=lambda a: a[2]
    ):
        length = wide.shape[axis]
        if not crop and size == length and scale == 1:
            continue
        places = _origins(rule, length, size, scale, (start, end))
        if crop:
            outside.append((axis, (places < 0) | (places > length - 1)))
        if mode == "nearest":
            wide = np.take(wide, np.clip(_nearest(rule, places), 0, length - 1).astype(np.int64), axis=axis)
        else:
            wide = _resample(wide, axis, *_taps(rule, places, length, scale))
    y = wide if x.dtype == wide.dtype else _as_integers(wide, x.dtype)
    for axis, refused in outside:
        if refused.any():
            y = np.where(
                refused.reshape([-1 if i == axis else 1 for i in range(y.ndim)]), y.dtype.type(rule.extrapolation), y
            )
    if turned:
        y = y.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))
    return y.copy(order="K") if np.may_share_memory(x, y) else y


def _as_integers(x: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "b" or is_floating(dtype):
        return x.astype(dtype)
    info = np.iinfo(dtype)
    return np.clip(x, info.min, info.max).astype(dtype)


@op("Upsample")
@lifted
def upsample(x: Array, scales: Array, *, mode: str = "nearest") -> Any:
    return resize(x, None, scales, coordinate_transformation_mode="asymmetric", mode=mode, nearest_mode="floor")
