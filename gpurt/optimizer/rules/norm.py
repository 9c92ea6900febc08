"""Operators that exporters wrote as their formula before ONNX had them: LayerNormalization, Gelu."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule

_SQRT_2: Final = 1.4142135


class GeluFusion(RewriteRule):
    """x * 0.5 * (1 + Erf(x / sqrt(2))) -> Gelu(x), in any order of the factors."""

    name = "GeluFusion"
    why = "fused into a Gelu"

    def __init__(self, form: int) -> None:
        self._form = form
        super().__init__()

    def pattern(self, op: Any, x: Any) -> Any:
        scaled = op.Div(x, _SQRT_2) if self._form % 2 else op.Mul(x, 1 / _SQRT_2)
        bell = op.Add(op.Erf(scaled), 1.0)
        match self._form // 2:
            case 0:
                return op.Mul(op.Mul(x, bell), 0.5)
            case 1:
                return op.Mul(op.Mul(x, 0.5), bell)
        return op.Mul(x, op.Mul(bell, 0.5))

    def check(self, m: MatchResult, x: ir.Value) -> MatchResult:
        return m if facts.is_float(x) else m.fail("the type of x is not known")

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        return op.Gelu(x)


class LayerNormFusion(RewriteRule):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias -> LayerNormalization(x, scale, bias)."""

    name = "LayerNormFusion"
    why = "fused into a LayerNormalization"

    def __init__(self, squared: str) -> None:
        self._squared = squared
        super().__init__()

    def pattern(self, op: Any, x: Any, axes1: Any, axes2: Any, epsilon: Any, scale: Any, bias: Any) -> Any:
        centered = op.Sub(x, op.ReduceMean(x, axes1, keepdims=1))
        square = op.Pow(centered, 2) if self._squared == "Pow" else op.Mul(centered, centered)
        deviation = op.Sqrt(op.Add(op.ReduceMean(square, axes2, keepdims=1), epsilon))
        return op.Add(op.Mul(op.Div(centered, deviation), scale), bias)

    def check(
        self, m: MatchResult, x: ir.Value, axes1: Any, axes2: Any, epsilon: Any, scale: ir.Value, bias: ir.Value
    ) -> MatchResult:
        rank, axes = facts.rank(x), facts.ints(axes1)
        if rank is None or not axes or axes != facts.ints(axes2) or not facts.is_float(x):
            return m.fail("the axes are not the same constants, or the rank of x is not known")
        where = sorted(a % rank for a in axes)
        if where != list(range(where[0], rank)):
            return m.fail("the axes are not the last ones")
        if not isinstance(facts.scalar(epsilon), float):
            return m.fail("epsilon is not constant")
        sizes = (facts.dims(x) or [])[where[0] :]
        for name, value in (("scale", scale), ("bias", bias)):
            if facts.array(value) is None or list(facts.shape(value) or ()) != sizes:
                return m.fail(f"the {name} is not a constant of the shape {sizes}")
        return m

    def rewrite(self, op: Any, x: ir.Value, axes1: Any, epsilon: Any, scale: ir.Value, bias: ir.Value) -> Any:
        rank = facts.rank(x) or 0
        axis = min(a % rank for a in facts.ints(axes1) or [])
        return op.LayerNormalization(x, scale, bias, axis=axis - rank, epsilon=float(np.float32(facts.scalar(epsilon))))


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [*(GeluFusion(form) for form in range(6)), *(LayerNormFusion(squared) for squared in ("Pow", "Mul"))]
