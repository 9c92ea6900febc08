"""Reductions: the axes are an input, so its content decides the shape."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import I64, Inputs, ints, like, need, optional
from gpurt.infer.shapes import axes, axis
from gpurt.infer.table import rule
from gpurt.spec import Spec

REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)


def reduced(shape: tuple[int, ...], over: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """Shape that is left when the axes, counted from the front, are reduced."""
    if keepdims:
        return tuple(1 if i in over else dim for i, dim in enumerate(shape))
    return tuple(dim for i, dim in enumerate(shape) if i not in over)


@rule(*REDUCTIONS.split())
def reduction(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    over = () if optional(inputs, 1) is None else axes(ints(node, inputs, 1, "axes"), x.rank)
    if not over:
        over = () if node.attr("noop_with_empty_axes", 0) else tuple(range(x.rank))
    return [like(x, reduced(x.shape, over, bool(node.attr("keepdims", 1))))]


@rule("ArgMax", "ArgMin")
def arg(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    along = axis(node.attr("axis", 0), x.rank)
    return [Spec(I64, reduced(x.shape, (along,), bool(node.attr("keepdims", 1))))]
