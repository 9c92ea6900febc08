"""Operators that look at elements one by one: they work in any layout if their operands are in the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gpurt.layout.turn import Data, Made, Operand, Step, Turn, place, rank_of, rest, rule, turned
from gpurt.optimizer import facts


@rule(
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Cos", "Cosh",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log",
    "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
def unary(node: ir.Node) -> Turn | None:
    x = node.inputs[0]
    return Turn([Step(node.op_type, [Data(x)], like=node)]) if x is not None and rank_of(x) else None


@rule("QuickGelu", "Gelu", domain="com.microsoft")
def unary_of_microsoft(node: ir.Node) -> Turn | None:
    x = node.inputs[0]
    found = Step(node.op_type, [Data(x)], domain=node.domain, like=node) if x is not None and rank_of(x) else None
    return None if found is None else Turn([found])


@rule("Clip")
def clip(node: ir.Node) -> Turn | None:
    x = node.inputs[0]
    return Turn([Step("Clip", [Data(x), *rest(node)], like=node)]) if x is not None and rank_of(x) else None


@rule(
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
def broadcasting(node: ir.Node) -> Turn | None:
    ranks = [facts.rank(v) for v in node.inputs]
    known = [r for r in ranks if r is not None]
    rank = max(known, default=0)
    if rank < 3 or len(known) < len(ranks):
        return None
    inputs = [_operand(v, rank) for v in node.inputs]
    if any(i is None for i in inputs) or not any(isinstance(i, Data) for i in inputs):
        return None
    return Turn([Step(node.op_type, inputs, like=node)])


def _operand(value: ir.Value | None, rank: int) -> Operand:
    """An operand of a broadcast to a rank; None where it cannot be turned."""
    content = facts.array(value)
    if content is not None:
        return value if content.size == 1 else turned(content, rank)
    dims = facts.dims(value)
    assert dims is not None, "asked for values of known rank"
    if len(dims) == rank:
        return Data(value)  # type: ignore[arg-type]
    return value if all(d == 1 for d in dims) else None


@rule("QuantizeLinear", "DequantizeLinear")
def quantized(node: ir.Node) -> Turn | None:
    x, scale = node.inputs[0], facts.dims(node.inputs[1])
    rank = rank_of(x)
    if x is None or not rank or scale is None or len(scale) > 1 or facts.attr(node, "block_size", 0):
        return None
    axis = place(facts.attr(node, "axis", 1), rank) if scale else None
    return Turn([Step(node.op_type, [Data(x), *rest(node)], {} if axis is None else {"axis": axis}, like=node)])


@rule("BatchNormalization")
def batch_normalization(node: ir.Node) -> Turn | None:
    """As a product and a sum along the last axis, where the statistics are constants."""
    x, rank = node.inputs[0], rank_of(node.inputs[0])
    parameters = [facts.array(v) for v in node.inputs[1:5]]
    if x is None or not rank or facts.attr(node, "training_mode", 0) or not facts.is_float(x):
        return None
    if any(p is None or p.dtype != np.float32 for p in parameters) or facts.dtype(x) != ir.DataType.FLOAT:
        return None
    scale, shift, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    factor = scale / np.sqrt(variance + facts.attr(node, "epsilon", 1e-5))
    offset = shift - mean * factor
    product = Step("Mul", [Data(x), factor.astype(np.float32)], rank=rank)
    return Turn([product, Step("Add", [Made(0), offset.astype(np.float32)])])
