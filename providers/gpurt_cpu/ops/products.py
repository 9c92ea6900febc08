"""Products of float32 matrices into memory that is used again."""

from __future__ import annotations

import numpy as np

from gpurt_cpu.memory import Empty
from gpurt_cpu.ops.table import Array


def matmul(a: Array, b: Array, empty: Empty) -> Array:
    """``a @ b`` as ONNX's MatMul: leading axes broadcast. One product for all of them where b is a matrix."""
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        return np.asarray(np.matmul(a, b))
    if b.ndim == 2 and a.ndim > 2 and a.flags.c_contiguous:
        y = empty((*a.shape[:-1], b.shape[1]))
        np.matmul(a.reshape(-1, a.shape[-1]), b, out=y.reshape(-1, b.shape[1]))
        return y
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = empty((*lead, a.shape[-2], b.shape[-1]))
    return np.matmul(a, b, out=y)


def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    empty: Empty,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """ONNX's Gemm."""
    y = matmul(a.T if transA else a, b.T if transB else b, empty)
    if alpha != 1:
        np.multiply(y, np.float32(alpha), out=y)
    if c is not None and beta != 0:
        np.add(y, c if beta == 1 else c * np.float32(beta), out=y)
    return y
