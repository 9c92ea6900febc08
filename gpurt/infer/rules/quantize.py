"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear: the shape stays, the dtype is the question."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import F32, U8, Inputs, attr_dtype, like, need, optional
from gpurt.infer.shapes import axis, text
from gpurt.infer.table import rule
from gpurt.spec import Spec


def check_scale(node: NodeView, x: Spec, scale: Spec) -> None:
    """Raise ValueError unless the scale is one number, one for each index of the axis, or one for each block."""
    if scale.size == 1 or (scale.rank == x.rank and node.attr("block_size", 0)):
        return
    along = axis(node.attr("axis", 1), x.rank)
    if scale.rank != 1 or scale.shape[0] != x.shape[along]:
        raise ValueError(f"{node.op}: scale {text(scale.shape)} does not fit axis {along} of {text(x.shape)}")


@rule("QuantizeLinear")
@rule("QuantizeLinear", domain="com.microsoft")
def quantize_linear(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, scale, zero_point = need(node, inputs, 0), need(node, inputs, 1), optional(inputs, 2)
    check_scale(node, x, scale)
    default = U8 if zero_point is None else zero_point.dtype
    return [like(x, dtype=attr_dtype(node, "output_dtype", default))]


@rule("DequantizeLinear")
@rule("DequantizeLinear", domain="com.microsoft")
def dequantize_linear(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, scale = need(node, inputs, 0), need(node, inputs, 1)
    check_scale(node, x, scale)
    return [like(x, dtype=attr_dtype(node, "output_dtype", scale.dtype))]


@rule("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x, dtype=U8), Spec(F32, ()), Spec(U8, ())]
