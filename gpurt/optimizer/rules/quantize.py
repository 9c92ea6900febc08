"""Quantization that is undone at once: numbers that go to floats and back, or that are only moved in between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule
from gpurt.options import GraphOptimizationLevel

_NARROW: Final = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})

# Operators that only move elements, and how many inputs they have beside the data.
_MOVES: Final = {
    "Reshape": 1,
    "Transpose": 0,
    "Squeeze": 1,
    "Unsqueeze": 1,
    "Flatten": 0,
    "Slice": 4,
    "Gather": 1,
    "Expand": 1,
}


def _undone(m: MatchResult, q: ir.Value, dq: ir.Node, quant: ir.Node) -> MatchResult:
    """Whether quantizing is the exact inverse of the dequantizing before it."""
    if facts.dtype(q) not in _NARROW or facts.dtype(quant.outputs[0]) != facts.dtype(q):
        return m.fail("the two quantized types differ, or are wider than 16 bits")
    same = [_same(facts.given(dq, i), facts.given(quant, i)) for i in (1, 2)]
    if not all(same) or any(
        facts.attr(dq, n, d) != facts.attr(quant, n, d) for n, d in (("axis", 1), ("block_size", 0))
    ):
        return m.fail("the scales or zero points are not the same constants")
    scale = facts.array(dq.inputs[1])
    if scale is None or scale.dtype != np.float32 or not ((scale > 1e-30) & (scale < 1e30)).all():
        return m.fail("the scale is no ordinary float")  # with 24 bits, rounding finds every 16 bit number again
    if facts.attr(quant, "precision", 0):
        return m.fail("it divides in a precision of its own")
    return m


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is b:
        return a is None or facts.array(a) is not None
    one, two = facts.array(a), facts.array(b)
    if (a is None) != (b is None):  # a zero point that is left out is zero
        one = two = one if two is None else two
        return one is not None and not one.any()
    return one is not None and two is not None and one.dtype == two.dtype and np.array_equal(one, two)


class DoubleQDQPairsRemover(RewriteRule):
    """QuantizeLinear(DequantizeLinear(q, s, z), s, z) -> q."""

    why = "quantizes what was just dequantized"
    consumes = False

    def pattern(self, op: Any, q: Any, s1: Any, z1: Any, s2: Any, z2: Any) -> Any:
        return op.QuantizeLinear(op.DequantizeLinear(q, s1, z1, _name="dq"), s2, z2, _name="quant")

    def check(self, m: MatchResult, q: ir.Value, dq: ir.Node, quant: ir.Node) -> MatchResult:
        return _undone(m, q, dq, quant)

    def rewrite(self, op: Any, q: ir.Value) -> Any:  # noqa: ARG002 - as declared
        return q


class QDQPropagation(RewriteRule):
    """QuantizeLinear(f(DequantizeLinear(q, s, z)), s, z) -> f(q), for f that only moves elements."""

    name = "QDQPropagation"
    why = "quantizes what was dequantized and moved"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, q: Any, s1: Any, z1: Any, s2: Any, z2: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        more = (a, b, c, d)[: _MOVES[self._op_type]]
        moved = getattr(op, self._op_type)(op.DequantizeLinear(q, s1, z1, _name="dq"), *more, _name="f")
        return op.QuantizeLinear(moved, s2, z2, _name="quant")

    def check(self, m: MatchResult, q: ir.Value, dq: ir.Node, quant: ir.Node) -> MatchResult:
        if facts.rank(dq.inputs[1]) != 0:
            return m.fail("the scale differs along an axis")
        return _undone(m, q, dq, quant)

    def rewrite(self, op: Any, q: ir.Value, f: ir.Node) -> Any:
        return getattr(op, self._op_type)(q, *f.inputs[1:], _like=f)


class _BeforeQuantize(RewriteRule, ABC):
    """What only cuts off what quantizing cuts off anyway goes."""

    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "quantizing cuts off as much"
    consumes = False

    @abstractmethod
    def limits(self, cut: ir.Node) -> tuple[Any, Any]:
        """What is cut off below and above; None where it is not known."""

    def check(self, m: MatchResult, s: ir.Value, quant: ir.Node, cut: ir.Node) -> MatchResult:
        below, above = self.limits(cut)
        scale, kind = facts.array(s), facts.dtype(quant.outputs[0])
        zero = facts.array(facts.given(quant, 2))
        if below is None or above is None or scale is None or kind not in _NARROW:
            return m.fail("the limits or the scale are not constant, or the type is wider than 16 bits")
        if facts.given(quant, 2) is not None and zero is None:
            return m.fail("the zero point is not constant")
        info = np.iinfo(kind.numpy())
        offset = np.float64(0) if zero is None else zero.astype(np.float64)
        ends = [(end - offset) * scale.astype(np.float64) for end in (info.min, info.max)]
        inside = np.all(ends[0] >= below) and np.all(ends[1] <= above)
        return m if inside else m.fail("it cuts off more than quantizing does")

    def rewrite(self, op: Any, x: ir.Value, s: ir.Value, z: ir.Value | None, quant: ir.Node) -> Any:
        return op.QuantizeLinear(x, s, z, _like=quant)


class ReluQuantFusion(_BeforeQuantize):
    """QuantizeLinear(Relu(x)) -> QuantizeLinear(x), where the smallest quantized number stands for 0 or more."""

    def pattern(self, op: Any, x: Any, s: Any, z: Any) -> Any:
        return op.QuantizeLinear(op.Relu(x, _name="cut"), s, z, _name="quant")

    def limits(self, cut: ir.Node) -> tuple[Any, Any]:  # noqa: ARG002 - as declared
        return 0.0, np.inf


class ClipQuantFusion(_BeforeQuantize):
    """QuantizeLinear(Clip(x, low, high)) -> QuantizeLinear(x), where no quantized number is outside of the limits."""

    def pattern(self, op: Any, x: Any, s: Any, z: Any, low: Any, high: Any) -> Any:
        return op.QuantizeLinear(op.Clip(x, low, high, _name="cut"), s, z, _name="quant")

    def limits(self, cut: ir.Node) -> tuple[Any, Any]:
        low, high = facts.given(cut, 1), facts.given(cut, 2)
        return -np.inf if low is None else facts.scalar(low), np.inf if high is None else facts.scalar(high)


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [
        ReluQuantFusion(),
        ClipQuantFusion(),
        DoubleQDQPairsRemover(),
        *(QDQPropagation(op_type) for op_type in _MOVES),
    ]
