"""Elementwise operators that are one: Clip and Relu, a division and a product, a condition turned round."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule


def _limits(low: ir.Value | None, high: ir.Value | None) -> tuple[Any, Any] | None:
    """Bounds of a Clip as numbers, infinite where left out; None where they are not constant."""
    bounds = [facts.scalar(low), facts.scalar(high)]
    if (low is not None and bounds[0] is None) or (high is not None and bounds[1] is None):
        return None
    below, above = (-np.inf if low is None else bounds[0]), (np.inf if high is None else bounds[1])
    return (below, above) if below < np.inf and above > -np.inf else None  # nor is NaN a bound


def _clip(op: Any, x: ir.Value, low: Any, high: Any) -> Any:
    dtype = facts.dtype(x)
    assert dtype is not None, "the type was checked"
    bounds = [None if np.isinf(b) else op.constant(b, dtype.numpy()) for b in (low, high)]
    return op.Clip(x, *bounds)


class FuseReluClip(RewriteRule):
    """Clip(Relu(x), low, high) -> Clip(x, max(low, 0), high)."""

    why = "fused into the Clip after it"

    def pattern(self, op: Any, x: Any, low: Any, high: Any) -> Any:
        return op.Clip(op.Relu(x), low, high)

    def check(self, m: MatchResult, x: ir.Value, low: ir.Value | None) -> MatchResult:
        if _limits(low, None) is None or facts.dtype(x) is None:
            return m.fail("the lower bound is not constant")
        return m

    def rewrite(self, op: Any, x: ir.Value, low: ir.Value | None, high: ir.Value | None) -> Any:
        found, dtype = _limits(low, None), facts.dtype(x)
        assert found is not None, "the bounds were checked"
        assert dtype is not None, "the type was checked"
        # max(low, 0) first and min(high) last, as before, so that a bound above that is negative still wins.
        return op.Clip(x, low if found[0] >= 0 and low is not None else op.constant(0, dtype.numpy()), high)


class FuseClipRelu(RewriteRule):
    """Relu(Clip(x, low, high)) -> Clip(x, max(low, 0), max(high, 0))."""

    why = "fused into the Clip before it"

    def pattern(self, op: Any, x: Any, low: Any, high: Any) -> Any:
        return op.Relu(op.Clip(x, low, high))

    def check(self, m: MatchResult, x: ir.Value, low: ir.Value | None, high: ir.Value | None) -> MatchResult:
        if _limits(low, high) is None or facts.dtype(x) is None:
            return m.fail("the bounds are not constant")
        return m

    def rewrite(self, op: Any, x: ir.Value, low: ir.Value | None, high: ir.Value | None) -> Any:
        found = _limits(low, high)
        assert found is not None, "the bounds were checked"
        return _clip(op, x, max(found[0], 0), max(found[1], 0))


class ClipClipFusion(RewriteRule):
    """Clip(Clip(x, a, b), c, d) -> Clip(x, a', b')."""

    why = "fused into the Clip after it"

    def pattern(self, op: Any, x: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        return op.Clip(op.Clip(x, a, b), c, d)

    def check(self, m: MatchResult, x: ir.Value, a: Any, b: Any, c: Any, d: Any) -> MatchResult:
        if _limits(a, b) is None or _limits(c, d) is None or facts.dtype(x) is None:
            return m.fail("the bounds are not constant")
        return m

    def rewrite(self, op: Any, x: ir.Value, a: Any, b: Any, c: Any, d: Any) -> Any:
        first, second = _limits(a, b), _limits(c, d)
        assert first is not None, "the bounds were checked"
        assert second is not None, "the bounds were checked"
        # Where the bounds cross, the upper one wins: the second Clip maps the first one's ends to the new ends.
        low, high = (min(max(bound, second[0]), second[1]) for bound in (min(first), first[1]))
        return _clip(op, x, low, high)


class ReluRelu(RewriteRule):
    """Relu(Relu(x)) -> Relu(x)."""

    why = "the same as the one before it"
    consumes = False

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Relu(op.Relu(x, _name="first"))

    def rewrite(self, op: Any, first: ir.Node) -> Any:  # noqa: ARG002 - as declared
        return first.outputs[0]


class DivMulFusion(RewriteRule):
    """Mul(Div(1, x), y) -> Div(y, x)."""

    why = "fused into a Div"

    def pattern(self, op: Any, x: Any, y: Any) -> Any:
        return op.Mul(op.Div(1, x), y)

    def check(self, m: MatchResult, x: ir.Value) -> MatchResult:
        return m if facts.is_float(x) else m.fail("an integer division rounds")

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value) -> Any:
        return op.Div(y, x)


class NotWhereFusion(RewriteRule):
    """Where(Not(c), a, b) -> Where(c, b, a)."""

    why = "fused into the Where after it"
    consumes = False

    def pattern(self, op: Any, c: Any, a: Any, b: Any) -> Any:
        return op.Where(op.Not(c), a, b, _name="where")

    def rewrite(self, op: Any, c: ir.Value, a: ir.Value, b: ir.Value, where: ir.Node) -> Any:
        return op.Where(c, b, a, _like=where)


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [FuseReluClip(), FuseClipRelu(), ClipClipFusion(), ReluRelu(), DivMulFusion(), NotWhereFusion()]
