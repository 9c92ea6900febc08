"""Matrix products, of floats and of quantised integers, Einsum and determinants."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt_cpu.ops.common import F32, lifted, widen
from gpurt_cpu.ops.quantize import quantized
from gpurt_cpu.ops.table import Array, op


@op("MatMul")
@lifted
def matmul(a: Array, b: Array) -> Any:
    return np.matmul(a, b)


@op("FusedMatMul", domain="com.microsoft")
@lifted
def fused_matmul(
    a: Array,
    b: Array,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Any:
    for flag, batch, which in ((transA, transBatchA, 0), (transB, transBatchB, 1)):
        x = (a, b)[which]
        if batch and x.ndim > 2:
            x = np.moveaxis(x, 0, -2)
        if flag and x.ndim > 1:
            x = np.swapaxes(x, -1, -2)
        a, b = (x, b) if which == 0 else (a, x)
    y = np.matmul(a, b)
    return y if alpha == 1 else y * alpha


@op("Gemm")
@lifted
def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Any:
    y = np.matmul(a.T if transA else a, b.T if transB else b)
    if alpha != 1:
        y = (y * alpha).astype(a.dtype, copy=False)
    if c is not None and beta != 0:
        y += c if beta == 1 else (c * beta).astype(a.dtype, copy=False)
    return y


@op("Einsum")
@lifted
def einsum(*arrays: Array, equation: str) -> Any:
    y = np.einsum(equation, *arrays, optimize=len(arrays) > 1)
    return np.asarray(y).astype(arrays[0].dtype, copy=False)


@op("Det")
@lifted
def det(x: Array) -> Any:
    return np.asarray(np.linalg.det(x)).astype(x.dtype, copy=False)


def exact_type(length: int) -> type[np.floating[Any]]:
    """Float type in which a sum of ``length`` products of two 9-bit integers is exact, whatever its order."""
    return np.float32 if length <= 256 else np.float64


def centred(x: Array, zero_point: Array | None, dtype: type[np.floating[Any]]) -> Array:
    """Quantised values less their zero point, as floats. The zero point must broadcast."""
    y = x.astype(dtype)
    if zero_point is not None and np.any(zero_point.astype(np.float32) != 0):
        y -= zero_point.astype(dtype)
    return y


def _row(v: Array | None) -> Array | None:
    """A scale or zero point of the left matrix: one for each row."""
    return v.reshape(-1, 1) if v is not None and v.ndim == 1 and v.size > 1 else _lone(v)


def _lone(v: Array | None) -> Array | None:
    return v.reshape(()) if v is not None and v.size == 1 else v


@op("MatMulInteger")
def matmul_integer(a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None) -> Array:
    dtype = exact_type(a.shape[-1])
    y = np.matmul(centred(a, _row(a_zero_point), dtype), centred(b, _lone(b_zero_point), dtype))
    return np.asarray(y).astype(np.int32)


@op("QLinearMatMul")
def qlinear_matmul(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    integral = a.dtype.kind in "iu" and b.dtype.kind in "iu"
    dtype = exact_type(a.shape[-1]) if integral else np.float32
    product = np.matmul(centred(a, _row(a_zero_point), dtype), centred(b, _lone(b_zero_point), dtype))
    sa, sb, sy = _row(a_scale), _lone(b_scale), _row(y_scale)
    assert sa is not None
    assert sb is not None
    assert sy is not None
    factor = widen(sa) * widen(sb) / widen(sy)
    zero = _row(y_zero_point)
    assert zero is not None
    return quantized(np.asarray(product) * factor.astype(F32), zero, y_zero_point.dtype)
