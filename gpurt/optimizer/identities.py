"""Rules for nodes that give their input back. They fire where shapes and constants prove it, and nowhere else."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt import dtypes
from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule


class Noop(RewriteRule):
    """A rule whose pattern is worth its variable ``x``."""

    def rewrite(self, op: Any, x: ir.Value) -> Any:  # noqa: ARG002 - as declared
        return x


class EliminateIdentity(Noop):
    """Identity(x) -> x."""

    why = "identity"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Identity(x)


class EliminateDropout(Noop):
    """Dropout(x) without training -> x."""

    why = "dropout without training"

    def pattern(self, op: Any, x: Any, ratio: Any, mode: Any) -> Any:
        return op.Dropout(x, ratio, mode)

    def check(self, m: MatchResult, mode: ir.Value | None) -> MatchResult:
        off = mode is None or facts.scalar(mode) is False
        return m if off else m.fail("training_mode is not known to be false")


class CastElimination(Noop):
    """Cast(x) to x's own type -> x."""

    why = "cast to its own type"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Cast(x, to=op.attr("to"))

    def check(self, m: MatchResult, x: ir.Value, to: int) -> MatchResult:
        return m if facts.dtype(x) == to else m.fail(f"x is {facts.dtype(x)}")


class PreShapeNodeElimination(RewriteRule):
    """Shape(Cast(x)) -> Shape(x)."""

    why = "does not change the shape"
    consumes = False

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Shape(op.Cast(x), _name="shape")

    def rewrite(self, op: Any, x: ir.Value, shape: ir.Node) -> Any:
        return op.Shape(x, _like=shape)


class CastChainElimination(RewriteRule):
    """Cast(Cast(x, wide), to) -> Cast(x, to), where the wide type holds every value of x exactly."""

    why = "cast through a wider type"
    consumes = False

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Cast(op.Cast(x, to=op.attr("wide")), to=op.attr("to"), _name="cast")

    def check(self, m: MatchResult, x: ir.Value, wide: int, to: int) -> MatchResult:
        source = facts.dtype(x)
        if source is None:
            return m.fail("the type of x is not known")
        narrow, middle = dtypes.from_onnx(int(source)), dtypes.from_onnx(wide)
        if source == wide or (narrow == np.bool_ and middle.kind in "iuf") or middle in dtypes.WIDER.get(narrow, ()):
            strings = "O" in (middle.kind, dtypes.from_onnx(to).kind)
            return m.fail("strings depend on the type") if strings else m
        return m.fail(f"{middle.name} does not hold every value of {narrow.name}")

    def rewrite(self, op: Any, x: ir.Value, cast: ir.Node) -> Any:
        return op.Cast(x, _like=cast)


class EliminateSlice(Noop):
    """Slice(x) of everything -> x."""

    why = "slice of everything"

    def pattern(self, op: Any, x: Any, starts: Any, ends: Any, axes: Any, steps: Any) -> Any:
        return op.Slice(x, starts, ends, axes, steps)

    def check(self, m: MatchResult, x: ir.Value, starts: Any, ends: Any, axes: Any, steps: Any) -> MatchResult:
        first, last, step = facts.ints(starts), facts.ints(ends), facts.ints(steps)
        if first is None or last is None or (step is None and steps is not None):
            return m.fail("the limits are not constant")
        sizes, where = facts.dims(x), list(range(len(first))) if axes is None else facts.ints(axes)
        if any(first) or any(s != 1 for s in step or []):
            return m.fail("it does not begin at 0 in steps of 1")
        for position, end in enumerate(last):
            size = None if sizes is None or where is None else sizes[where[position]]
            if end < (np.iinfo(np.int32).max if size is None else size):
                return m.fail("it may end before the end")
        return m


class ExpandElimination(Noop):
    """Expand(x) to a shape that does not enlarge x -> x."""

    why = "expands nothing"

    def pattern(self, op: Any, x: Any, to: Any) -> Any:
        return op.Expand(x, to)

    def check(self, m: MatchResult, x: ir.Value, to: ir.Value) -> MatchResult:
        target, sizes = facts.ints(to), facts.dims(x)
        if target is None or sizes is None:
            return m.fail("the shape is not constant, or the rank of x not known")
        if len(target) > len(sizes):
            return m.fail("it adds axes")
        same = all(t in (1, s) for t, s in zip(target, sizes[len(sizes) - len(target) :], strict=True))
        return m if same else m.fail(f"it may expand {sizes} to {target}")


class NoopPad(Noop):
    """Pad(x) by nothing -> x."""

    why = "pads nothing"

    def pattern(self, op: Any, x: Any, pads: Any, fill: Any, axes: Any) -> Any:
        return op.Pad(x, pads, fill, axes)

    def check(self, m: MatchResult, pads: ir.Value) -> MatchResult:
        amounts = facts.ints(pads)
        return m if amounts is not None and not any(amounts) else m.fail("the pads are not constant zeros")


class NoopTile(Noop):
    """Tile(x) once -> x."""

    why = "repeats once"

    def pattern(self, op: Any, x: Any, repeats: Any) -> Any:
        return op.Tile(x, repeats)

    def check(self, m: MatchResult, repeats: ir.Value) -> MatchResult:
        counts = facts.ints(repeats)
        return m if counts is not None and all(c == 1 for c in counts) else m.fail("the repeats are not constant ones")


class NoopTranspose(Noop):
    """Transpose(x) that leaves every axis where it is -> x."""

    why = "moves no axis"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Transpose(x, perm=op.attr("perm"))

    def check(self, m: MatchResult, x: ir.Value, perm: list[int] | None) -> MatchResult:
        order = perm if perm is not None else list(range(facts.rank(x) or 2))[::-1]
        return m if order == sorted(order) else m.fail(f"it permutes by {order}")


class NoopReshape(Noop):
    """Reshape(x) to x's own shape -> x; Flatten, Squeeze and Unsqueeze alike."""

    why = "keeps the shape"

    def pattern(self, op: Any, x: Any, to: Any) -> Any:
        return op.Reshape(x, to, allowzero=op.attr("allowzero"))

    def check(self, m: MatchResult, x: ir.Value, to: ir.Value, allowzero: int) -> MatchResult:
        target, sizes = facts.ints(to), facts.dims(x)
        if target is None or sizes is None or len(target) != len(sizes):
            return m.fail("the shape is not constant or of another rank")
        copied = [t == 0 and not allowzero for t in target]
        # One dimension may be left to the number of elements: with all others the same, it is the same.
        free = [i for i, (t, s) in enumerate(zip(target, sizes, strict=True)) if not copied[i] and (t != s or t == 0)]
        sure = not free or (len(free) == 1 and target[free[0]] == -1 and 0 not in sizes)
        return m if sure else m.fail(f"{target} may not be the shape of x, {sizes}")


class NoopFlatten(Noop):
    """Flatten(x) of a matrix at axis 1 -> x."""

    why = "keeps the shape"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Flatten(x, axis=op.attr("axis"))

    def check(self, m: MatchResult, x: ir.Value, axis: int) -> MatchResult:
        return m if facts.rank(x) == 2 and axis in (1, -1) else m.fail("x is no matrix, or the axis is not 1")


# Operators that give their only input back where they have no more than one.
_OF_ONE: Final = ("Concat", "Sum", "Max", "Min", "Mean")


class NoopOfOne(Noop):
    """Concat(x), Sum(x), Max(x), Min(x), Mean(x) -> x."""

    why = "has one input"

    def __init__(self, op_type: str) -> None:
        self.name = f"Noop{op_type}"
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any) -> Any:
        return getattr(op, self._op_type)(x)


class NoopElimination(Noop):
    """Add(x, 0), Sub(x, 0), Mul(x, 1), Div(x, 1), Pow(x, 1) -> x, where the constant does not broadcast x."""

    name = "NoopElimination"

    def __init__(self, op_type: str, neutral: int) -> None:
        self.why = f"{op_type} of {neutral}"
        self._op_type, self._neutral = op_type, neutral
        super().__init__()

    def pattern(self, op: Any, x: Any, constant: Any) -> Any:
        return getattr(op, self._op_type)(x, constant)

    def check(self, m: MatchResult, x: ir.Value, constant: ir.Value) -> MatchResult:
        content = facts.array(constant)
        if content is None or content.dtype.kind not in "iufV" or not np.all(content == self._neutral):
            return m.fail(f"no input is a constant of {self._neutral}")
        if facts.extends(constant, x):
            return m.fail("the constant may broadcast x")
        return m


class EliminateTwice(Noop):
    """Not(Not(x)), Neg(Neg(x)) -> x."""

    why = "undone by the next"
    consumes = False

    def __init__(self, op_type: str) -> None:
        self.name = f"Double{op_type}"
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any) -> Any:
        return getattr(op, self._op_type)(getattr(op, self._op_type)(x))


class NoopReduce(Noop):
    """ReduceSum(x), ReduceMean(x), ReduceMax(x), ReduceMin(x), ReduceProd(x) over no axis or over ones -> x."""

    why = "reduces nothing"

    def __init__(self, op_type: str) -> None:
        self.name = f"Noop{op_type}"
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any, axes: Any) -> Any:
        return getattr(op, self._op_type)(x, axes, keepdims=op.attr("keepdims"), noop_with_empty_axes=op.attr("noop"))

    def check(self, m: MatchResult, x: ir.Value, axes: ir.Value | None, keepdims: int, noop: int) -> MatchResult:
        where, sizes = facts.ints(axes), facts.dims(x)
        if axes is not None and where is None:
            return m.fail("the axes are not constant")
        if not where and noop:
            return m
        if not keepdims or sizes is None:
            return m.fail("it drops axes, or the rank of x is not known")
        reduced = [sizes[a] for a in where] if where else sizes
        return m if all(s == 1 for s in reduced) else m.fail(f"it reduces {reduced}")


class WhereElimination(RewriteRule):
    """Where(constant, a, b) with a constant of one element -> a or b, where neither is broadcast."""

    why = "its condition is constant"

    def pattern(self, op: Any, condition: Any, a: Any, b: Any) -> Any:
        return op.Where(condition, a, b)

    def check(self, m: MatchResult, condition: ir.Value, a: ir.Value, b: ir.Value) -> MatchResult:
        content = facts.array(condition)
        if content is None or content.size == 0 or not (content.all() or not content.any()):
            return m.fail("the condition is not constant")
        taken, other = (a, b) if content.all() else (b, a)
        if facts.extends(condition, taken):
            return m.fail("the condition may broadcast what is taken")
        sizes = facts.shape(other)
        fits = sizes is not None and facts.shape(taken) == sizes
        single = sizes is not None and math.prod(sizes) == 1 and len(sizes) <= (facts.rank(taken) or 0)
        return m if fits or single else m.fail("the other input may broadcast what is taken")

    def rewrite(self, op: Any, condition: ir.Value, a: ir.Value, b: ir.Value) -> Any:  # noqa: ARG002
        content = facts.array(condition)
        return a if content is not None and content.all() else b


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    neutral = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1}
    return [
        EliminateIdentity(),
        EliminateDropout(),
        CastElimination(),
        CastChainElimination(),
        PreShapeNodeElimination(),
        EliminateSlice(),
        ExpandElimination(),
        NoopPad(),
        NoopTile(),
        NoopTranspose(),
        NoopReshape(),
        NoopFlatten(),
        WhereElimination(),
        *(NoopOfOne(op_type) for op_type in _OF_ONE),
        *(NoopElimination(op_type, value) for op_type, value in neutral.items()),
        *(EliminateTwice(op_type) for op_type in ("Not", "Neg")),
        *(NoopReduce(f"Reduce{kind}") for kind in ("Sum", "Mean", "Max", "Min", "Prod")),
    ]
