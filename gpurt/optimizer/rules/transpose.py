"""Transposes that follow one another, or that only change how a tensor is written down."""

from __future__ import annotations

from typing import Any, Final

import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule

# Operators of one tensor that do not care where an element stands.
_UNARY: Final = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Neg", "Abs", "Sqrt", "Exp", "Log", "Erf", "Cast", "Elu", "Selu",
    "Softplus", "HardSigmoid", "HardSwish", "Clip", "Gelu", "Mish", "Identity", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip


def _composed(inner: list[int] | None, outer: list[int] | None) -> list[int] | None:
    """The permutation of two transposes in a row; both without one reverse the axes, and so give all of them back."""
    if inner is None and outer is None:
        return None
    rank = len(inner or outer or [])
    first, second = (p if p is not None else list(range(rank))[::-1] for p in (inner, outer))
    return [first[i] for i in second]


class TransposeTransposeFusion(RewriteRule):
    """Transpose(Transpose(x)) -> Transpose(x), or x."""

    why = "fused into the Transpose after it"
    consumes = False

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Transpose(op.Transpose(x, perm=op.attr("inner")), perm=op.attr("outer"), _name="last")

    def rewrite(self, op: Any, x: ir.Value, inner: list[int] | None, outer: list[int] | None, last: ir.Node) -> Any:
        perm = _composed(inner, outer)
        return x if perm is None or perm == sorted(perm) else op.Transpose(x, _like=last, perm=perm)


class TransposeUnaryTranspose(RewriteRule):
    """Transpose(f(Transpose(x))) -> f(Transpose(x)), or f(x), for f that looks at elements one by one."""

    name = "TransposeUnaryTranspose"
    why = "fused into the Transpose after it"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any, a: Any, b: Any) -> Any:
        moved = op.Transpose(x, perm=op.attr("inner"))
        return op.Transpose(getattr(op, self._op_type)(moved, a, b, _name="f"), perm=op.attr("outer"), _name="last")

    def check(self, m: MatchResult, a: ir.Value | None, b: ir.Value | None) -> MatchResult:
        single = all(v is None or facts.rank(v) == 0 for v in (a, b))
        return m if single else m.fail("a parameter differs along an axis")

    def rewrite(
        self, op: Any, x: ir.Value, a: Any, b: Any, f: ir.Node, last: ir.Node, inner: list[int] | None,
        outer: list[int] | None,
    ) -> Any:  # fmt: skip
        perm = _composed(inner, outer)
        moved = x if perm is None or perm == sorted(perm) else op.Transpose(x, _like=last, perm=perm)
        return getattr(op, self._op_type)(moved, a, b, _like=f)


class TransposeToReshape(RewriteRule):
    """Transpose(x) that moves only axes of one element -> Reshape(x)."""

    why = "moves no data: a Reshape"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Transpose(x, perm=op.attr("perm"))

    def check(self, m: MatchResult, x: ir.Value, perm: list[int] | None) -> MatchResult:
        sizes = facts.dims(x)
        if sizes is None or sizes.count(None) > 1 or 0 in sizes:
            return m.fail("the shape of x is not known")
        moved = [a for a in perm or reversed(range(len(sizes))) if sizes[a] != 1]
        return m if moved == sorted(moved) else m.fail("it moves data")

    def rewrite(self, op: Any, x: ir.Value, perm: list[int] | None) -> Any:
        sizes = facts.dims(x) or []
        order = perm or list(range(len(sizes)))[::-1]
        return op.Reshape(x, op.constant([-1 if sizes[a] is None else sizes[a] for a in order], "int64"))


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    unary = [TransposeUnaryTranspose(op_type) for op_type in _UNARY]
    return [TransposeTransposeFusion(), *unary, TransposeToReshape()]
