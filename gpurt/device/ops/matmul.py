"""MatMul and Gemm, and ONNX Runtime's FusedMatMul."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.epilogue import HEADS, Epilogue
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.gemm import FLOAT16, FLOAT32, gemm
from gpurt.device.ops.matrices import Mat, Panels, dense_strides, panels
from gpurt.device.prologue import FED, PRODUCTS, Prologue
from gpurt.device.table import op
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import broadcast

TYPES = "float32 float16 double int32 int64 uint32 uint64"


def packed_panels(c: Lowering, position: int, transposed: bool) -> Ref | None:
    """A constant [..., K, N] (or transposed [..., N, K]) as panels for the CPU class; None if it is not constant."""
    if not c.cpu_class or c.input(position).dtype not in (FLOAT32, FLOAT16):
        return None
    if transposed:
        return c.packed(position, "gemm panels of the transposed", lambda w: panels(np.swapaxes(w, -1, -2)))
    return c.packed(position, "gemm panels", panels)


def batch_steps(lead: Sequence[int], batch: Sequence[int], matrix: int) -> tuple[int, ...]:
    """Strides of an operand's leading dimensions, aligned to the product's batch; 0 where it is broadcast."""
    steps = dense_strides([*lead, matrix])[:-1]
    aligned = [0 if size == 1 else step for size, step in zip(lead, steps, strict=True)]
    return (0,) * (len(batch) - len(lead)) + tuple(aligned)


def product(
    c: Lowering, a: Ref, b: Ref, y: Ref, packed: Ref | None, *, trans_a: bool = False, trans_b: bool = False,
    alpha: float = 1.0, exact: int = 0, epilogue: Epilogue | None = None, prologue: Prologue | None = None,
) -> None:  # fmt: skip
    """Matrices of rank 2 and more, batches broadcast; B also as panels where the CPU class has them."""
    *lead_a, m, k = a.shape
    *lead_b, n = (*b.shape[:-2], b.shape[-2] if trans_b else b.shape[-1])
    if trans_a:
        m, k = k, m
    batch: Sequence[int] = broadcast(lead_a, lead_b)
    if math.prod(lead_b) == 1 and not trans_a:
        # One B for all rows of all batches: a single product, and B is read once.
        m, lead_a, lead_b, batch = math.prod(lead_a) * m, [], [], ()
    left = Mat(a, k, 1, batch_steps(lead_a, batch, m * k))
    right: Mat | Panels = Mat(b, n, 1, batch_steps(lead_b, batch, k * n))
    if trans_a:
        left = Mat(a, 1, m, left.batch)
    if trans_b:
        right = Mat(b, 1, k, right.batch)
    if packed is not None:
        right = Panels(packed, batch_steps(lead_b, batch, -(-n // 16) * k * 16))
    out = Mat(y, n, 1, batch_steps(batch, batch, m * n))
    gemm(c, left, right, out, (m, n, k), batch, alpha=alpha, exact=exact, epilogue=epilogue, prologue=prologue)


@op("MatMul", types=TYPES)
def matmul(c: Lowering) -> None:
    """MatMul (ONNX 13): a rank 1 operand is a row on the left, a column on the right."""
    a, b = c.input(0), c.input(1)
    if b.spec.rank == 1:
        # The panels of [K, 1] would be fifteen sixteenths zeros; as a row vector it is read as it is.
        _times_vector(c, a, b)
        return
    if a.spec.rank == 1:
        a = a.view((1, a.size))
    product(c, a, b, c.output(), packed_panels(c, 1, transposed=False), epilogue=c.epilogue, prologue=c.prologue)


def _times_vector(c: Lowering, a: Ref, b: Ref) -> None:
    k = b.size
    m = math.prod(a.shape[:-1])
    gemm(c, Mat(a, k, 1), Mat(b, 1, 1), Mat(c.output(), 1, 1), (m, 1, k), epilogue=c.epilogue)


def _fused_check(node: NodeView, _: DeviceInfo) -> str | None:
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        return "FusedMatMul with transBatchA or transBatchB"
    for value in node.inputs[:2]:
        if value is not None and (value.rank is None or value.rank < 2):
            return "FusedMatMul of vectors"
    return None


@op("FusedMatMul", types="float32 float16 double", domain="com.microsoft", check=_fused_check)
def fused_matmul(c: Lowering) -> None:
    """com.microsoft.FusedMatMul: MatMul with transposed operands and a factor."""
    trans_a, trans_b = bool(c.node.attr("transA", 0)), bool(c.node.attr("transB", 0))
    alpha = c.node.attr("alpha", 1.0)
    packed = packed_panels(c, 1, trans_b)
    product(
        c, c.input(0), c.input(1), c.output(), packed, trans_a=trans_a, trans_b=trans_b, alpha=alpha,
        epilogue=c.epilogue, prologue=c.prologue,
    )  # fmt: skip


def _gemm_check(node: NodeView, _: DeviceInfo) -> str | None:
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    if dtype is not None and dtype.kind in "iu":
        for name in ("alpha", "beta"):
            if not float(node.attr(name, 1.0)).is_integer():
                return f"Gemm of integers with {name} = {node.attr(name)}"
    return None


@op("Gemm", types=TYPES, check=_gemm_check)
def gemm_op(c: Lowering) -> None:
    """Gemm (ONNX 13): alpha A' B' + beta C, C broadcast to the result."""
    a, b, y = c.input(0), c.input(1), c.output()
    m, n = y.shape
    trans_a, trans_b = bool(c.node.attr("transA", 0)), bool(c.node.attr("transB", 0))
    k = a.shape[0] if trans_a else a.shape[1]
    left = Mat(a, 1, m) if trans_a else Mat(a, k, 1)
    right: Mat | Panels = Mat(b, 1, k) if trans_b else Mat(b, n, 1)
    packed = packed_panels(c, 1, trans_b) if n > 1 else None
    if packed is not None:
        right = Panels(packed)
    add = None
    if c.has(2):
        rows, cols = (1, 1, *c.input(2).shape)[-2:]
        add = Mat(c.input(2), 0 if rows == 1 else cols, 0 if cols == 1 else 1)
    alpha, beta = c.node.attr("alpha", 1.0), c.node.attr("beta", 1.0)
    gemm(
        c,
        left,
        right,
        Mat(y, n, 1),
        (m, n, k),
        alpha=alpha,
        beta=beta,
        add=add,
        epilogue=c.epilogue,
        prologue=c.prologue,
    )


for _table in (HEADS, FED, PRODUCTS):
    _table.update((matmul, fused_matmul, gemm_op))
