"""Activations that exporters write as their formula: Gelu, Swish, HardSigmoid, HardSwish, Mish."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule
from gpurt.options import GraphOptimizationLevel

_SQRT_2: Final = 1.4142135
_SQRT_2_BY_PI: Final = 0.7978846
_CUBIC: Final = 0.044715


class _Activation(RewriteRule):
    """A formula of x alone, which becomes one operator."""

    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED

    def check(self, m: MatchResult, x: ir.Value) -> MatchResult:
        return m if facts.is_float(x) else m.fail("x is not known to be floats")


class GeluFusion(_Activation):
    """x * 0.5 * (1 + Erf(x / sqrt(2))) -> Gelu(x), in any order of the factors (Hendrycks and Gimpel 2016)."""

    name = "GeluFusion"
    why = "fused into a Gelu"

    def __init__(self, form: int) -> None:
        self._form = form
        super().__init__()

    def pattern(self, op: Any, x: Any) -> Any:
        scaled = op.Div(x, _SQRT_2) if self._form % 2 else op.Mul(x, 1 / _SQRT_2)
        return _half_of(op, x, op.Add(op.Erf(scaled), 1.0), self._form // 2)

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        return op.Gelu(x)


class FastGeluFusion(_Activation):
    """x * 0.5 * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) -> Gelu(x, tanh), in the ways to write the cube."""

    name = "FastGeluFusion"
    why = "fused into a Gelu"

    def __init__(self, form: int) -> None:
        self._form = form
        super().__init__()

    def pattern(self, op: Any, x: Any) -> Any:
        match self._form // 3:
            case 0:
                inner = op.Mul(op.Add(x, op.Mul(op.Pow(x, 3), _CUBIC)), _SQRT_2_BY_PI)
            case 1:
                inner = op.Mul(op.Add(x, op.Mul(op.Mul(x, op.Mul(x, x)), _CUBIC)), _SQRT_2_BY_PI)
            case 2:  # x * sqrt(2 / pi) * (1 + 0.044715 * x * x)
                inner = op.Mul(op.Mul(x, _SQRT_2_BY_PI), op.Add(op.Mul(op.Mul(x, _CUBIC), x), 1.0))
            case _:
                inner = op.Mul(op.Mul(x, _SQRT_2_BY_PI), op.Add(op.Mul(op.Mul(x, x), _CUBIC), 1.0))
        return _half_of(op, x, op.Add(op.Tanh(inner), 1.0), self._form % 3)

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        return op.Gelu(x, approximate="tanh")


def _half_of(op: Any, x: Any, bell: Any, order: int) -> Any:
    """X * 0.5 * bell, with the factors in one of three orders."""
    match order:
        case 0:
            return op.Mul(op.Mul(x, bell), 0.5)
        case 1:
            return op.Mul(op.Mul(x, 0.5), bell)
    return op.Mul(x, op.Mul(bell, 0.5))


class SwishFusion(_Activation):
    """x * Sigmoid(x) -> Swish(x), also called SiLU."""

    why = "fused into a Swish"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x))

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        return op.Swish(x)


class QuickGeluFusion(RewriteRule):
    """x * Sigmoid(alpha * x) -> Swish(x, alpha); with alpha 1.702 it is CLIP's approximation of Gelu."""

    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "fused into a Swish"

    def pattern(self, op: Any, x: Any, alpha: Any) -> Any:
        return op.Mul(x, op.Sigmoid(op.Mul(x, alpha)))

    def check(self, m: MatchResult, x: ir.Value, alpha: ir.Value) -> MatchResult:
        if not facts.is_float(x) or not isinstance(facts.scalar(alpha), float) or facts.extends(alpha, x):
            return m.fail("alpha is not one constant, or x not known to be floats")
        return m

    def rewrite(self, op: Any, x: ir.Value, alpha: ir.Value) -> Any:
        return op.Swish(x, alpha=facts.scalar(alpha))


class HardSigmoidFusion(_Activation):
    """Clip(x + 3, 0, 6) / 6 -> HardSigmoid(x, 1/6, 1/2)."""

    name = "HardSigmoidFusion"
    why = "fused into a HardSigmoid"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any) -> Any:
        return _sixth(op, self._op_type, op.Clip(op.Add(x, 3.0), 0.0, 6.0))

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        return op.HardSigmoid(x, alpha=1 / 6, beta=0.5)


class HardSwishFusion(RewriteRule):
    """x * HardSigmoid(x, 1/6, 1/2), x * Clip(x + 3, 0, 6) / 6 -> HardSwish(x) (Howard et al. 2019)."""

    name = "HardSwishFusion"
    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "fused into a HardSwish"

    def __init__(self, form: str) -> None:
        self._form = form
        super().__init__()

    def pattern(self, op: Any, x: Any) -> Any:
        if self._form == "HardSigmoid":
            return op.Mul(x, op.HardSigmoid(x, _name="gate"))
        return _sixth(op, self._form, op.Mul(x, op.Clip(op.Add(x, 3.0), 0.0, 6.0, _name="gate")))

    def check(self, m: MatchResult, x: ir.Value, gate: ir.Node) -> MatchResult:
        if not facts.is_float(x):
            return m.fail("x is not known to be floats")
        if self._form != "HardSigmoid":
            return m
        given = [facts.attr(gate, "alpha"), facts.attr(gate, "beta")]
        return m if np.allclose(given, [1 / 6, 0.5], rtol=1e-4) else m.fail(f"alpha and beta are {given}")

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        return op.HardSwish(x)


def _sixth(op: Any, op_type: str, value: Any) -> Any:
    return op.Div(value, 6.0) if op_type == "Div" else op.Mul(value, 1 / 6)


class MishFusion(_Activation):
    """x * Tanh(Softplus(x)) -> Mish(x) (Misra 2019)."""

    why = "fused into a Mish"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Tanh(op.Softplus(x)))

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        return op.Mish(x)


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [
        *(GeluFusion(form) for form in range(6)),
        *(FastGeluFusion(form) for form in range(12)),
        SwishFusion(),
        QuickGeluFusion(),
        *(HardSigmoidFusion(op_type) for op_type in ("Div", "Mul")),
        *(HardSwishFusion(form) for form in ("HardSigmoid", "Div", "Mul")),
        MishFusion(),
    ]
