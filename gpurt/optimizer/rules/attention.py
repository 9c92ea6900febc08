"""Attention that exporters write as two products and a Softmax: softmax(Q K^T * scale + mask) V."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule
from gpurt.options import GraphOptimizationLevel

_TO_KEYS: Final = [0, 1, 3, 2]

# How the scale is written: not at all, on the scores, or half of it on each factor.
_SCALES: Final = ("none", "Mul", "Div", "halves")


class AttentionFusion(RewriteRule):
    """MatMul(Softmax(MatMul(q, k^T) * scale + mask), v) -> Attention(q, k, v, mask), for heads as the second axis.

    torch's script exporter writes a product or a quotient of the scores, or multiplies queries and keys with the root
    of the scale each; its newer one does the last. Equal numbers of heads and equal batches must be known, as a product
    broadcasts and Attention does not.
    """

    name = "AttentionFusion"
    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "fused into an Attention"

    def __init__(self, scaling: str, *, masked: bool) -> None:
        self._scaling, self._masked = scaling, masked
        super().__init__()

    def pattern(self, op: Any, q: Any, k: Any, v: Any, mask: Any, scale: Any, scale2: Any) -> Any:
        match self._scaling:
            case "none":
                scores = op.MatMul(q, k)
            case "halves":
                scores = op.MatMul(op.Mul(q, scale), op.Mul(k, scale2))
            case _:
                scores = getattr(op, self._scaling)(op.MatMul(q, k), scale)
        if self._masked:
            scores = op.Add(scores, mask)
        return op.MatMul(op.Softmax(scores, _name="softmax"), v)

    def check(
        self, m: MatchResult, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, scale: Any, scale2: Any,
        softmax: ir.Node,
    ) -> MatchResult:  # fmt: skip
        if facts.attr(softmax, "axis", -1) not in (-1, 3):
            return m.fail("the softmax is not over the keys")
        if self._factor(scale, scale2) is None:
            return m.fail("the scale is not one positive constant")
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
        return m if mask is None or _fits(mask, one, two) else m.fail("the mask may broadcast the scores")

    def _factor(self, scale: ir.Value | None, scale2: ir.Value | None) -> float | None:
        if self._scaling == "none":
            return 1.0
        given = [scale, scale2] if self._scaling == "halves" else [scale]
        factors = [facts.scalar(s) for s in given]
        if not all(isinstance(f, float) and 0 < f < math.inf for f in factors) or any(
            (facts.rank(s) or 0) > 4 for s in given
        ):
            return None
        return float(1 / factors[0] if self._scaling == "Div" else math.prod(factors))

    def rewrite(
        self, op: Any, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None, scale: Any, scale2: Any
    ) -> Any:
        made = _transposed(k)
        assert made is not None, "the keys were checked"
        keys, how = made
        if isinstance(how, np.ndarray):
            keys = op.Reshape(keys, how)
        elif how != list(range(4)):
            keys = op.Transpose(keys, perm=how)
        return op.Attention(q, keys, v, mask, scale=self._factor(scale, scale2))


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


def _reshaped(node: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    inner = node.inputs[0].producer() if node.inputs[0] is not None else None
    if inner is None or inner.op_type != "Transpose" or facts.attr(inner, "perm") != [0, 2, 1]:
        return None
    before = inner.inputs[0]
    first = before.producer() if before is not None else None
    source = first.inputs[0] if first is not None and first.op_type == "Reshape" and not first.domain else None
    flat, heads = facts.dims(before), facts.dims(node.outputs[0])
    if source is None or flat is None or heads is None or len(heads) != 4 or None in flat[1:]:
        return None
    # The last Reshape must leave the matrices alone and only take batch and heads apart.
    if heads[2:] != flat[:0:-1] or heads[1] is None or not all(heads[1:]):
        return None
    sizes = [-1 if heads[0] is None else heads[0], heads[1], *flat[1:]]
    return source, np.asarray(sizes, np.int64)


def _fits(mask: ir.Value, q: list[int | str | None], k: list[int | str | None]) -> bool:
    """Whether a mask broadcasts to (batch, heads, queries, keys) without enlarging it."""
    sizes = facts.symbols(mask)
    scores = [q[0], q[1], q[2], k[3]]
    if sizes is None or not 2 <= len(sizes) <= 4:
        return False
    return all(s == 1 or (s is not None and s == t) for s, t in zip(sizes[::-1], scores[::-1], strict=False))


def rules() -> list[RewriteRule]:
    """The rules of this module, those that cover more nodes first."""
    return [AttentionFusion(scaling, masked=masked) for masked in (True, False) for scaling in _SCALES[::-1]]
