"""Gradients of elementwise operators. Of what has none at a point (Relu at 0) they take the usual one-sided choice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from gpurt.autodiff.table import Step, rule

Grads = Sequence[ir.Value | None]


@rule("Sign", "Floor", "Ceil", "Round", "EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli")
def constant(c: Step) -> Grads:  # noqa: ARG001 - every rule has this signature
    """The output does not vary with the inputs, or only in jumps."""
    return ()


@rule("Identity")
def identity(c: Step) -> Grads:
    return (c.g,)


@rule("Cast", "CastLike")
def cast(c: Step) -> Grads:
    return (c.op("CastLike", c.g, c.x()),)


@rule("Neg")
def neg(c: Step) -> Grads:
    return (c.op("Neg", c.g),)


@rule("Abs")
def absolute(c: Step) -> Grads:
    return (c.op("Mul", c.g, c.op("Sign", c.x())),)


@rule("Exp")
def exp(c: Step) -> Grads:
    return (c.op("Mul", c.g, c.y),)


@rule("Log")
def log(c: Step) -> Grads:
    return (c.op("Div", c.g, c.x()),)


@rule("Sqrt")
def sqrt(c: Step) -> Grads:
    return (c.op("Div", c.op("Mul", c.g, c.scalar(0.5)), c.y),)


@rule("Reciprocal")
def reciprocal(c: Step) -> Grads:
    return (c.op("Neg", c.op("Mul", c.g, c.op("Mul", c.y, c.y))),)


@rule("Sin")
def sin(c: Step) -> Grads:
    return (c.op("Mul", c.g, c.op("Cos", c.x())),)


@rule("Cos")
def cos(c: Step) -> Grads:
    return (c.op("Neg", c.op("Mul", c.g, c.op("Sin", c.x()))),)


@rule("Sinh")
def sinh(c: Step) -> Grads:
    return (c.op("Mul", c.g, c.op("Cosh", c.x())),)


@rule("Cosh")
def cosh(c: Step) -> Grads:
    return (c.op("Mul", c.g, c.op("Sinh", c.x())),)


@rule("Tan")
def tan(c: Step) -> Grads:
    return (c.op("Mul", c.g, c.op("Add", c.op("Mul", c.y, c.y), c.scalar(1))),)


@rule("Atan")
def atan(c: Step) -> Grads:
    return (c.op("Div", c.g, c.op("Add", c.op("Mul", c.x(), c.x()), c.scalar(1))),)


@rule("Erf")
def erf(c: Step) -> Grads:
    bell = c.op("Exp", c.op("Neg", c.op("Mul", c.x(), c.x())))
    return (c.op("Mul", c.g, c.op("Mul", bell, c.scalar(2 / math.sqrt(math.pi)))),)


@rule("Relu")
def relu(c: Step) -> Grads:
    zero = c.scalar(0)
    return (c.op("Where", c.op("Greater", c.x(), zero), c.g, zero),)


@rule("LeakyRelu")
def leaky_relu(c: Step) -> Grads:
    negative = c.op("Mul", c.g, c.scalar(c.attr("alpha", 0.01)))
    return (c.op("Where", c.op("Less", c.x(), c.scalar(0)), negative, c.g),)


@rule("Sigmoid")
def sigmoid(c: Step) -> Grads:
    return (c.op("Mul", c.g, c.op("Mul", c.y, c.op("Sub", c.scalar(1), c.y))),)


@rule("Tanh")
def tanh(c: Step) -> Grads:
    return (c.op("Mul", c.g, c.op("Sub", c.scalar(1), c.op("Mul", c.y, c.y))),)


@rule("Softplus")
def softplus(c: Step) -> Grads:
    # The function body overflows where x is large; this does not.
    return (c.op("Mul", c.g, c.op("Sigmoid", c.x())),)


@rule("Clip")
def clip(c: Step) -> Grads:
    inside = None
    zero = c.scalar(0)
    grads: list[ir.Value | None] = []
    for index, beyond in ((1, "Less"), (2, "Greater")):
        bound = c.maybe(index)
        if bound is None:
            grads.append(None)
            continue
        outside = c.op(beyond, c.x(), bound)
        within = c.op("Not", outside)
        inside = within if inside is None else c.op("And", inside, within)
        grads.append(c.op("ReduceSum", c.op("Where", outside, c.g, zero), keepdims=0))
    return (c.g if inside is None else c.op("Where", inside, c.g, zero), *grads)


@rule("Dropout")
def dropout(c: Step) -> Grads:
    mode = c.maybe(2)
    if mode is None:
        return (c.g,)
    # The mask of the same run of the node, asked for where the model does not.
    mask, zero = c.build.output(c.node, 1), c.scalar(0)
    ratio = c.maybe(1)
    kept = c.scalar(0.5) if ratio is None else c.op("Sub", c.scalar(1), c.op("CastLike", ratio, c.x()))
    scaled = c.op("Where", mask, c.op("Div", c.g, kept), zero)
    return (c.op("Where", mode, scaled, c.g),)


@rule("Add")
def add(c: Step) -> Grads:
    return c.over(0, c.g), c.over(1, c.g)


@rule("Sub")
def sub(c: Step) -> Grads:
    return c.over(0, c.g), c.over(1, c.op("Neg", c.g))


@rule("Mul")
def mul(c: Step) -> Grads:
    return c.over(0, c.op("Mul", c.g, c.x(1))), c.over(1, c.op("Mul", c.g, c.x(0)))


@rule("Div")
def div(c: Step) -> Grads:
    share = c.op("Div", c.g, c.x(1))
    return c.over(0, share), c.over(1, c.op("Neg", c.op("Mul", share, c.y)))


@rule("Pow")
def power(c: Step) -> Grads:
    x, p = c.x(0), c.x(1)
    less = c.op("Sub", p, c.build.scalar(1, p))
    base = c.op("Mul", c.op("CastLike", p, x), c.op("Pow", x, less))
    by_base = c.over(0, c.op("Mul", c.g, base))
    if 1 not in c.wanted:
        return (by_base,)
    # y log x, but 0 where x is 0: there the power is 0 on both sides of any positive exponent.
    zero, one = c.scalar(0), c.scalar(1)
    positive = c.op("Greater", x, zero)
    logarithm = c.op("Where", positive, c.op("Log", c.op("Where", positive, x, one)), zero)
    return by_base, c.over(1, c.op("CastLike", c.op("Mul", c.g, c.op("Mul", c.y, logarithm)), p))


@rule("Max", "Min")
def extreme(c: Step) -> Grads:
    """The gradient goes to the input that is the greatest or least; equal ones share it."""
    hits = [c.op("CastLike", c.op("Equal", c.x(i), c.y), c.x()) for i in range(len(c.node.inputs))]
    count = c.op("Sum", *hits)
    share = c.op("Div", c.g, count)
    return [c.over(i, c.op("Mul", share, hit)) for i, hit in enumerate(hits)]


@rule("Sum")
def total(c: Step) -> Grads:
    return [c.over(i, c.g) for i in range(len(c.node.inputs))]


@rule("Mean")
def mean(c: Step) -> Grads:
    share = c.op("Div", c.g, c.scalar(len(c.node.inputs)))
    return [c.over(i, share) for i in range(len(c.node.inputs))]


@rule("Where")
def where(c: Step) -> Grads:
    zero = c.build.scalar(0, c.x(1))
    return None, c.over(1, c.op("Where", c.x(0), c.g, zero)), c.over(2, c.op("Where", c.x(0), zero, c.g))
