"""Gradients of reductions and of what normalises along an axis."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gpurt.autodiff.table import Step, rule

Grads = Sequence[ir.Value | None]


def _kept(c: Step, value: ir.Value) -> ir.Value:
    """A value of the output's shape, with the reduced axes as ones again."""
    if c.attr("keepdims", 1):
        return value
    axes = c.maybe(1)
    if axes is not None:
        known = c.known(1)
        if known is not None and known.size:
            return c.op("Unsqueeze", value, axes)
    # Without a known list of axes: the shape that the operator gives with keepdims is that of the value.
    like = c.op("ReduceMax", c.x(), axes, keepdims=1, noop_with_empty_axes=c.attr("noop_with_empty_axes", 0))
    return c.op("Reshape", value, c.op("Shape", like))


@rule("ReduceSum")
def reduce_sum(c: Step) -> Grads:
    return (c.op("Expand", _kept(c, c.g), c.build.shape(c.x())),)


@rule("ReduceMean")
def reduce_mean(c: Step) -> Grads:
    ratio = c.op("Div", c.op("Size", c.x()), c.op("Size", c.y))
    share = c.op("Div", c.g, c.op("CastLike", ratio, c.x()))
    return (c.op("Expand", _kept(c, share), c.build.shape(c.x())),)


@rule("ReduceMax", "ReduceMin")
def reduce_extreme(c: Step) -> Grads:
    """Equal elements share the gradient."""
    hits = c.op("CastLike", c.op("Equal", c.x(), _kept(c, c.y)), c.x())
    noop = c.attr("noop_with_empty_axes", 0)
    count = c.op("ReduceSum", hits, c.maybe(1), keepdims=1, noop_with_empty_axes=noop)
    return (c.op("Mul", hits, c.op("Div", _kept(c, c.g), count)),)


@rule("CumSum")
def cumsum(c: Step) -> Grads:
    flags = {"exclusive": c.attr("exclusive", 0), "reverse": 1 - c.attr("reverse", 0)}
    return (c.op("CumSum", c.g, c.x(1), **flags),)


@rule("Softmax")
def softmax(c: Step) -> Grads:
    axis = c.attr("axis", -1)
    inner = c.op("ReduceSum", c.op("Mul", c.g, c.y), c.ints(axis), keepdims=1)
    return (c.op("Mul", c.y, c.op("Sub", c.g, inner)),)


@rule("LogSoftmax")
def log_softmax(c: Step) -> Grads:
    axis = c.attr("axis", -1)
    inner = c.op("ReduceSum", c.g, c.ints(axis), keepdims=1)
    return (c.op("Sub", c.g, c.op("Mul", c.op("Exp", c.y), inner)),)


@rule("GlobalAveragePool")
def global_average_pool(c: Step) -> Grads:
    ratio = c.op("Div", c.op("Size", c.x()), c.op("Size", c.y))
    return (c.op("Expand", c.op("Div", c.g, c.op("CastLike", ratio, c.x())), c.build.shape(c.x())),)


@rule("BatchNormalization")
def batch_normalization(c: Step) -> Grads:
    """In inference, where mean and variance are inputs: an affine map of each channel."""
    if c.attr("training_mode", 0):
        c.refuse("training mode")
    x, scale, mean, var = c.x(0), c.x(1), c.x(3), c.x(4)
    rank = c.rank()
    column = c.ints(-1, *[1] * (rank - 2)) if rank > 1 else c.ints(-1)
    axes = c.ints(0, *range(2, rank))

    def spread(v: ir.Value) -> ir.Value:
        return c.op("CastLike", c.op("Reshape", v, column), x)

    def gathered(v: ir.Value, index: int) -> ir.Value:
        return c.op("CastLike", c.op("ReduceSum", v, axes, keepdims=0), c.x(index))

    epsilon = c.build.scalar(c.attr("epsilon", 1e-5), var)
    inverse = c.op("Reciprocal", c.op("Sqrt", c.op("Add", var, epsilon)))
    centred = c.op("Sub", x, spread(mean))
    dx = c.op("Mul", c.g, c.op("Mul", spread(scale), spread(inverse)))
    dscale = gathered(c.op("Mul", c.op("Mul", c.g, centred), spread(inverse)), 1)
    cube = c.op("Mul", inverse, c.op("Mul", inverse, c.build.scalar(-0.5, var)))
    dvar = gathered(c.op("Mul", c.op("Mul", dx, centred), spread(cube)), 4)
    return dx, dscale, gathered(c.g, 2), c.op("Neg", gathered(dx, 3)), dvar


@rule("MaxPool")
def max_pool(c: Step) -> Grads:
    """The operator can tell which elements won; the gradient is added up at these places."""
    attrs = dict(c.node.attributes)
    twin = ir.Node(
        "", "MaxPool", [c.x()], [a for n, a in attrs.items() if n != "storage_order"], num_outputs=2,
        version=c.node.version,
    )  # fmt: skip
    places = c.build.add(twin)[1]
    flat = c.op("Reshape", c.build.filled(0, c.x()), c.ints(-1))
    added = c.op(
        "ScatterElements", flat, c.op("Reshape", places, c.ints(-1)), c.op("Reshape", c.g, c.ints(-1)),
        axis=0, reduction="add",
    )  # fmt: skip
    return (c.op("Reshape", added, c.build.shape(c.x())),)
