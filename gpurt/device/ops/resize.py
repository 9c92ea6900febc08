"""Resize: the host works out the taps of each axis, kernels gather and weigh them. Interpolation separates by axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.movement import BITS, launch_rows
from gpurt.device.table import ANY, op
from gpurt.dtypes import kernel_name
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import axes as fronts
from gpurt.provider import Refused

_MODES: Final = ("nearest", "linear", "cubic")
_COORDINATES: Final = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"
)  # fmt: skip
_NEAREST: Final[Mapping[str, Callable[[np.ndarray], np.ndarray]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_FUSED_TAPS: Final = 4  # more taps than that an axis make two passes cheaper than one


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis that is resized: which, from n to m places, with taps: index and weight are (taps, places)."""

    axis: int
    n: int
    m: int
    index: np.ndarray
    weight: np.ndarray

    @property
    def taps(self) -> int:
        return len(self.index)


def _places(coordinates: str, n: int, m: int, scale: float, start: float, end: float) -> np.ndarray:
    """Place in the input of each of the m places of the output, by coordinate_transformation_mode."""
    x = np.arange(m, dtype=np.float64)
    target = scale * n  # may be fractional
    match coordinates:
        case "half_pixel":
            return (x + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            return n / 2 * (1 - m / target) + (x + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (x + 0.5) / scale - 0.5 if m > 1 else np.full(m, -0.5 if target == 1 else 0.0)
        case "align_corners":
            return x * (n - 1) / (target - 1) if target != 1 else np.zeros(m)
        case "asymmetric":
            return x / scale
    # tf_crop_and_resize
    if target == 1:
        return np.full(m, (start + end) * (n - 1) / 2)
    return start * (n - 1) + x * (end - start) * (n - 1) / (target - 1)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _taps(node: NodeView, x: np.ndarray, n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights, (taps, places), for places x of an axis of n elements."""
    mode = node.attr("mode", "nearest")
    if mode == "nearest":
        index = _NEAREST[node.attr("nearest_mode", "round_prefer_floor")](x)[None, :]
        return np.clip(index, 0, n - 1), np.ones_like(index)
    reach = 1 if mode == "linear" else 2
    shrink = min(scale, 1.0) if node.attr("antialias", 0) else 1.0
    width = math.ceil(reach / shrink)
    index = np.floor(x)[None, :] + np.arange(1 - width, width + 1)[:, None]
    distance = (index - x) * shrink
    weight = np.clip(1 - np.abs(distance), 0, 1) if reach == 1 else _cubic(distance, node.attr("cubic_coeff_a", -0.75))
    exclude = bool(node.attr("exclude_outside", 0))
    if exclude:
        weight = np.where((index >= 0) & (index < n), weight, 0)
    if exclude or shrink < 1:
        weight = weight / weight.sum(axis=0)
    return np.clip(index, 0, n - 1), weight


def _axes(c: Lowering) -> list[_Axis]:
    x, y, node = c.input(0), c.output(), c.node
    along = fronts(node.attr("axes") or range(len(x.shape)), len(x.shape))
    sizes, scales = c.const(3), c.const(2)
    if sizes is not None and sizes.size:
        ratio = [int(s) / x.shape[a] for s, a in zip(sizes.reshape(-1), along, strict=True)]
        policy = node.attr("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            ratio = [min(ratio) if policy == "not_larger" else max(ratio)] * len(ratio)
    else:
        assert scales is not None, "the shape rule has seen them"
        ratio = [float(s) for s in scales.astype(np.float32).reshape(-1)]
    coordinates = node.attr("coordinate_transformation_mode", "half_pixel")
    crop, corners = coordinates == "tf_crop_and_resize", [0.0] * len(along) + [1.0] * len(along)
    if crop:
        roi = c.const(1)
        if roi is None or roi.size != 2 * len(along):
            raise Refused(f"tf_crop_and_resize needs {2 * len(along)} values as roi")
        corners = [float(v) for v in roi.reshape(-1)]
    found = []
    for i, a in enumerate(along):
        n, m = x.shape[a], y.shape[a]
        if n == m and ratio[i] == 1 and not crop:
            continue
        places = _places(coordinates, n, m, ratio[i], corners[i], corners[len(along) + i])
        index, weight = _taps(node, places, n, ratio[i])
        if crop:
            index = np.where((places < 0) | (places > n - 1), -1, index)
        found.append(_Axis(a, n, m, index, weight))
    return sorted(found, key=lambda r: r.axis)


def _check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    mode, x = node.attr("mode", "nearest"), node.inputs[0]
    coordinates = node.attr("coordinate_transformation_mode", "half_pixel")
    if mode not in _MODES:
        return f"no Resize kernel for mode {mode!r}"
    if coordinates not in _COORDINATES:
        return f"no Resize kernel for coordinate_transformation_mode {coordinates!r}"
    if mode == "nearest" and node.attr("nearest_mode", "round_prefer_floor") not in _NEAREST:
        return f"no Resize kernel for nearest_mode {node.attr('nearest_mode')!r}"
    if mode != "nearest" and x is not None and x.dtype == np.bool_:
        return "Resize does not interpolate bool"
    return None


@op("Resize", types=ANY, host=(1, 2, 3), check=_check)
def resize(c: Lowering) -> None:
    """Resize-19: integers are interpolated in float32 and saturate; a fraction is cut off, as by ONNX's reference."""
    x, y = c.input(0), c.output()
    if y.size == 0:
        return
    if x.size == 0:
        raise Refused("Resize of an empty tensor")
    passes = _passes(c, _axes(c))
    if not passes:
        c.alias()
        return
    copies = c.node.attr("mode", "nearest") == "nearest"
    inner = x.dtype if copies or x.dtype == np.float64 else np.dtype(np.float32)
    source = x
    for i, group in enumerate(passes):
        shape = list(source.shape)
        for axis in group:
            shape[axis.axis] = axis.m
        target = y if i == len(passes) - 1 else c.temp(inner, shape)
        _resample(c, target, source, group, copies)
        source = target


def _passes(c: Lowering, axes: list[_Axis]) -> list[list[_Axis]]:
    # Two neighbours go together, the innermost first: images have theirs last.
    passes: list[list[_Axis]] = []
    while axes:
        group = [axes.pop()]
        between = c.input(0).shape[axes[-1].axis + 1 : group[0].axis] if axes else (0,)
        if math.prod(between) == 1 and max(group[0].taps, axes[-1].taps) <= _FUSED_TAPS:
            group.insert(0, axes.pop())
        passes.insert(0, group)
    return passes


def _resample(c: Lowering, y: Ref, x: Ref, group: list[_Axis], copies: bool) -> None:
    one, two = group if len(group) == 2 else (_whole(group[0]), group[0])
    first = group[0].axis
    outer, inner = math.prod(x.shape[:first]), math.prod(x.shape[two.axis + 1 :])
    acc = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    bits = BITS[x.dtype.itemsize]
    outside = np.full(1, c.node.attr("extrapolation_value", 0.0))
    with np.errstate(all="ignore"):
        value = bits.type(outside.astype(y.dtype).view(bits)[0]) if copies else acc.type(outside[0])
    tables = [c.constant(a.index.astype(np.int32)) for a in (one, two)]
    if not copies:
        tables += [c.constant(a.weight.astype(acc)) for a in (one, two)]
    defines: dict[str, int | float | str] = {"CHANNELS": 1} if inner > 1 else {}
    if any((a.index[0] < 0).any() for a in group):
        defines["EXTRAPOLATE"] = 1
    if copies:
        defines["COPIES"] = 1
    else:
        defines |= {"K1": one.taps, "K2": two.taps, **_limits(y.dtype)}
    launch_rows(
        c,
        "resize.cl",
        "resize",
        [x, y, *tables, value, *map(np.int64, (one.n, two.n, one.m, two.m))],
        outer * one.m * (two.m if inner > 1 else 1),
        inner if inner > 1 else two.m,
        types={"T": bits, "D": bits} if copies else {"T": x.dtype, "D": y.dtype, "A": acc},
        defines=defines,
        work=1 if copies else one.taps * two.taps,
    )


def _whole(axis: _Axis) -> _Axis:
    return replace(axis, n=1, m=1, index=np.zeros((1, 1)), weight=np.ones((1, 1)))


def _limits(dtype: np.dtype) -> dict[str, str]:
    """Macros for an integer type: where a float saturates, and to what."""
    if dtype.kind not in "iu":
        return {}
    info, name = np.iinfo(dtype), kernel_name(dtype)
    top = float(np.nextafter(np.float32(info.max), np.float32(0))) if dtype.itemsize >= 4 else float(info.max)
    wide = f"u{dtype.itemsize * 8}"
    ones = f"({name})~({wide})0" if info.min == 0 else f"({name})(({wide})~({wide})0 >> 1)"
    least = "0" if info.min == 0 else f"(-{ones} - 1)"
    return {"LEAST": f"{float(info.min)!r}f", "LEAST_D": least, "MOST": f"{top!r}f", "MOST_D": ones}
