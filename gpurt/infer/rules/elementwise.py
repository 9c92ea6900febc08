"""Operators that work element by element: the shape is the input's, or what the inputs broadcast to."""

from __future__ import annotations

from gpurt.dtypes import from_onnx
from gpurt.graph.view import NodeView
from gpurt.infer.arguments import BOOL, Inputs, like, need, optional
from gpurt.infer.shapes import axis, broadcast, text
from gpurt.infer.table import rule
from gpurt.spec import Spec

# Names as one string each: a list would take a line for every operator.
UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus "
    "Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
BINARY = "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Mod Mul Or Pow Sub Xor"
COMPARISON = "Equal Greater GreaterOrEqual Less LessOrEqual"
VARIADIC = "Max Mean Min Sum"


@rule(*UNARY.split())
def unary(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [like(need(node, inputs, 0))]


@rule(*BINARY.split())
def binary(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 1)
    return [like(a, broadcast(a.shape, b.shape))]  # Pow allows another dtype for the exponent: the base decides


@rule(*COMPARISON.split())
def comparison(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 1)
    return [Spec(BOOL, broadcast(a.shape, b.shape))]


@rule(*VARIADIC.split())
def variadic(node: NodeView, inputs: Inputs) -> list[Spec]:
    specs = [need(node, inputs, i) for i in range(max(len(inputs), 1))]
    return [like(specs[0], broadcast(*(spec.shape for spec in specs)))]


@rule("IsInf", "IsNaN")
def predicate(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [like(need(node, inputs, 0), dtype=BOOL)]


@rule("Where")
def where(node: NodeView, inputs: Inputs) -> list[Spec]:
    condition, x, y = (need(node, inputs, i) for i in range(3))
    return [like(x, broadcast(condition.shape, x.shape, y.shape))]


@rule("PRelu")
def prelu(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, slope = need(node, inputs, 0), need(node, inputs, 1)
    if broadcast(x.shape, slope.shape) != x.shape:
        raise ValueError(f"PRelu: slope {text(slope.shape)} does not broadcast to X {text(x.shape)}")
    return [like(x)]


@rule("SwiGLU")
def swiglu(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 1)
    if a.shape != b.shape:
        raise ValueError(f"SwiGLU: A {text(a.shape)} and B {text(b.shape)} differ")
    return [like(a)]


@rule("Cast", "BitCast")
def cast(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, dtype = need(node, inputs, 0), from_onnx(int(node.attr("to")))
    if node.op_type == "BitCast" and dtype.itemsize != x.dtype.itemsize:
        raise ValueError(f"BitCast: {x.dtype.name} and {dtype.name} have different widths")
    return [like(x, dtype=dtype)]


@rule("CastLike")
def cast_like(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [like(need(node, inputs, 0), dtype=need(node, inputs, 1).dtype)]


@rule("CumSum", "CumProd")
def cumulative(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, along = need(node, inputs, 0), optional(inputs, 1)
    if along is not None and along.const is not None:
        axis(int(along.const.reshape(())), x.rank)
    return [like(x)]


@rule("Dropout")
def dropout(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x), like(x, dtype=BOOL)]
