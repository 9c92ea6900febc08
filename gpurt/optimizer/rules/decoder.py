"""What decoders write around attention: heads of keys that are repeated for groups of queries, rotary positions."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule
from gpurt.options import GraphOptimizationLevel

_END: Final = 2**31 - 1


class _GroupedHeads(RewriteRule):
    """Attention(q, repeated k, repeated v) -> Attention(q, k, v), which lets groups of queries share keys and values.

    torch repeats heads by Unsqueeze, Expand and Reshape, or by a Gather of each head several times (Ainslie et al.
    2023).
    """

    name = "GroupedHeadsFusion"
    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "Attention shares keys and values among groups of heads"
    consumes = False

    def rewrite(self, op: Any, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, node: ir.Node) -> Any:
        return op.Attention(q, k, v, mask, _like=node)


class ExpandedHeadsFusion(_GroupedHeads):
    """Heads that are repeated by Expand."""

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(
        self, op: Any, q: Any, k: Any, v: Any, mask: Any, a: Any, a2: Any, e: Any, e2: Any, s: Any, s2: Any
    ) -> Any:
        one, two = (getattr(op, self._op_type)(*x) for x in ((k, a), (v, a2)))
        keys = op.Reshape(op.Expand(one, e, _name="wide"), s, _name="flat")
        values = op.Reshape(op.Expand(two, e2, _name="wide2"), s2, _name="flat2")
        return op.Attention(q, keys, values, mask, _name="node")

    def check(
        self, m: MatchResult, k: ir.Value, v: ir.Value, wide: ir.Node, wide2: ir.Node, flat: ir.Node, flat2: ir.Node
    ) -> MatchResult:
        reason = _as_many(k, v) or _repeated(k, wide, flat) or _repeated(v, wide2, flat2)
        return m.fail(reason) if reason else m


class GatheredHeadsFusion(_GroupedHeads):
    """Heads that are repeated by Gather."""

    def pattern(self, op: Any, q: Any, k: Any, v: Any, mask: Any, s: Any, s2: Any) -> Any:
        keys, values = op.Gather(k, s, axis=1), op.Gather(v, s2, axis=1)
        return op.Attention(q, keys, values, mask, _name="node")

    def check(self, m: MatchResult, k: ir.Value, v: ir.Value, s: ir.Value, s2: ir.Value) -> MatchResult:
        reason = _as_many(k, v) or _gathered(k, s) or _gathered(v, s2)
        return m.fail(reason) if reason else m


def _as_many(k: ir.Value, v: ir.Value) -> str:
    """Why keys and values have not equally many heads; empty if they have."""
    one, two = facts.dims(k), facts.dims(v)
    if one is None or two is None or not len(one) == len(two) == 4 or one[1] is None or one[1] != two[1]:
        return "the heads of keys and values are not known to be as many"
    return ""


def _gathered(x: ir.Value, index: ir.Value) -> str:
    """Why an index does not repeat each head as often, one after the other; empty if it does."""
    order, heads = facts.ints(index), (facts.dims(x) or [None, None])[1]
    if not order or not heads or len(order) % heads or facts.rank(index) != 1:
        return "the heads are not picked by a constant list"
    times = len(order) // heads
    return "" if order == [i // times for i in range(len(order))] else "heads are not repeated one after the other"


def _repeated(x: ir.Value, wide: ir.Node, made: ir.Node) -> str:
    """Why x is not (batch, heads, 1, length, size) that is expanded along the third axis and flattened; empty if so."""
    before, after = facts.symbols(x), facts.symbols(made.outputs[0])
    one, many = facts.symbols(wide.inputs[0]), facts.symbols(wide.outputs[0])
    if before is None or after is None or one is None or many is None or len(many) != 5 or len(after) != 4:
        return "the shapes on the way are not known"
    times = many[2]
    if None in (*before, *many) or one != [*before[:2], 1, *before[2:]] or many != [*before[:2], times, *before[2:]]:
        return "the heads are not expanded along an axis of their own"
    if not isinstance(before[1], int) or not isinstance(times, int) or after[1] != before[1] * times:
        return "the repeated heads do not become the heads of the queries"
    return "" if after[2:] == before[2:] else "the lengths change as well"


class _Rotary(RewriteRule):
    """x * cos + turned(x) * sin -> RotaryEmbedding(x, cos, sin) (Su et al. 2021), for (batch, heads, length, size).

    Cosines and sines hold each number twice, the operator wants them once.
    """

    name = "RotaryEmbeddingFusion"
    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "fused into a RotaryEmbedding"
    consumes = False
    interleaved = False

    def rewrite(self, op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value) -> Any:
        tables = [self._once(op, table, x) for table in (cos, sin)]
        return op.RotaryEmbedding(x, *tables, interleaved=int(self.interleaved))

    def _once(self, op: Any, table: ir.Value, x: ir.Value) -> ir.Value:
        """(batch, length, size / 2) of (batch, 1, length, size)."""
        sizes, known = facts.symbols(table), facts.symbols(x)
        assert sizes is not None, "the tables were checked"
        assert known is not None, "x was checked"
        last, step = (known[3], 2) if self.interleaved else (_half(x), 1)
        rows = op.Squeeze(table, np.array([1]))
        once: ir.Value = op.Slice(rows, np.array([0]), np.array([last]), np.array([2]), np.array([step]))
        if sizes[0] != known[0]:
            batch = op.Concat(op.Shape(x, start=0, end=1), np.array([1, 1]), axis=0)
            once = op.Expand(once, batch)
        return once

    def tables(self, x: ir.Value, cos: ir.Value, sin: ir.Value) -> str:
        """Why cosines and sines do not fit x; empty if they do."""
        dims = facts.symbols(x)
        for table in (cos, sin):
            sizes = facts.symbols(table)
            if dims is None or sizes is None or sizes[1:] != [1, dims[2], dims[3]] or dims[2] is None:
                return "cosines and sines are not known to be one row for each position"
            if sizes[0] not in (1, dims[0]) or facts.dtype(table) != facts.dtype(x):
                return "cosines and sines are of another batch or type"
            if not _doubled(table, side_by_side=self.interleaved):
                return f"{table.name!r} is not known to hold each number twice"
        return ""


class HalvesFusion(_Rotary):
    """The halves of x are turned into one another, as in Llama, and are slices of x."""

    def pattern(
        self, op: Any, x: Any, cos: Any, sin: Any, f1: Any, l1: Any, a1: Any, t1: Any, f2: Any, l2: Any, a2: Any,
        t2: Any,
    ) -> Any:  # fmt: skip
        first, second = op.Slice(x, f1, l1, a1, t1, _name="one"), op.Slice(x, f2, l2, a2, t2, _name="two")
        return op.Add(op.Mul(x, cos), op.Mul(op.Concat(op.Neg(second), first, axis=op.attr("along")), sin))

    def check(
        self, m: MatchResult, x: ir.Value, cos: ir.Value, sin: ir.Value, one: ir.Node, two: ir.Node, along: int
    ) -> MatchResult:
        half = _half(x)
        if half is None:
            return m.fail("x has not 4 axes, of which the last is known and even")
        if _slice(one, 4) != (0, half, 1) or _slice(two, 4) not in ((half, 2 * half, 1), (half, _END, 1)):
            return m.fail("the slices are not the halves of the last axis")
        if along not in (-1, 3):
            return m.fail("the halves are not put side by side again")
        reason = self.tables(x, cos, sin)
        return m.fail(reason) if reason else m


class SplitHalvesFusion(_Rotary):
    """The halves of x are turned into one another, and come from a Split."""

    def pattern(self, op: Any, x: Any, cos: Any, sin: Any, s: Any) -> Any:
        first, second = op.Split(x, s, axis=op.attr("axis"), _outputs=2)
        return op.Add(op.Mul(x, cos), op.Mul(op.Concat(op.Neg(second), first, axis=op.attr("along")), sin))

    def check(
        self, m: MatchResult, x: ir.Value, cos: ir.Value, sin: ir.Value, s: ir.Value | None, axis: int, along: int
    ) -> MatchResult:
        half = _half(x)
        if half is None:
            return m.fail("x has not 4 axes, of which the last is known and even")
        if axis not in (-1, 3) or (s is not None and facts.ints(s) != [half, half]) or along not in (-1, 3):
            return m.fail("it is not split in halves of the last axis")
        reason = self.tables(x, cos, sin)
        return m.fail(reason) if reason else m


class NeighboursFusion(_Rotary):
    """Neighbours are turned into one another, as in GPT-J."""

    interleaved = True

    def pattern(
        self, op: Any, x: Any, cos: Any, sin: Any, f1: Any, l1: Any, a1: Any, t1: Any, f2: Any, l2: Any, a2: Any,
        t2: Any, u1: Any, u2: Any, s: Any,
    ) -> Any:  # fmt: skip
        even, odd = op.Slice(x, f1, l1, a1, t1, _name="one"), op.Slice(x, f2, l2, a2, t2, _name="two")
        pairs = op.Concat(op.Unsqueeze(op.Neg(odd), u1), op.Unsqueeze(even, u2), axis=op.attr("along"))
        return op.Add(op.Mul(x, cos), op.Mul(op.Reshape(pairs, s, _name="flat"), sin))

    def check(
        self, m: MatchResult, x: ir.Value, cos: ir.Value, sin: ir.Value, one: ir.Node, two: ir.Node, u1: ir.Value,
        u2: ir.Value, along: int, flat: ir.Node,
    ) -> MatchResult:  # fmt: skip
        half = _half(x)
        if half is None:
            return m.fail("x has not 4 axes, of which the last is known and even")
        every = [_slice(node, 4) for node in (one, two)]
        if any(e is None or e[0] != i or e[1] < 2 * half or e[2] != 2 for i, e in enumerate(every)):
            return m.fail("the slices are not every other element of the last axis")
        if facts.ints(u1) not in ([-1], [4]) or facts.ints(u2) not in ([-1], [4]) or along not in (-1, 4):
            return m.fail("neighbours are not put side by side again")
        if facts.symbols(flat.outputs[0]) != facts.symbols(x):
            return m.fail("pairs are not known to get the shape of x again")
        reason = self.tables(x, cos, sin)
        return m.fail(reason) if reason else m


def _half(x: ir.Value) -> int | None:
    """Half of the last one of 4 axes of a tensor of floats; None where that is not known."""
    dims = facts.dims(x)
    if not facts.is_float(x) or dims is None or len(dims) != 4 or dims[3] is None or dims[3] % 2:
        return None
    return dims[3] // 2


def _slice(node: ir.Node, rank: int) -> tuple[int, int, int] | None:
    """Start, end and step of a slice of the last axis, by constants from the front; None for anything else."""
    first, last, axes, steps = (facts.ints(facts.given(node, i)) for i in range(1, 5))
    if first is None or last is None or len(first) != 1 or len(last) != 1 or axes not in ([-1], [rank - 1]):
        return None
    if facts.given(node, 4) is not None and (steps is None or len(steps) != 1):
        return None
    end = min(last[0], _END)
    return (first[0], end, steps[0] if steps else 1) if first[0] >= 0 and end > 0 else None


_SAME: Final = frozenset({"Cos", "Sin", "Cast", "Identity", "Neg"})
_SCALED: Final = frozenset({"Mul", "Div", "Add"})


def _doubled(value: ir.Value | None, *, side_by_side: bool) -> bool:
    """Whether the last axis holds each number twice: one half after the other, or side by side."""
    content = facts.array(value)
    if content is not None:
        if not content.ndim or content.shape[-1] % 2:
            return False
        half = content.shape[-1] // 2
        parts = (content[..., ::2], content[..., 1::2]) if side_by_side else (content[..., :half], content[..., half:])
        return bool(np.array_equal(*parts))
    node = value.producer() if value is not None else None
    if node is None or node.domain or node.inputs[0] is None:
        return False
    before, rank = node.inputs[0], facts.rank(value)
    if node.op_type in _SAME:
        return _doubled(before, side_by_side=side_by_side)
    if node.op_type in _SCALED:
        given = [v for v in node.inputs if facts.scalar(v) is None]
        return len(given) == 1 and _doubled(given[0], side_by_side=side_by_side)
    if node.op_type in ("Unsqueeze", "Gather"):
        axes = facts.ints(node.inputs[1]) if node.op_type == "Unsqueeze" else [facts.attr(node, "axis", 0)]
        inner = rank if node.op_type == "Unsqueeze" else facts.rank(before)
        if axes is None or rank is None or inner is None or any(a % inner == inner - 1 for a in axes):
            return False
        return _doubled(before, side_by_side=side_by_side)
    if side_by_side:
        return node.op_type == "Reshape" and _paired(before, value)
    axis = facts.attr(node, "axis")
    return node.op_type == "Concat" and axis in (-1, (rank or 0) - 1) and list(node.inputs) == [before, before]


def _paired(before: ir.Value, value: ir.Value | None) -> bool:
    """Whether a Reshape flattens pairs of one and the same number: Concat(u, u) or Expand(u), with u of one column."""
    node, pairs, flat = before.producer(), facts.symbols(before), facts.symbols(value)
    if node is None or pairs is None or flat is None or len(pairs) < 2 or pairs[-1] != 2 or len(flat) != len(pairs) - 1:
        return False
    if not isinstance(pairs[-2], int) or flat[-1] != 2 * pairs[-2]:
        return False
    if node.op_type == "Concat":
        return facts.attr(node, "axis") in (-1, len(pairs) - 1) and node.inputs[0] is node.inputs[1]
    narrow = facts.symbols(node.inputs[0]) if node.op_type in ("Expand", "Tile") else None
    return narrow is not None and len(narrow) == len(pairs) and narrow[-1] == 1


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [
        *(ExpandedHeadsFusion(op_type) for op_type in ("Unsqueeze", "Reshape")),
        GatheredHeadsFusion(),
        HalvesFusion(),
        SplitHalvesFusion(),
        NeighboursFusion(),
    ]
