"""Attention that exporters write as two products and a Softmax: softmax(Q K^T * scale + mask) V."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule
from gpurt.optimizer.symbols import Dims
from gpurt.options import GraphOptimizationLevel

_TO_KEYS: Final = [0, 1, 3, 2]

# How the scale is written: not at all, on the scores, on the queries, or half of it on each factor.
_SCALES: Final = ("none", "Mul", "Div", "q Mul", "q Div", "halves Mul", "halves Div")

# How keys are hidden: not at all, by a sum, or by what takes the place of a score where a condition holds or does not.
_MASKS: Final = ("none", "Add", "keep", "fill")

# From here on what is filled in drowns any score that it is added to.
_DROWNS: Final = {ir.DataType.FLOAT16: -6e4}
_DROWNS_WIDE: Final = -1e9

_REPEATS: Final = frozenset({"Expand", "Gather", "Reshape", "Unsqueeze"})


class AttentionFusion(RewriteRule):
    """MatMul(Softmax(MatMul(q, k^T) * scale + mask), v) -> Attention(q, k, v, mask), for heads as the second axis.

    torch's script exporter writes a product or a quotient of the scores, or multiplies queries and keys with the root
    of the scale each; its newer one does the last, and both turn rows without any key, which are NaN, into zeros
    (``guarded``); Attention does so anyway. A mask is a term of the scores (``Add``) or a condition: Where(mask,
    scores, fill), Where(mask, fill, scores). Equal numbers of heads and equal batches must be known, as a product
    broadcasts and Attention does not.
    """

    name = "AttentionFusion"
    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "fused into an Attention"

    def __init__(self, scaling: str, masking: str, *, guarded: bool) -> None:
        self._scaling, self._masking, self._guarded = scaling, masking, guarded
        super().__init__()

    def pattern(self, op: Any, q: Any, k: Any, v: Any, mask: Any, fill: Any, scale: Any, scale2: Any, zero: Any) -> Any:
        where, _, op_type = self._scaling.rpartition(" ")
        scaled = getattr(op, op_type)
        if where:
            scores = op.MatMul(scaled(q, scale), scaled(k, scale2) if where == "halves" else k)
        else:
            scores = op.MatMul(q, k) if op_type == "none" else scaled(op.MatMul(q, k), scale)
        match self._masking:
            case "Add":
                scores = op.Add(scores, mask)
            case "keep":
                scores = op.Where(mask, scores, fill)
            case "fill":
                scores = op.Where(mask, fill, scores)
        weights = op.Softmax(scores, _name="softmax")
        if self._guarded:
            weights = op.Where(op.IsNaN(weights), zero, weights)
        return op.MatMul(weights, v)

    def check(
        self, m: MatchResult, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, fill: Any, scale: Any,
        scale2: Any, zero: Any, softmax: ir.Node,
    ) -> MatchResult:  # fmt: skip
        if facts.attr(softmax, "axis", -1) not in (-1, 3):
            return m.fail("the softmax is not over the keys")
        if self._factor(scale, scale2) is None:
            return m.fail("the scale is not one positive constant")
        if self._guarded and facts.scalar(zero) != 0:
            return m.fail("what takes the place of NaN is not zero")
        if not facts.is_float(q) or not facts.dtype(q) == facts.dtype(k) == facts.dtype(v):
            return m.fail("queries, keys and values are not known to be floats of one type")
        made = _transposed(k)
        if made is None:
            return m.fail("the keys are not transposed for the product")
        one, two, three = facts.symbols(q), facts.symbols(k), facts.symbols(v)
        if one is None or two is None or three is None or not len(one) == len(two) == len(three) == 4:
            return m.fail("queries, keys and values have not 4 axes")
        if None in one[:2] or not one[:2] == two[:2] == three[:2]:
            return m.fail(f"batch and heads are not known to be the same: {one[:2]}, {two[:2]}, {three[:2]}")
        if mask is None:
            return m
        if self._masking != "Add" and not _drowns(fill, facts.dtype(q)):
            return m.fail("what hidden keys get is not one constant far below all scores")
        # Scores are as long as values, so a mask of another size has one key, or one for each.
        lengths = two[3] is not None and two[3] == three[2]
        return m if _fits(mask, one, two, lengths=lengths) else m.fail("the mask may broadcast the scores")

    def _factor(self, scale: ir.Value | None, scale2: ir.Value | None) -> float | None:
        if self._scaling == "none":
            return 1.0
        given = [scale, scale2] if self._scaling.startswith("halves") else [scale]
        factors = [facts.scalar(s) for s in given]
        if not all(isinstance(f, float) and 0 < f < math.inf for f in factors) or any(
            (facts.rank(s) or 0) > 4 for s in given
        ):
            return None
        return float(1 / math.prod(factors) if self._scaling.endswith("Div") else math.prod(factors))

    def rewrite(
        self, op: Any, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, fill: Any, scale: Any, scale2: Any
    ) -> Any:
        made = _transposed(k)
        assert made is not None, "the keys were checked"
        keys, how = made
        if isinstance(how, np.ndarray):
            keys = op.Reshape(keys, how)
        elif how != list(range(4)):
            keys = op.Transpose(keys, perm=how)
        mask = self._mask(op, mask, fill)
        if mask is not None and not _whole(mask, facts.symbols(k) or [None] * 4):
            source = _before_repeats(v)
            axis = (facts.rank(source) or 4) - 2
            # A mask of one key hides all others from Attention.
            mask = op.Expand(mask, op.Shape(source, start=axis, end=axis + 1))
        return op.Attention(q, keys, v, mask, scale=self._factor(scale, scale2))

    def _mask(self, op: Any, mask: ir.Value | None, fill: ir.Value | None) -> ir.Value | None:
        if mask is None or self._masking == "Add":
            return mask
        low = facts.array(fill)
        assert low is not None, "the fill was checked"
        if np.isneginf(low).all():
            hidden: ir.Value = mask if self._masking == "keep" else op.Not(mask)
            return hidden
        # Where no key is left, a finite fill gives all of them the same weight, which a condition would not.
        low = low.reshape(())
        zero = np.zeros((), low.dtype)
        added: ir.Value = op.Where(mask, zero, low) if self._masking == "keep" else op.Where(mask, low, zero)
        return added


def _drowns(fill: ir.Value, dtype: ir.DataType | None) -> bool:
    low = facts.scalar(fill)
    if not isinstance(low, float) or (facts.rank(fill) or 0) > 4 or dtype is None:
        return False
    return low <= _DROWNS.get(dtype, _DROWNS_WIDE)


def _transposed(k: ir.Value) -> tuple[ir.Value, list[int] | np.ndarray] | None:
    """What becomes (batch, heads, keys, size) of keys that are (batch, heads, size, keys), and by which permutation.

    Or by which shape: torch's newer exporter puts a Transpose of three axes between two Reshapes.
    """
    node = k.producer()
    if node is not None and node.op_type == "Reshape" and not node.domain:
        return _reshaped(node)
    if node is None or node.op_type != "Transpose" or node.domain or node.inputs[0] is None:
        return None
    perm = facts.attr(node, "perm")
    return None if perm is None or len(perm) != 4 else (node.inputs[0], [perm[i] for i in _TO_KEYS])


def _reshaped(node: ir.Node) -> tuple[ir.Value, list[int] | np.ndarray] | None:
    inner = node.inputs[0].producer() if node.inputs[0] is not None else None
    if inner is None or inner.op_type != "Transpose" or facts.attr(inner, "perm") != [0, 2, 1]:
        return None
    before = inner.inputs[0]
    first = before.producer() if before is not None else None
    source = first.inputs[0] if first is not None and first.op_type == "Reshape" and not first.domain else None
    flat, heads = facts.symbols(before), facts.symbols(node.outputs[0])
    if source is None or flat is None or heads is None or len(heads) != 4 or None in flat[1:] or None in heads[1:]:
        return None
    # The last Reshape must leave the matrices alone and only take batch and heads apart.
    if heads[2:] != flat[:0:-1]:
        return None
    if facts.symbols(source) == [*heads[:2], *flat[1:]] and None not in heads:
        return source, list(range(4))
    if not all(isinstance(s, int) and s > 0 for s in (*heads[1:], *flat[1:])):
        return None
    sizes = [heads[0] if isinstance(heads[0], int) else -1, heads[1], *flat[1:]]
    return source, np.asarray(sizes, np.int64)


def _before_repeats(v: ir.Value) -> ir.Value:
    """Values before their heads are repeated, which has no effect on their length: they are there in any case."""
    sizes = facts.symbols(v)
    node = v.producer()
    while sizes is not None and node is not None and not node.domain and node.op_type in _REPEATS:
        before = facts.symbols(node.inputs[0])
        if node.inputs[0] is None or before is None or len(before) < 4 or before[-2] is None or before[-2] != sizes[2]:
            break
        v = node.inputs[0]
        node = v.producer()
    return v


def _fits(mask: ir.Value, q: Dims, k: Dims, *, lengths: bool) -> bool:
    """Whether a mask broadcasts to (batch, heads, queries, keys) without enlarging it.

    Args:
        mask: what is added to the scores.
        q: sizes of (batch, heads, queries, size).
        k: sizes of (batch, heads, size, keys).
        lengths: whether keys and values are known to be equally many; if not, the last axis must be known to fit.
    """
    sizes = facts.symbols(mask)
    scores = [q[0], q[1], q[2], k[3]]
    if sizes is None or not 2 <= len(sizes) <= 4 or not (lengths or _whole(mask, k)):
        return False
    pairs = list(zip(sizes[::-1], scores[::-1], strict=False))[1:]
    return all(s == 1 or (s is not None and s == t) for s, t in pairs)


def _whole(mask: ir.Value, k: Dims) -> bool:
    """Whether a mask is known to have an entry for each key."""
    sizes = facts.symbols(mask)
    return bool(sizes) and k[3] is not None and sizes is not None and sizes[-1] == k[3]


def rules() -> list[RewriteRule]:
    """The rules of this module, those that cover more nodes first."""
    return [
        AttentionFusion(scaling, masking, guarded=guarded)
        for guarded in (True, False)
        for masking in _MASKS[::-1]
        for scaling in _SCALES[::-1]
    ]
