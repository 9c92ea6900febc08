"""Conversion between element types, the narrow and the textual ones included, and reading bits as another type."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import FLOAT8, FLOAT8E8M0, NARROW, SMALL_FLOATS, SMALL_INTS, dtype_of, is_floating
from gpurt_cpu.ops.table import Array, op


def cast_to(x: Array, dtype: np.dtype[Any], *, saturate: bool = True, round_mode: str = "up") -> Array:
    """The array in another element type, by the rules of ONNX's Cast."""
    if x.dtype == dtype:
        return x
    if x.dtype == object:
        return _from_strings(x, dtype, saturate=saturate, round_mode=round_mode)
    if dtype.kind == "O":
        return _to_strings(x)
    if x.dtype in SMALL_INTS:
        x = x.astype(np.int8)
    elif x.dtype in NARROW and x.dtype != np.float16:
        x = x.astype(np.float32)
    if dtype in SMALL_INTS:
        return _to_small_int(x, dtype)
    if dtype == FLOAT8E8M0:
        return _to_e8m0(x, saturate=saturate, round_mode=round_mode)
    if dtype in FLOAT8:
        return _to_float8(x, dtype, saturate=saturate)
    if dtype in SMALL_FLOATS:
        return _to_small_float(x, dtype)
    if dtype.kind in "iu" and x.dtype.kind == "f":
        # Through int64, so that what lies outside wraps alike on every machine.
        return x.astype(dtype) if dtype.itemsize == 8 else x.astype(np.int64).astype(dtype)
    if dtype in NARROW and x.dtype.kind in "iub" and dtype != np.float16:
        x = x.astype(np.float32)
    return x.astype(dtype)


def _to_small_int(x: Array, dtype: np.dtype[Any]) -> Array:
    """Integers of two or four bits keep the low bits of what they are given."""
    whole = x.astype(np.int64) if x.dtype.kind == "f" else x
    bits = 4 if dtype in (np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4)) else 2
    low = whole.astype(np.int8) & np.int8((1 << bits) - 1)
    if SMALL_INTS[dtype][0] < 0:
        low = np.where(low >= 1 << (bits - 1), low - np.int8(1 << bits), low)
    return np.asarray(low).astype(dtype)


def _greatest(dtype: np.dtype[Any]) -> float:
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


def _to_float8(x: Array, dtype: np.dtype[Any], *, saturate: bool) -> Array:
    wide = x.astype(np.float32, copy=False)
    if not saturate:
        return wide.astype(dtype)
    top = _greatest(dtype)
    return np.clip(wide, -top, top).astype(dtype)


def _to_small_float(x: Array, dtype: np.dtype[Any]) -> Array:
    """Types without infinity always saturate; NaN, which they lack too, is left to ml_dtypes."""
    wide = x.astype(np.float32, copy=False)
    top = _greatest(dtype)
    return np.clip(wide, -top, top).astype(dtype)


def _to_e8m0(x: Array, *, saturate: bool, round_mode: str) -> Array:
    """Powers of two from 2**-127 to 2**127, stored as the biased exponent; 255 is NaN."""
    if round_mode not in ("up", "down", "nearest"):
        raise InvalidArgument(f"round_mode is {round_mode!r}", remedy="Use 'up', 'down' or 'nearest'")
    wide = np.abs(x.astype(np.float64))
    mantissa, exponent = np.frexp(wide)  # wide = mantissa * 2**exponent, mantissa in [0.5, 1)
    code = exponent.astype(np.int64) - 1 + 127
    if round_mode == "up":
        code += mantissa > 0.5
    elif round_mode == "nearest":
        code += mantissa >= 0.75
    if saturate:
        code = np.where(wide == 0, 0, np.where(np.isinf(wide), 254, np.clip(code, 0, 254)))
    else:
        code = np.where((wide == 0) | np.isinf(wide) | (code < 0) | (code > 254), 255, code)
    code = np.where(np.isnan(wide), 255, code)
    return np.asarray(code).astype(np.uint8).view(FLOAT8E8M0)


def _to_strings(x: Array) -> Array:
    """Shortest text that reads back as the same value."""
    if x.dtype in NARROW or x.dtype in SMALL_INTS:
        x = x.astype(np.float32 if x.dtype in NARROW else np.int8)
    if x.dtype.kind == "f":
        texts = [_float_text(v) for v in x.reshape(-1)]
    else:
        texts = [str(v) for v in x.reshape(-1).tolist()]
    out = np.empty(x.size, object)
    out[:] = texts
    return out.reshape(x.shape)


def _float_text(value: Any) -> str:
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "INF" if value > 0 else "-INF"
    return str(value)


def _from_strings(x: Array, dtype: np.dtype[Any], *, saturate: bool, round_mode: str) -> Array:
    texts = [str(v).strip() for v in x.reshape(-1).tolist()]
    try:
        if dtype.kind in "iu":
            whole = [int(t) if t.lstrip("+-").isdigit() else int(float(t)) for t in texts]
            bits = 8 * dtype.itemsize
            wrapped = np.array([v & ((1 << bits) - 1) for v in whole], f"u{dtype.itemsize}")
            return wrapped.view(dtype).reshape(x.shape)
        floats = np.array([float(t) for t in texts], np.float64).reshape(x.shape)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"cannot cast text to {dtype.name}: {error}", remedy="Feed numbers as text") from None
    if dtype in NARROW and dtype != np.float16:
        floats = floats.astype(np.float32)
    return cast_to(floats, dtype, saturate=saturate, round_mode=round_mode)


@op("Cast")
def cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    return cast_to(x, dtype_of(to), saturate=bool(saturate), round_mode=round_mode)


@op("CastLike")
def cast_like(x: Array, like: Array, *, saturate: int = 1, round_mode: str = "up") -> Array:
    return cast_to(x, like.dtype, saturate=bool(saturate), round_mode=round_mode)


def _bits(dtype: np.dtype[Any]) -> int:
    if dtype in SMALL_INTS:
        return 4 if SMALL_INTS[dtype][1] in (7, 15) else 2
    if dtype in SMALL_FLOATS:
        return 4 if dtype == np.dtype(ml_dtypes.float4_e2m1fn) else 6
    return dtype.itemsize * 8


@op("BitCast")
def bit_cast(x: Array, *, to: int) -> Array:
    dtype = dtype_of(to)
    if dtype == x.dtype:
        return x
    if _bits(dtype) != _bits(x.dtype) or object in (dtype, x.dtype):
        raise InvalidArgument(
            f"cannot read the bits of {x.dtype.name} as {dtype.name}", remedy="Both types need the same number of bits"
        )
    if (_bits(dtype) < 8 and is_floating(x.dtype) != is_floating(dtype)) or x.dtype in SMALL_INTS:
        return _small_bit_cast(x, dtype)
    return np.ascontiguousarray(x).view(dtype).reshape(x.shape)


def _small_bit_cast(x: Array, dtype: np.dtype[Any]) -> Array:
    """Types of fewer than eight bits are held one to a byte; signed integers extend their sign over it."""
    bits = _bits(dtype)
    code = np.ascontiguousarray(x).view(np.uint8).reshape(x.shape) & np.uint8((1 << bits) - 1)
    if dtype in SMALL_INTS:
        signed = code.astype(np.int8)
        if SMALL_INTS[dtype][0] < 0:
            signed = np.where(signed >= 1 << (bits - 1), signed - np.int8(1 << bits), signed).astype(np.int8)
        return signed.astype(dtype)
    return code.view(dtype)
