"""Operators that only change the shape, one after another: the last one decides."""

from __future__ import annotations

from typing import Any, Final

import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule

# Operators that keep all elements in their order; the pattern of each has this many more inputs.
_SHAPING: Final = {"Reshape": 1, "Squeeze": 1, "Unsqueeze": 1, "Flatten": 0}


class ReshapeReshapeFusion(RewriteRule):
    """Reshape(f(x), shape) -> Reshape(x, shape), for f that is Reshape, Squeeze, Unsqueeze or Flatten."""

    name = "ReshapeReshapeFusion"
    why = "fused into the Reshape after it"
    consumes = False

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any, first: Any, to: Any) -> Any:
        more = (first,) if _SHAPING[self._op_type] else ()
        return op.Reshape(getattr(op, self._op_type)(x, *more), to, allowzero=op.attr("allowzero"), _name="last")

    def check(self, m: MatchResult, to: ir.Value, allowzero: int) -> MatchResult:
        target = facts.ints(to)
        if target is None:
            return m.fail("the shape is not constant")
        return m if allowzero or 0 not in target else m.fail("it copies a dimension from between")

    def rewrite(self, op: Any, x: ir.Value, to: ir.Value, last: ir.Node) -> Any:
        return op.Reshape(x, to, _like=last)


class UnsqueezeSqueeze(RewriteRule):
    """Squeeze(Unsqueeze(x, axes), axes) -> x, and Unsqueeze(Squeeze(x, axes), axes) -> x."""

    name = "UnsqueezeSqueeze"
    why = "undone by the next"
    consumes = False

    def __init__(self, outer: str, inner: str) -> None:
        self._outer, self._inner = outer, inner
        super().__init__()

    def pattern(self, op: Any, x: Any, first: Any, second: Any) -> Any:
        return getattr(op, self._outer)(getattr(op, self._inner)(x, first), second)

    def check(self, m: MatchResult, first: ir.Value | None, second: ir.Value | None) -> MatchResult:
        one, two = facts.ints(first), facts.ints(second)
        # Negative axes count from the end of the longer shape in both.
        if not one or not two or sorted(one) != sorted(two):
            return m.fail("the axes are not the same constants")
        return m

    def rewrite(self, op: Any, x: ir.Value) -> Any:  # noqa: ARG002 - as declared
        return x


class UnsqueezeUnsqueeze(RewriteRule):
    """Unsqueeze(Unsqueeze(x, a), b) -> Unsqueeze(x, c), for axes counted from the front."""

    why = "fused into the Unsqueeze after it"
    consumes = False

    def pattern(self, op: Any, x: Any, first: Any, second: Any) -> Any:
        return op.Unsqueeze(op.Unsqueeze(x, first), second)

    def check(self, m: MatchResult, first: ir.Value, second: ir.Value) -> MatchResult:
        one, two = facts.ints(first), facts.ints(second)
        if one is None or two is None or min([*one, *two, 0]) < 0:
            return m.fail("the axes are not constant, or counted from the end")
        return m

    def rewrite(self, op: Any, x: ir.Value, first: ir.Value, second: ir.Value) -> Any:
        inner, outer = sorted(facts.ints(first) or []), sorted(facts.ints(second) or [])
        size = len(inner) + len(outer) + max((*inner, *outer), default=0) + 1
        kept = [i for i in range(size) if i not in outer]  # where the axes of the value between come to stand
        return op.Unsqueeze(x, op.constant(sorted([*outer, *(kept[i] for i in inner)]), "int64"))


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [
        UnsqueezeSqueeze("Squeeze", "Unsqueeze"),
        UnsqueezeSqueeze("Unsqueeze", "Squeeze"),
        UnsqueezeUnsqueeze(),
        *(ReshapeReshapeFusion(op_type) for op_type in _SHAPING),
    ]
