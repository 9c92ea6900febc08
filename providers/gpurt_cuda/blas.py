"""cuBLAS for MatMul, Gemm and FusedMatMul: rows that override the shared ones where a single call does the product.

cuBLAS knows matrices by columns. A matrix by rows is its transpose by columns, so y = A B is asked for as y' = B' A'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from gpurt.device import Lowering, OpTable, Ref, TensorArg
from gpurt.device.table import Lower
from gpurt.infer.shapes import broadcast
from gpurt_cuda.driver import CudaStream

# Values of CUDA's own enumerations, which are part of its binary interface.
_NO_TRANS: Final = 0
_TRANS: Final = 1
_DEFAULT_ALGORITHM: Final = -1
_COMPUTE_32F: Final = 68
_COMPUTE_32F_FAST_TF32: Final = 77
_COMPUTE_64F: Final = 70
_TYPES: Final = {np.dtype(np.float32): 0, np.dtype(np.float64): 1, np.dtype(np.float16): 2}  # CUDA_R_32F ...

_INT_MAX: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Product:
    """y = alpha A' B' + beta y for a batch of matrices by rows; ' is the transposition that the flags ask for.

    Attributes:
        m, n, k: y is m x n, the sum has k terms.
        dtype: of A, B and y; float16 is multiplied and summed in float.
        trans_a, trans_b: A is stored k x m, B is stored n x k.
        batch: number of matrices.
        step_a, step_b: elements from one matrix to the next, 0 for one that serves all.
        alpha, beta: factors.
        tf32: float32 may be rounded to TF32, which has 10 bits of mantissa.
    """

    m: int
    n: int
    k: int
    dtype: np.dtype
    trans_a: bool = False
    trans_b: bool = False
    batch: int = 1
    step_a: int = 0
    step_b: int = 0
    alpha: float = 1.0
    beta: float = 0.0
    tf32: bool = False

    def possible(self) -> bool:
        """Whether cuBLAS does it: the type, sizes of 32 bits, nothing empty."""
        sizes = (self.m, self.n, self.k, self.batch)
        return self.dtype in _TYPES and min(sizes) > 0 and max(sizes) <= _INT_MAX

    def __call__(self, a: TensorArg, b: TensorArg, y: TensorArg, stream: CudaStream) -> None:
        """Enqueue the product."""
        from cupy.cuda import cublas

        double = self.dtype == np.float64
        alpha = np.array(self.alpha, np.float64 if double else np.float32)
        beta = np.array(self.beta, alpha.dtype)
        compute = _COMPUTE_64F if double else _COMPUTE_32F
        if self.tf32 and self.dtype == np.float32:
            compute = _COMPUTE_32F_FAST_TF32
        kind = _TYPES[self.dtype]
        op_a, op_b = (_TRANS if t else _NO_TRANS for t in (self.trans_a, self.trans_b))
        lda = self.m if self.trans_a else self.k
        ldb = self.k if self.trans_b else self.n
        at_a, at_b, at_y = (t.ref.buffer + t.ref.offset for t in (a, b, y))
        # CuPy's wrappers set the handle's stream to CuPy's current one, so that must be ours.
        with stream.driver.device, stream.cupy:
            if self.batch == 1:
                cublas.gemmEx(
                    stream.blas(), op_b, op_a, self.n, self.m, self.k, alpha.ctypes.data,
                    at_b, kind, ldb, at_a, kind, lda, beta.ctypes.data, at_y, kind, self.n,
                    compute, _DEFAULT_ALGORITHM,
                )  # fmt: skip
            else:
                cublas.gemmStridedBatchedEx(
                    stream.blas(), op_b, op_a, self.n, self.m, self.k, alpha.ctypes.data,
                    at_b, kind, ldb, self.step_b, at_a, kind, lda, self.step_a, beta.ctypes.data,
                    at_y, kind, self.n, self.m * self.n, self.batch, compute, _DEFAULT_ALGORITHM,
                )  # fmt: skip


def rows(shared: OpTable, *, tf32: bool) -> OpTable:
    """The shared table with cuBLAS in front of the shared kernels for the products."""
    table = shared.extend()
    own: dict[tuple[str, str], Callable[[Lower, bool, Lowering], None]] = {
        ("", "MatMul"): _matmul,
        ("", "Gemm"): _gemm,
        ("com.microsoft", "FusedMatMul"): _matmul,
    }
    for key, lower in own.items():
        if key in table.rows:
            row = table.rows[key]
            table.rows[key] = replace(row, lower=partial(lower, row.lower, tf32))
    return table


def _matmul(otherwise: Lower, tf32: bool, c: Lowering) -> None:
    """MatMul-13 and FusedMatMul, but for batches that are broadcast in part."""
    a, b = c.input(0), c.input(1)
    trans_a, trans_b = bool(c.node.attr("transA", 0)), bool(c.node.attr("transB", 0))
    product = matmul_product(a.shape, b.shape, a.dtype, trans_a=trans_a, trans_b=trans_b)
    if product is None or not product.possible():
        return otherwise(c)
    product = replace(product, alpha=float(c.node.attr("alpha", 1.0)), tf32=tf32)
    return c.call("cublas_matmul", product, a, b, c.output())


def matmul_product(
    a: Sequence[int], b: Sequence[int], dtype: np.dtype, *, trans_a: bool = False, trans_b: bool = False
) -> Product | None:
    """The product of two shapes as MatMul means it; None if no single call does it."""
    shape_a = (1, *a) if len(a) == 1 else tuple(a)
    shape_b = (*b, 1) if len(b) == 1 else tuple(b)
    *lead_a, m, k = shape_a
    if trans_a:
        m, k = k, m
    lead_b, n = shape_b[:-2], shape_b[-2] if trans_b else shape_b[-1]
    if math.prod(lead_b) == 1 and not trans_a:  # one B for the rows of all matrices: they are one tall matrix
        return Product(math.prod(lead_a) * m, n, k, dtype, trans_a, trans_b)
    batch = broadcast(lead_a, lead_b)
    count = math.prod(batch)
    for lead in (lead_a, lead_b):
        if math.prod(lead) not in (1, count):
            return None
    step_a, step_b = (0 if math.prod(lead) == 1 else size for lead, size in ((lead_a, m * k), (lead_b, k * n)))
    return Product(m, n, k, dtype, trans_a, trans_b, count, step_a, step_b)


def _gemm(otherwise: Lower, tf32: bool, c: Lowering) -> None:
    """Gemm-13: C is first broadcast into the result, to which cuBLAS then adds."""
    a, b, y = c.input(0), c.input(1), c.output()
    m, n = y.shape
    trans_a, trans_b = bool(c.node.attr("transA", 0)), bool(c.node.attr("transB", 0))
    alpha, beta = float(c.node.attr("alpha", 1.0)), float(c.node.attr("beta", 1.0))
    add: Ref | None = c.input(2) if c.has(2) and beta != 0 else None
    k = a.shape[0] if trans_a else a.shape[1]
    product = Product(
        m, n, k, a.dtype, trans_a, trans_b, alpha=alpha, beta=0.0 if add is None else beta, tf32=tf32
    )  # fmt: skip
    if not product.possible():
        return otherwise(c)
    if add is not None and add.shape == y.shape:
        c.copy(y, add)
    elif add is not None:
        c.emit("Expand", [add, np.array(y.shape, np.int64)], out=y)
    return c.call("cublas_gemm", product, a, b, y)
