"""Operators from quantized tensors to quantized tensors: QLinearMatMul-21 and QLinearConv-10, and com.microsoft's.

Products are exact integers (integer_gemm.py) that one elementwise kernel scales and rounds. What is no product goes
through floats: the conversions at both ends fuse with the operator where it is elementwise itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gpurt.device.codegen import emit
from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.elementwise import step_for
from gpurt.device.ops.expressions import EXPRESSIONS, Expression, Site
from gpurt.device.ops.integer_gemm import (
    BYTES,
    I32,
    column_shape,
    conv_sums,
    matmul_sums,
    optional,
    row_shape,
    spatial_check,
    view_as,
)
from gpurt.device.ops.quantize import MS, U8, dynamic_parameters, quantize, quantized
from gpurt.device.ops.registers import F32, cast
from gpurt.device.steps import Step
from gpurt.device.table import op
from gpurt.graph.view import NodeView
from gpurt.infer.shapes import axis
from gpurt.provider import Refused
from gpurt.spec import Spec

_OWN: Final = "gpurt"  # domain of expressions that no model has


def _number(value: float) -> str:
    """A single-precision number by its bits: any value is written alike in both dialects."""
    return f"AS_F32({int(np.float32(value).view(np.uint32)):#x})"


def _scaled(site: Site, factor: str) -> str:
    # Operand 0 holds exact sums, 1 and 2 the scales of both sides, 3 a bias in the units of the sums.
    text = site.arg(0)
    if site.has(3):
        text = f"({text} + {site.arg(3)})"
    alpha = site.node.attr("alpha", 1.0)
    if alpha != 1.0:
        factor = f"{_number(alpha)} * {factor}"
    return f"{cast(text, I32, F32, site.vector)} * ({factor})"


def _requantize(site: Site) -> str:
    """Sums as quantized numbers; operands 4 and 5 are the result's scale and zero point."""
    return quantized(site, _scaled(site, f"{site.arg(1)} * {site.arg(2)} / {site.arg(4)}"), 5)


def _rescale(site: Site) -> str:
    """Sums as floats; operand 4 is a bias of floats."""
    text = _scaled(site, f"{site.arg(1)} * {site.arg(2)}")
    return cast(f"{text} + {site.arg(4)}" if site.has(4) else text, F32, site.dtype, site.vector)


EXPRESSIONS[_OWN, "Requantize"] = Expression(whole=_requantize)
EXPRESSIONS[_OWN, "Rescale"] = Expression(whole=_rescale)


def _own(name: str, **attrs: Any) -> NodeView:
    return NodeView(name, (), (), attrs, _OWN, name)


def _requantized(
    c: Lowering, sums: Ref, scales: Sequence[Ref], bias: Ref | None, zero: Ref | None, **attrs: float
) -> None:  # fmt: skip
    y = c.output()
    sums = sums.view(y.shape)
    a, b, out = scales
    emit(c, Step(_own("Requantize", **attrs), [sums, a, b, bias, out, zero], y.dtype, y.shape), y)


_MATMUL_TYPES: Final = {
    **dict.fromkeys((0, 2, 3, 5, 7), BYTES),
    **dict.fromkeys((1, 4, 6), "float32 float16"),
}


@op("QLinearMatMul", types=_MATMUL_TYPES)
def qlinear_matmul(c: Lowering) -> None:
    """QLinearMatMul-21: scales and zero points for the tensor, by row of A and the result, by column of B."""
    a, b, y = c.input(0), c.input(3), c.output()
    sums = c.temp(I32, y.shape)
    matmul_sums(c, a, 3, (c.input(2), c.input(5)), sums)
    if a.spec.rank == 1 and any(c.input(i).size > 1 for i in (1, 6, 7)):
        raise Refused("QLinearMatMul of a vector with a scale for each row")
    a_scale, y_scale, y_zero = (view_as(c.input(i), row_shape(c.input(i))) for i in (1, 6, 7))
    b_scale = view_as(c.input(4), column_shape(b, c.input(4)))
    _requantized(c, sums, (a_scale, b_scale, y_scale), None, y_zero)


_CONV_TYPES: Final = {**dict.fromkeys((0, 2, 3, 5, 7), BYTES), **dict.fromkeys((1, 4, 6), "float32"), 8: "int32"}


@op("QLinearConv", types=_CONV_TYPES, check=spatial_check(0))
@op("QLinearConv", types=_CONV_TYPES, check=spatial_check(0), domain=MS)
def qlinear_conv(c: Lowering) -> None:
    """QLinearConv-10: filters may have a scale and a zero point each; the bias is in the units of the sums."""
    y = c.output()
    if y.size == 0:
        return
    sums = c.temp(I32, y.shape)
    conv_sums(c, (0, 3), (c.input(2), c.input(5)), sums)
    ones = (1,) * (y.spec.rank - 2)
    scales = [view_as(c.input(i), (c.input(i).size, *ones) if c.input(i).size > 1 else ()) for i in (1, 4, 6)]
    bias = optional(c, 8)
    if bias is not None:
        bias = view_as(bias, (bias.size, *ones))
    _requantized(c, sums, scales, bias, view_as(c.input(7), ()))


_GEMM_TYPES: Final = {**dict.fromkeys((0, 2, 3, 5, 8), BYTES), **dict.fromkeys((1, 4, 7), "float32"), 6: "int32"}


@op("QGemm", domain=MS, types=_GEMM_TYPES)
def qgemm(c: Lowering) -> None:
    """com.microsoft.QGemm: Gemm of quantized matrices; floats where the result has no zero point."""
    a_scale, b, y = c.input(1), c.input(3), c.output()
    trans_b = bool(c.node.attr("transB", 0))
    sums = c.temp(I32, y.shape)
    if a_scale.size != 1 or c.input(2).size != 1:
        raise Refused("QGemm with a scale for each row of A")
    matmul_sums(
        c, c.input(0), 3, (c.input(2), c.input(5)), sums, trans_a=bool(c.node.attr("transA", 0)), trans_b=trans_b
    )  # fmt: skip
    a_scale = view_as(a_scale, ())
    b_scale = view_as(c.input(4), column_shape(b, c.input(4)))
    bias, alpha = optional(c, 6), c.node.attr("alpha", 1.0)
    if c.has(7) and c.has(8):
        zero = view_as(c.input(8), ())
        _requantized(c, sums, (a_scale, b_scale, view_as(c.input(7), ())), bias, zero, alpha=alpha)
    elif y.dtype == np.float32:
        emit(c, Step(_own("Rescale", alpha=alpha), [sums, a_scale, b_scale, bias, None], y.dtype, y.shape), y)
    else:
        raise Refused("QGemm with a scale of the result without its zero point")


def _to_float(c: Lowering, a: Ref, scale: Ref, zero: Ref | None, b: tuple[int, int, int], bias: int) -> None:
    # b: positions of B, its scale and its zero point.
    y = c.output()
    sums = c.temp(I32, y.shape)
    matmul_sums(c, a, b[0], (zero, optional(c, b[2])), sums)
    b_scale = view_as(c.input(b[1]), column_shape(c.input(b[0]), c.input(b[1])))
    a_scale = view_as(scale, row_shape(scale))
    emit(c, Step(_own("Rescale"), [sums, a_scale, b_scale, None, optional(c, bias)], y.dtype, y.shape), y)


@op("MatMulIntegerToFloat", domain=MS, types={**dict.fromkeys((0, 1, 4, 5), BYTES), None: "float32 float16"})
def matmul_integer_to_float(c: Lowering) -> None:
    """com.microsoft.MatMulIntegerToFloat: a product of quantized matrices as floats, with a bias."""
    if c.input(0).spec.rank == 1 and c.input(2).size > 1:
        raise Refused("MatMulIntegerToFloat of a vector with a scale for each row")
    _to_float(c, c.input(0), c.input(2), optional(c, 4), (1, 3, 5), 6)


@op("DynamicQuantizeMatMul", domain=MS, types={**dict.fromkeys((0, 2, 4), "float32"), **dict.fromkeys((1, 3), BYTES)})
def dynamic_quantize_matmul(c: Lowering) -> None:
    """com.microsoft.DynamicQuantizeMatMul: A is quantized as DynamicQuantizeLinear does, then multiplied by B."""
    x = c.input(0)
    scale, zero, a = c.temp(F32, ()), c.temp(U8, ()), c.temp(U8, x.shape)
    dynamic_parameters(c, x, scale, zero)
    quantize(c, x, scale, zero, a)
    _to_float(c, a, scale, zero, (1, 2, 3), 4)


def _dequantized(x: Ref, scale: Ref, zero: Ref | None) -> Step:
    node = NodeView("DequantizeLinear", (), (), {}, "", "DequantizeLinear")
    return step_for(node, [x, scale, zero], Spec(F32, x.shape))


def _store_quantized(c: Lowering, x: Ref | Step, scale: Ref, zero: Ref | None, y: Ref) -> None:
    node = NodeView("QuantizeLinear", (), (), {}, "", "QuantizeLinear")
    if y.size:
        emit(c, step_for(node, [x, scale, zero], Spec(y.dtype, y.shape)), y)


def _floats(c: Lowering) -> Ref:
    """The first input as floats, in a workspace."""
    x = c.input(0)
    y = c.temp(F32, x.shape)
    if x.size:
        emit(c, _dequantized(x, c.input(1), optional(c, 2)), y)
    return y


def _through_floats(c: Lowering, op_type: str, inputs: Sequence[np.ndarray], attrs: dict[str, Any]) -> None:
    (made,) = c.emit(op_type, [_floats(c), *inputs], attrs)
    _store_quantized(c, made, c.input(3), optional(c, 4), c.output())


def _channels_first(node: NodeView, _: DeviceInfo) -> str | None:
    return f"{node.op} with channels_last" if node.attr("channels_last", 0) else None


_UNARY: Final = {**dict.fromkeys((0, 2, 4), BYTES), **dict.fromkeys((1, 3), "float32")}


@op("QLinearGlobalAveragePool", "QLinearAveragePool", domain=MS, types=_UNARY, check=_channels_first)
def qlinear_pool(c: Lowering) -> None:
    """com.microsoft.QLinearAveragePool and QLinearGlobalAveragePool."""
    attrs = {k: v for k, v in c.node.attrs.items() if k != "channels_last"}
    _through_floats(c, c.node.op_type.removeprefix("QLinear"), [], attrs)


@op("QLinearReduceMean", domain=MS, types=_UNARY)
def qlinear_reduce_mean(c: Lowering) -> None:
    """com.microsoft.QLinearReduceMean: the axes are an attribute; none mean all."""
    axes = c.node.attr("axes") or range(c.input(0).spec.rank)
    over = np.array(list(axes), np.int64)
    _through_floats(c, "ReduceMean", [over], {"keepdims": c.node.attr("keepdims", 1)})


@op("QLinearSoftmax", domain=MS, types=_UNARY)
def qlinear_softmax(c: Lowering) -> None:
    """com.microsoft.QLinearSoftmax: along an axis, or before opset 13 along all axes from that one on."""
    x = c.input(0)
    at = axis(c.node.attr("axis", -1), x.spec.rank) if x.spec.rank else 0
    values = _floats(c)
    if c.node.attr("opset", 13) < 13:
        flat = values.view((math.prod(x.shape[:at]), math.prod(x.shape[at:])))
        (made,) = c.emit("Softmax", [flat], {"axis": 1})
    else:
        (made,) = c.emit("Softmax", [values], {"axis": at})
    _store_quantized(c, made.view(x.shape), c.input(3), optional(c, 4), c.output())


def _concat_check(node: NodeView, _: DeviceInfo) -> str | None:
    for position, value in enumerate(node.inputs):
        is_scale = position % 3 == 0
        if value is not None and value.dtype is not None and (value.dtype == np.float32) != is_scale:
            return f"QLinearConcat with {value.dtype} at input {position}"
    return None


@op("QLinearConcat", domain=MS, types=f"{BYTES} float32", check=_concat_check)
def qlinear_concat(c: Lowering) -> None:
    """com.microsoft.QLinearConcat: every tensor takes the result's scale and zero point, then they are joined."""
    parts: list[Ref | np.ndarray | None] = []
    for i in range(2, len(c.node.inputs), 3):
        x, y = c.input(i), c.temp(c.output().dtype, c.input(i).shape)
        _store_quantized(c, _dequantized(x, c.input(i + 1), optional(c, i + 2)), c.input(0), c.input(1), y)
        parts.append(y)
    c.emit("Concat", parts, {"axis": c.node.attr("axis")}, out=c.output())


@op("QLinearWhere", domain=MS, types={0: "bool", **dict.fromkeys((2, 5, 7), "float32"), None: BYTES})
def qlinear_where(c: Lowering) -> None:
    """com.microsoft.QLinearWhere: both choices as floats, then quantized anew, all in one kernel."""
    y = c.output()
    x0 = _dequantized(c.input(1), c.input(2), optional(c, 3))
    x1 = _dequantized(c.input(4), c.input(5), optional(c, 6))
    chosen = Step(NodeView("Where", (), (), {}, "", "Where"), [c.input(0), x0, x1], F32, y.shape)
    _store_quantized(c, chosen, c.input(7), optional(c, 8), y)
