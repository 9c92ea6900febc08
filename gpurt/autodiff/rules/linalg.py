"""Gradients of products: MatMul, Gemm, and convolution by convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gpurt.autodiff.build import static
from gpurt.autodiff.table import Step, rule

Grads = Sequence[ir.Value | None]


@rule("MatMul")
def matmul(c: Step) -> Grads:
    """Y = A B -> dA = G B^T, dB = A^T G, summed over batch axes that were broadcast."""
    a, b, g = c.x(0), c.x(1), c.g
    rows, columns = c.rank(0) == 1, c.rank(1) == 1  # a vector on the left counts as a row, on the right as a column
    if rows:
        a, g = c.op("Unsqueeze", a, c.ints(0)), c.op("Unsqueeze", g, c.ints(-1 if columns else -2))
    if columns:
        b, g = c.op("Unsqueeze", b, c.ints(1)), c.op("Unsqueeze", g, c.ints(-1))
    da = c.op("MatMul", g, _turned(c, b, max(c.rank(1), 2)))
    db = c.op("MatMul", _turned(c, a, max(c.rank(0), 2)), g)
    return _summed(c, da, 0, rows, -2), _summed(c, db, 1, columns, -1)


def _turned(c: Step, x: ir.Value, rank: int) -> ir.Value:
    return c.op("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])


def _summed(c: Step, g: ir.Value, index: int, vector: bool, axis: int) -> ir.Value:
    """A gradient with the axis that a vector lacked removed, and batch axes summed as they were broadcast."""
    x, other = c.x(index), c.x(1 - index)
    batch = max(c.rank(0), c.rank(1)) - 2
    if vector:
        axes = [*range(max(batch, 0)), axis]
        return c.op("ReduceSum", g, c.ints(*axes), keepdims=0)
    if batch <= 0 or c.rank(index) == 2:
        return c.op("ReduceSum", g, c.ints(*range(batch)), keepdims=0) if batch > 0 else g
    mine, its = static(x), static(other)
    if c.rank(1 - index) <= 2 or (mine is not None and its is not None and mine[:-2] == its[:-2]):
        return g  # nothing was broadcast
    return c.build.unbroadcast(g, x, g)


@rule("Gemm")
def gemm(c: Step) -> Grads:
    a, b, g = c.x(0), c.x(1), c.g
    alpha, beta = c.attr("alpha", 1.0), c.attr("beta", 1.0)
    ta, tb = c.attr("transA", 0), c.attr("transB", 0)
    da = c.op("Gemm", b, g, alpha=alpha, transA=tb, transB=1) if ta else c.op("Gemm", g, b, alpha=alpha, transB=1 - tb)
    db = c.op("Gemm", g, a, alpha=alpha, transA=1, transB=ta) if tb else c.op("Gemm", a, g, alpha=alpha, transA=1 - ta)
    if c.maybe(2) is None:
        return da, db
    return da, db, c.over(2, g if beta == 1 else c.op("Mul", g, c.scalar(beta)))


@rule("Conv")
def conv(c: Step) -> Grads:
    """By X: G transposed-convolved by W. By W: X convolved by G, with strides and dilations changing places."""
    n = c.rank() - 2
    if c.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        c.refuse(f"auto_pad is {c.attr('auto_pad')!r}")
    pads = [0] * 2 * n if c.attr("auto_pad") == "VALID" else list(c.attr("pads", [0] * 2 * n))
    strides, dilations = list(c.attr("strides", [1] * n)), list(c.attr("dilations", [1] * n))
    group = c.attr("group", 1)
    grads: list[ir.Value | None] = [None, None]
    if 0 in c.wanted:
        # Without pads the result ends at the last window. It is brought to the size of X with its pads, then cropped.
        whole = c.op("ConvTranspose", c.g, c.x(1), strides=strides, dilations=dilations, group=group)
        grads[0] = _fitted(c, whole, c.x(), pads[:n])
    if 1 in c.wanted:
        grads[1] = _conv_weight(c, n, pads, strides, dilations, group)
    if c.maybe(2) is not None:
        grads.append(c.op("ReduceSum", c.g, c.ints(0, *range(2, n + 2)), keepdims=0))
    return grads


def _fitted(c: Step, whole: ir.Value, like: ir.Value, low: Sequence[int]) -> ir.Value:
    """The part of a value's spatial axes that begins after the low pads and is as large as another value."""
    spatial = range(2, len(low) + 2)
    begin = c.ints(*(-p for p in low))
    size, have = c.op("Shape", like, start=2), c.op("Shape", whole, start=2)
    end = c.op("Sub", c.op("Sub", size, have), begin)
    return c.op("Pad", whole, c.op("Concat", begin, end, axis=0), None, c.ints(*spatial))


def _conv_weight(
    c: Step, n: int, pads: Sequence[int], strides: Sequence[int], dilations: Sequence[int], group: int
) -> ir.Value:
    x, w, g = c.x(0), c.x(1), c.g
    rest = range(2, n + 2)
    if group == 1:
        turned = c.op("Transpose", x, perm=[1, 0, *rest])
    else:
        # (N, group * C, ...) -> (C, group * N, ...): each group convolves its own channels, with the batch as channels.
        sizes = c.op("Shape", x)
        batch, space = c.op("Slice", sizes, c.ints(0), c.ints(1)), c.op("Slice", sizes, c.ints(2), c.ints(n + 2))
        channels = c.op("Shape", w, start=1, end=2)
        parts = c.op("Reshape", x, c.op("Concat", batch, c.ints(group), channels, space, axis=0))
        parts = c.op("Transpose", parts, perm=[2, 1, 0, *(i + 1 for i in rest)])
        turned = c.op("Reshape", parts, c.op("Concat", channels, c.ints(-1), space, axis=0))
    kernel = c.op("Transpose", g, perm=[1, 0, *rest])
    whole = c.op("Conv", turned, kernel, strides=dilations, dilations=strides, pads=pads, group=group)
    # Where the stride skips the end of X, the result has more taps than W.
    kept = c.op("Slice", whole, c.ints(*[0] * n), c.op("Shape", w, start=2), c.ints(*rest))
    return c.op("Transpose", kept, perm=[1, 0, *rest])
