"""Floats between DequantizeLinear and QuantizeLinear as integer operators, for providers that want them.

Exporters write quantized models with floats (the QDQ form), which every provider runs. The integer operators compute
the same but for rounding: where a result lies between two quantized numbers, it may become the other one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.build import Builder
from gpurt.optimizer.rewrite import MatchResult, RewriteRule
from gpurt.optimizer.transformer import Tools
from gpurt.options import GraphOptimizationLevel

_BYTES: Final = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
_MS: Final = "com.microsoft"


class _Integers(RewriteRule):
    """QuantizeLinear(f(DequantizeLinear(...), ...)) -> an integer operator.

    It fires where the provider that gets the operator says that f is faster so, Provider.prefers_integers.
    """

    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "computed in integers"
    consumes = False

    def _not_run(self, matched: list[ir.Node], builder: Builder, tools: Tools) -> str:
        reason = super()._not_run(matched, builder, tools)
        if reason or tools.owner is None:
            return reason or "it is not known for which provider"
        floats = next(n.op_type for n in matched if n.op_type not in ("DequantizeLinear", "QuantizeLinear"))
        owner = tools.owner(builder.nodes[-1])
        faster = owner is not None and floats in tools.integers.get(owner, ())
        return "" if faster else "the provider is faster with floats"

    def check(self, m: MatchResult, quant: ir.Node) -> MatchResult:
        if facts.dtype(quant.outputs[0]) not in _BYTES or facts.attr(quant, "block_size", 0):
            return m.fail("the result is not of bytes with one scale")
        if facts.rank(quant.inputs[1]) != 0 or facts.array(quant.inputs[1]) is None:
            return m.fail("the result's scale is not one constant")
        return m


def _bytes(m: MatchResult, *sources: ir.Node, axis: int | None = None) -> MatchResult:
    """Whether operands are bytes with one constant scale; the last one may have one for each index along an axis."""
    for source in sources:
        scale = facts.array(source.inputs[1])
        if facts.dtype(source.inputs[0]) not in _BYTES or facts.attr(source, "block_size", 0):
            return m.fail("an operand is not of bytes, or has a scale for each block")
        if scale is None or scale.dtype != np.float32:
            return m.fail("a scale is no constant of single precision")
        if facts.given(source, 2) is not None and facts.array(source.inputs[2]) is None:
            return m.fail("a zero point is not constant")
        along = facts.attr(source, "axis", 1) if scale.ndim else None
        if along is not None and (
            source is not sources[-1] or axis is None or along not in (axis, _rank(source) + axis)
        ):
            return m.fail("a scale differs along an axis that the integer operator has none for")
    return m


def _rank(node: ir.Node) -> int:
    rank = facts.rank(node.inputs[0])
    return 99 if rank is None else rank


def _zero(op: Any, node: ir.Node, kind: ir.Value | None = None) -> Any:
    """A conversion's zero point; zero where it is left out."""
    given = facts.given(node, 2)
    if given is not None:
        return given
    scale, of = facts.array(node.inputs[1]), facts.dtype(kind or node.inputs[0])
    assert scale is not None, "scales were checked"
    assert of is not None, "types were checked"
    return op.constant(np.zeros(scale.shape, of.numpy()))


def _three(op: Any, node: ir.Node) -> tuple[Any, Any, Any]:
    """What an integer operator wants of an operand: the numbers, their scale and zero point."""
    return node.inputs[0], node.inputs[1], _zero(op, node)


def _result(op: Any, quant: ir.Node) -> tuple[Any, Any]:
    return quant.inputs[1], _zero(op, quant, quant.outputs[0])


def _bias(b: ir.Value | None, x: ir.Node, w: ir.Node) -> np.ndarray | None:
    """A constant bias of floats in the units of the sums, int32; None if it does not fit these."""
    content, one, two = facts.array(b), facts.array(x.inputs[1]), facts.array(w.inputs[1])
    if content is None or one is None or two is None:
        return None
    units = np.rint(content.astype(np.float64) / (one.astype(np.float64) * two))
    return units.astype(np.int32) if (np.abs(units) < 2**31).all() else None


class _Product(_Integers):
    """QuantizeLinear(f(DequantizeLinear(x), DequantizeLinear(w), b)) of a product f, per tensor or per filter of w.

    Args:
        form: of b, one of `forms`: none, a float constant, or int32 in units of the product of the scales.
    """

    forms: tuple[str, ...] = ("none", "floats", "sums")
    op_type: str

    def __init__(self, form: str) -> None:
        self._form = form
        super().__init__()

    def pattern(
        self, op: Any, x: Any, sx: Any, zx: Any, w: Any, sw: Any, zw: Any, b: Any, sb: Any, zb: Any, sy: Any, zy: Any
    ) -> Any:
        data, filters = op.DequantizeLinear(x, sx, zx, _name="dx"), op.DequantizeLinear(w, sw, zw, _name="dw")
        third = {"none": None, "floats": b, "sums": op.DequantizeLinear(b, sb, zb, _name="db")}[self._form]
        return op.QuantizeLinear(
            getattr(op, self.op_type)(data, filters, third, _name="product"), sy, zy, _name="quant"
        )

    def check(  # type: ignore[override]  # rules ask for what their pattern binds
        self, m: MatchResult, quant: ir.Node, dx: ir.Node, dw: ir.Node, b: ir.Value | None, product: ir.Node
    ) -> MatchResult:
        along = 0 if product.op_type == "Conv" or facts.attr(product, "transB", 0) else 1  # of w, where filters lie
        return super().check(m, quant) and _bytes(m, dx, dw, axis=along) and self._fits(m, dx, dw, b, product)

    def _fits(self, m: MatchResult, dx: ir.Node, dw: ir.Node, b: ir.Value | None, product: ir.Node) -> MatchResult:
        """Whether the bias is, or becomes, one of int32."""
        third = facts.given(product, 2)
        db = third.producer() if self._form == "sums" and third is not None else None
        if self._form == "floats" and _bias(b, dx, dw) is None:
            return m.fail("the bias is not constant, or too large for the units of the sums")
        if db is not None:
            scales = [facts.array(n.inputs[1]) for n in (dx, dw, db)]
            one, two, units = scales
            if one is None or two is None or units is None or not np.allclose(units, one * two, rtol=1e-5, atol=0):
                return m.fail("the bias is not in the units of the sums")
            zero = facts.given(db, 2)
            none = facts.array(zero)
            if facts.dtype(db.inputs[0]) != ir.DataType.INT32 or (zero is not None and (none is None or none.any())):
                return m.fail("the bias is not of 32 bits without zero point")
        return m

    def bias(self, op: Any, b: ir.Value | None, dx: ir.Node, dw: ir.Node) -> Any:
        """The int32 bias for the integer operator; None where there is none."""
        return op.constant(_bias(b, dx, dw)) if self._form == "floats" else b if self._form == "sums" else None


class ConvQDQFusion(_Product):
    """QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w), b)) -> QLinearConv, per tensor or per filter."""

    name = "ConvQDQFusion"
    op_type = "Conv"

    def rewrite(self, op: Any, dx: ir.Node, dw: ir.Node, b: ir.Value | None, product: ir.Node, quant: ir.Node) -> Any:
        return op.QLinearConv(
            *_three(op, dx), *_three(op, dw), *_result(op, quant), self.bias(op, b, dx, dw), _like=product
        )


class GemmQDQFusion(_Product):
    """QuantizeLinear(Gemm(DequantizeLinear(a), DequantizeLinear(b), c)) -> com.microsoft.QGemm."""

    name = "GemmQDQFusion"
    op_type = "Gemm"

    def check(  # type: ignore[override]
        self, m: MatchResult, quant: ir.Node, dx: ir.Node, dw: ir.Node, b: ir.Value | None, product: ir.Node
    ) -> MatchResult:
        if facts.attr(product, "beta", 1.0) != 1.0 or facts.attr(product, "alpha", 1.0) != 1.0:
            return m.fail("the Gemm has factors of its own")
        return super().check(m, quant, dx, dw, b, product)

    def rewrite(self, op: Any, dx: ir.Node, dw: ir.Node, b: ir.Value | None, product: ir.Node, quant: ir.Node) -> Any:
        return op.QGemm(
            *_three(op, dx), *_three(op, dw), self.bias(op, b, dx, dw), *_result(op, quant), _like=product, beta=None,
            _domain=_MS,
        )  # fmt: skip


class MatMulQDQFusion(_Integers):
    """QuantizeLinear(MatMul(DequantizeLinear(a), DequantizeLinear(b))) -> QLinearMatMul, per tensor or per column."""

    def pattern(self, op: Any, a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, sy: Any, zy: Any) -> Any:
        one, two = op.DequantizeLinear(a, sa, za, _name="dx"), op.DequantizeLinear(b, sb, zb, _name="dw")
        return op.QuantizeLinear(op.MatMul(one, two, _name="product"), sy, zy, _name="quant")

    def check(self, m: MatchResult, quant: ir.Node, dx: ir.Node, dw: ir.Node) -> MatchResult:  # type: ignore[override]
        if facts.rank(dw.inputs[0]) != 2 and facts.rank(dw.inputs[1]) != 0:
            return m.fail("the second factor has a scale for each column and is no matrix")
        return super().check(m, quant) and _bytes(m, dx, dw, axis=1)

    def rewrite(self, op: Any, dx: ir.Node, dw: ir.Node, product: ir.Node, quant: ir.Node) -> Any:
        return op.QLinearMatMul(*_three(op, dx), *_three(op, dw), *_result(op, quant), _like=product)


class BinaryQDQFusion(_Integers):
    """QuantizeLinear(f(DequantizeLinear(a), DequantizeLinear(b))) -> com.microsoft.QLinearAdd, QLinearMul."""

    name = "BinaryQDQFusion"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, sy: Any, zy: Any) -> Any:
        one, two = op.DequantizeLinear(a, sa, za, _name="dx"), op.DequantizeLinear(b, sb, zb, _name="dw")
        return op.QuantizeLinear(getattr(op, self._op_type)(one, two, _name="f"), sy, zy, _name="quant")

    def check(self, m: MatchResult, quant: ir.Node, dx: ir.Node, dw: ir.Node) -> MatchResult:  # type: ignore[override]
        kinds = {facts.dtype(v) for v in (dx.inputs[0], dw.inputs[0], quant.outputs[0])}
        if len(kinds) > 1:
            return m.fail("operands and result differ in type")
        return super().check(m, quant) and _bytes(m, dx, dw)

    def rewrite(self, op: Any, dx: ir.Node, dw: ir.Node, f: ir.Node, quant: ir.Node) -> Any:
        made = getattr(op, f"QLinear{self._op_type}")
        return made(*_three(op, dx), *_three(op, dw), *_result(op, quant), _like=f, _domain=_MS)


class UnaryQDQFusion(_Integers):
    """QuantizeLinear(f(DequantizeLinear(x))) -> com.microsoft's QLinear form of f."""

    name = "UnaryQDQFusion"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any, sx: Any, zx: Any, sy: Any, zy: Any) -> Any:
        made = getattr(op, self._op_type)(op.DequantizeLinear(x, sx, zx, _name="dx"), _name="f")
        return op.QuantizeLinear(made, sy, zy, _name="quant")

    def check(self, m: MatchResult, quant: ir.Node, dx: ir.Node) -> MatchResult:  # type: ignore[override]
        if facts.dtype(dx.inputs[0]) != facts.dtype(quant.outputs[0]):
            return m.fail("operand and result differ in type")
        return super().check(m, quant) and _bytes(m, dx)

    def rewrite(self, op: Any, dx: ir.Node, f: ir.Node, quant: ir.Node) -> Any:
        made = getattr(op, f"QLinear{self._op_type}")
        return made(*_three(op, dx), *_result(op, quant), _like=f, _domain=_MS)


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [
        *(ConvQDQFusion(form) for form in _Product.forms),
        *(GemmQDQFusion(form) for form in _Product.forms),
        MatMulQDQFusion(),
        *(BinaryQDQFusion(op_type) for op_type in ("Add", "Mul")),
        *(UnaryQDQFusion(op_type) for op_type in ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")),
    ]
