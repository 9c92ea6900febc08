"""Helpers that several families of kernels share: narrow floats, axes, padding and blocks that stay in cache."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from gpurt.dtypes import from_onnx
from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.table import Array

F32 = np.dtype(np.float32)
F64 = np.dtype(np.float64)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT8 = frozenset(
    np.dtype(getattr(ml_dtypes, name))
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
)
FLOAT8E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
SMALL_FLOATS = frozenset(np.dtype(getattr(ml_dtypes, n)) for n in ("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"))
# Floats that are computed in float32 and rounded at the end.
NARROW = frozenset({np.dtype(np.float16), BFLOAT16, FLOAT8E8M0}) | FLOAT8 | SMALL_FLOATS
# Integers of fewer than eight bits: name -> (least, greatest value).
SMALL_INTS = {
    np.dtype(ml_dtypes.int4): (-8, 7),
    np.dtype(ml_dtypes.uint4): (0, 15),
    np.dtype(ml_dtypes.int2): (-2, 1),
    np.dtype(ml_dtypes.uint2): (0, 3),
}
_FLOAT6: dict[int, np.dtype[Any]] = {27: np.dtype(ml_dtypes.float6_e2m3fn), 28: np.dtype(ml_dtypes.float6_e3m2fn)}

BLOCK = 1 << 15  # elements: a few float32 temporaries of this size fit a second-level cache


def dtype_of(code: int) -> np.dtype[Any]:
    """NumPy dtype of an ONNX data type code."""
    if code in _FLOAT6:
        return _FLOAT6[code]
    try:
        dtype: np.dtype[Any] = from_onnx(code)
    except KeyError:
        raise InvalidArgument(
            f"there is no ONNX data type {code}", remedy="Use a code of TensorProto.DataType"
        ) from None
    return dtype


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether the dtype is a real floating type, ml_dtypes' included."""
    return dtype.kind == "f" or dtype in NARROW


def widen(x: Array) -> Array:
    """The array in float32 if its type is a narrow float; else the array itself."""
    return x.astype(np.float32) if x.dtype in NARROW else x


def lifted(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function compute narrow floats in float32: its float32 results are rounded to the first narrow type."""

    @functools.wraps(fn)
    def run(*args: Any, **attributes: Any) -> Any:
        narrow = next((a.dtype for a in args if isinstance(a, np.ndarray) and a.dtype in NARROW), None)
        if narrow is None:
            return fn(*args, **attributes)
        result = fn(*(widen(a) if isinstance(a, np.ndarray) else a for a in args), **attributes)
        if isinstance(result, tuple):
            return tuple(_rounded(r, narrow) for r in result)
        return _rounded(result, narrow)

    return run


def _rounded(value: Any, dtype: np.dtype[Any]) -> Any:
    return value.astype(dtype) if isinstance(value, np.ndarray | np.generic) and value.dtype == F32 else value


def blocked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Run an elementwise function of one array block by block, so that its temporaries stay in cache."""

    @functools.wraps(fn)
    def run(x: Array, *args: Any) -> Any:
        if x.size <= 2 * BLOCK or not x.flags.c_contiguous:
            return fn(x, *args)
        flat, out = x.reshape(-1), np.empty(x.size, x.dtype)
        for i in range(0, x.size, BLOCK):
            out[i : i + BLOCK] = fn(flat[i : i + BLOCK], *args)
        return out.reshape(x.shape)

    return run


def axis_in(axis: int, rank: int) -> int:
    """The axis counted from the front. Raises InvalidArgument if it lies outside the rank."""
    axis = int(axis)
    if not -rank <= axis < max(rank, 1):
        raise InvalidArgument(f"axis {axis} lies outside an array of rank {rank}", remedy=f"Use {-rank} to {rank - 1}")
    return axis + rank if axis < 0 else axis


def ints(x: Array | Sequence[int]) -> tuple[int, ...]:
    """The elements of an integer array, of any shape, as Python ints."""
    return tuple(x.reshape(-1).tolist()) if isinstance(x, np.ndarray) else tuple(int(v) for v in x)


def scalar(x: Array | None, default: Any = None) -> Any:
    """The only element of an array as a Python value; the default for None or an empty array."""
    return default if x is None or x.size == 0 else x.reshape(-1)[0].item()


def moved(x: Array, axis: int, fn: Callable[[Array], Array]) -> Array:
    """Apply a function to the array with one axis moved to the end, and move that axis back."""
    if axis in (-1, x.ndim - 1):
        return fn(x)
    return np.moveaxis(fn(np.moveaxis(x, axis, -1)), -1, axis)


def channels_last(x: Array) -> bool:
    """Whether the second axis is the innermost of dense memory, which then is in another order than the shape."""
    return x.ndim > 2 and not x.flags.c_contiguous and x.transpose(0, *range(2, x.ndim), 1).flags.c_contiguous


def spatial_mean(x: Array) -> Array:
    """Mean of (N, C, spatial) over its spatial axes, kept as ones, of memory with the channels last: a product."""
    pixels = x.transpose(0, *range(2, x.ndim), 1).reshape(x.shape[0], -1, x.shape[1])
    weights = np.full((1, pixels.shape[1]), 1 / pixels.shape[1], x.dtype)
    return np.asarray(np.matmul(weights, pixels)).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))


def per_channel(v: Array, rank: int, axis: int = 1) -> Array:
    """View a 1-D array so that it broadcasts along one axis of an array of the given rank."""
    return v.reshape([-1 if i == axis else 1 for i in range(rank)])


def window_pads(
    size: Sequence[int],
    kernel: Sequence[int],
    *,
    auto_pad: str,
    pads: Sequence[int] | None,
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis of a convolution or pool."""
    n = len(kernel)
    if auto_pad == "VALID":
        return [(0, 0)] * n
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        out = []
        for i in range(n):
            total = max((-(-size[i] // strides[i]) - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - size[i], 0)
            low = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            out.append((low, total - low))
        return out
    if auto_pad != "NOTSET":
        raise InvalidArgument(f"auto_pad is {auto_pad!r}", remedy="Use 'NOTSET', 'SAME_UPPER', 'SAME_LOWER' or 'VALID'")
    if pads is None:
        return [(0, 0)] * n
    if len(pads) != 2 * n:
        raise InvalidArgument(f"pads has {len(pads)} values", remedy=f"Give {2 * n}: all begins, then all ends")
    return [(pads[i], pads[i + n]) for i in range(n)]


def padded(x: Array, pads: Sequence[tuple[int, int]], value: Any = 0) -> Array:
    """The array with its last axes padded by a constant; negative pads crop. No copy if there is nothing to pad."""
    if not any(b or e for b, e in pads):
        return x
    lead = x.ndim - len(pads)
    crop = tuple(slice(max(-b, 0), x.shape[lead + i] - max(-e, 0)) for i, (b, e) in enumerate(pads))
    x = x[(slice(None),) * lead + crop]
    pads = [(max(b, 0), max(e, 0)) for b, e in pads]
    shape = x.shape[:lead] + tuple(x.shape[lead + i] + b + e for i, (b, e) in enumerate(pads))
    out = np.zeros(shape, x.dtype) if isinstance(value, int) and value == 0 else np.full(shape, value, x.dtype)
    out[(slice(None),) * lead + tuple(slice(b, b + x.shape[lead + i]) for i, (b, _) in enumerate(pads))] = x
    return out


def continued(past: Array, into: Array | None) -> Array:
    """A copy of a cache, in the caller's memory if that fits; nothing is copied if that is the cache itself."""
    if into is None or into.shape != past.shape or into.dtype != past.dtype:
        return past.copy()
    if not np.may_share_memory(into, past):
        into[...] = past
    return into


def ones_like_kernel(values: Sequence[int] | None, n: int) -> tuple[int, ...]:
    """Strides or dilations, one for each spatial axis; ones when left out."""
    return (1,) * n if not values else tuple(values)


def round_half_up(x: float) -> int:
    """Nearest integer, halves upwards."""
    return math.floor(x + 0.5)
