"""Tensors made from a shape or a constant, the shapes of tensors, and triangles of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import dtype_of, ints, scalar
from gpurt_cpu.ops.table import Array, op


@op("Constant")
def constant(
    *,
    value: Array | None = None,
    sparse_value: Array | None = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
    value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
    value_string: str | None = None,
    value_strings: tuple[str, ...] | None = None,
) -> Array:
    typed: tuple[tuple[Any, type[Any]], ...] = (
        (value_float, np.float32),
        (value_floats, np.float32),
        (value_int, np.int64),
        (value_ints, np.int64),
        (value_string, object),
        (value_strings, object),
    )
    if value is not None:
        return value
    if sparse_value is not None:
        return sparse_value
    for given, dtype in typed:
        if given is not None:
            return np.array(given, dtype)
    raise InvalidArgument("a Constant without a value", remedy="Give one of its value attributes")


@op("ConstantOfShape")
def constant_of_shape(shape: Array, *, value: Array | None = None) -> Array:
    sizes = ints(shape)
    if value is None:
        return np.zeros(sizes, np.float32)
    return np.full(sizes, value.reshape(-1)[0], value.dtype)


@op("EyeLike")
def eye_like(x: Array, *, dtype: int | None = None, k: int = 0) -> Array:
    if x.ndim != 2:
        raise InvalidArgument(f"EyeLike got an input of rank {x.ndim}", remedy="Give it a matrix")
    eye: Array = np.eye(x.shape[0], x.shape[1], k=k, dtype=np.int8)
    return eye.astype(x.dtype if dtype is None else dtype_of(dtype))


@op("Shape")
def shape_of(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    return np.array(x.shape[_clamped(start, x.ndim) : x.ndim if end is None else _clamped(end, x.ndim)], np.int64)


def _clamped(place: int, rank: int) -> int:
    return max(0, min(rank, place + rank if place < 0 else place))


@op("Size")
def size_of(x: Array) -> Array:
    return np.array(x.size, np.int64)


@op("Trilu")
def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    rows, columns = x.shape[-2:]
    place = np.arange(columns) - np.arange(rows)[:, None]
    offset = scalar(k, 0)
    keep = place >= offset if upper else place <= offset
    return np.where(keep, x, np.zeros((), x.dtype))
