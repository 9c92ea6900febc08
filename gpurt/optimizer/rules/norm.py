"""Normalizations that exporters write as their formula: LayerNormalization, RMSNormalization, and the sum before one.

A formula becomes the operator with a scale of ones; what is multiplied with it or added to it then goes in, one rule
each, so that a formula without a scale or a bias is found as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule
from gpurt.optimizer.symbols import broadcast
from gpurt.options import GraphOptimizationLevel

_NARROW = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class _Normalization(RewriteRule):
    """A formula of x, axes and epsilon, which becomes one operator."""

    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    op_type: str

    def check(self, m: MatchResult, x: ir.Value, mean: ir.Node, epsilon: ir.Value) -> MatchResult:
        if facts.dtype(x) not in _NARROW:
            return m.fail("x is not known to be floats of 32 bits or less, in which the operator computes")
        if not isinstance(facts.scalar(epsilon), float):
            return m.fail("epsilon is not constant")
        sizes = _normalized(x, mean)
        if sizes is None:
            return m.fail("the axes are not the last ones, or not constant, or the rank of x is not known")
        return m if all(sizes) else m.fail(f"the sizes {sizes} that are normalized over are not known")

    def rewrite(self, op: Any, x: ir.Value, mean: ir.Node, epsilon: ir.Value) -> Any:
        sizes, dtype = _normalized(x, mean) or [], facts.dtype(x)
        assert dtype is not None, "the type was checked"
        ones = op.constant(np.ones([s or 1 for s in sizes]), dtype.numpy())
        return getattr(op, self.op_type)(x, ones, axis=-len(sizes), epsilon=facts.scalar(epsilon))


def _normalized(x: ir.Value, mean: ir.Node) -> list[int | None] | None:
    """Dimensions of x that are averaged over, if they are the last ones."""
    sizes, axes = facts.dims(x), facts.ints(facts.given(mean, 1))
    if sizes is None or not axes or not facts.attr(mean, "keepdims", 1):
        return None
    where = sorted(a % len(sizes) for a in axes)
    return sizes[where[0] :] if where == list(range(where[0], len(sizes))) else None


class LayerNormFusion(_Normalization):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) -> LayerNormalization(x) (Ba et al. 2016)."""

    name = "LayerNormFusion"
    why = "fused into a LayerNormalization"
    op_type = "LayerNormalization"

    def __init__(self, form: int) -> None:
        self._form = form
        super().__init__()

    def pattern(self, op: Any, x: Any, axes: Any, axes2: Any, epsilon: Any) -> Any:
        centered = op.Sub(x, op.ReduceMean(x, axes, _name="mean"))
        square = op.Mul(centered, centered) if self._form % 2 else op.Pow(centered, 2)
        variance = op.Add(op.ReduceMean(square, axes2, keepdims=1, _name="mean2"), epsilon)
        return _over_root(op, centered, variance, self._form // 2)

    def check(  # type: ignore[override]
        self, m: MatchResult, x: ir.Value, mean: ir.Node, mean2: ir.Node, epsilon: ir.Value
    ) -> MatchResult:
        rank = facts.rank(x) or 1
        one, two = (facts.ints(facts.given(node, 1)) for node in (mean, mean2))
        if one is None or two is None or {a % rank for a in one} != {a % rank for a in two}:
            return m.fail("the axes are not the same constants")
        return super().check(m, x, mean, epsilon)


class RMSNormFusion(_Normalization):
    """x / sqrt(mean(x^2) + epsilon) -> RMSNormalization(x) (Zhang and Sennrich 2019)."""

    name = "SimplifiedLayerNormFusion"
    why = "fused into an RMSNormalization"
    op_type = "RMSNormalization"

    def __init__(self, form: int) -> None:
        self._form = form
        super().__init__()

    def pattern(self, op: Any, x: Any, axes: Any, epsilon: Any) -> Any:
        square = op.Mul(x, x) if self._form % 2 else op.Pow(x, 2)
        return _over_root(op, x, op.Add(op.ReduceMean(square, axes, _name="mean"), epsilon), self._form // 2)


def _over_root(op: Any, x: Any, square: Any, form: int) -> Any:
    """X / sqrt(square), as exporters write it."""
    match form:
        case 0:
            return op.Div(x, op.Sqrt(square))
        case 1:
            return op.Mul(x, op.Reciprocal(op.Sqrt(square)))
        case 2:
            return op.Mul(x, op.Div(1.0, op.Sqrt(square)))
    return op.Mul(x, op.Pow(square, -0.5))


class NormScaleFusion(RewriteRule):
    """Mul(LayerNormalization(x, s), c) -> LayerNormalization(x, s * c), where no bias is in between; RMS alike."""

    name = "NormScaleFusion"
    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "fused into the normalization before it"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any, s: Any, c: Any) -> Any:
        return op.Mul(getattr(op, self._op_type)(x, s, _name="norm"), c)

    def check(self, m: MatchResult, s: ir.Value, c: ir.Value) -> MatchResult:
        scale = facts.array(s)
        if scale is None or not (scale == 1).all():
            return m.fail("it is scaled already")
        return m if _spread(c, s) is not None else m.fail(f"the factor is no constant of the shape {scale.shape}")

    def rewrite(self, op: Any, x: ir.Value, s: ir.Value, c: ir.Value, norm: ir.Node) -> Any:
        same = facts.shape(c) == facts.shape(s)
        return getattr(op, self._op_type)(x, c if same else op.constant(_spread(c, s)), _like=norm)


class NormBiasFusion(RewriteRule):
    """Add(LayerNormalization(x, s), c) -> LayerNormalization(x, s, c)."""

    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "fused into the normalization before it"

    def pattern(self, op: Any, x: Any, s: Any, c: Any) -> Any:
        return op.Add(op.LayerNormalization(x, s, _name="norm"), c)

    def check(self, m: MatchResult, s: ir.Value, c: ir.Value) -> MatchResult:
        if facts.shape(s) is None:
            return m.fail("the shape of the scale is not known")
        return m if _spread(c, s) is not None else m.fail(f"it is no constant of the shape {facts.shape(s)}")

    def rewrite(self, op: Any, x: ir.Value, s: ir.Value, c: ir.Value, norm: ir.Node) -> Any:
        same = facts.shape(c) == facts.shape(s)
        return op.LayerNormalization(x, s, c if same else op.constant(_spread(c, s)), _like=norm)


def _spread(c: ir.Value, s: ir.Value) -> np.ndarray | None:
    """A constant in the shape of a scale; None where it is none, of another type or of a larger shape."""
    content, shape = facts.array(c), facts.shape(s)
    if content is None or shape is None or facts.dtype(c) != facts.dtype(s):
        return None
    lead = content.ndim - len(shape)
    if lead > 0 and all(d == 1 for d in content.shape[:lead]):
        content = content.reshape(content.shape[lead:])
    if content.ndim > len(shape) or any(
        d not in (1, e) for d, e in zip(content.shape[::-1], shape[::-1], strict=False)
    ):
        return None
    return np.ascontiguousarray(np.broadcast_to(content, shape))


class SkipLayerNormFusion(RewriteRule):
    """LayerNormalization(Add(x, skip), s, b) -> com.microsoft.SkipLayerNormalization, where a provider has it.

    RMSNormalization becomes SkipSimplifiedLayerNormalization. Where the sum is read elsewhere too, as in blocks that
    normalize first, it stays: the rule does not fire.
    """

    name = "SkipLayerNormFusion"
    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "fused into a SkipLayerNormalization"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any, skip: Any, s: Any, b: Any) -> Any:
        scales = (s, b) if self._op_type == "LayerNormalization" else (s,)
        return getattr(op, self._op_type)(op.Add(x, skip), *scales, stash_type=1, _name="norm")

    def check(self, m: MatchResult, x: ir.Value, skip: ir.Value, s: ir.Value, norm: ir.Node) -> MatchResult:
        if facts.rank(x) != 3 or facts.rank(s) != 1 or facts.attr(norm, "axis", -1) not in (-1, 2):
            return m.fail("x has not 3 axes, of which the last is normalized over")
        if _unfinished(norm):
            return m.fail("a constant scale or bias behind it comes first")
        same = facts.shape(x) is not None and facts.shape(x) == facts.shape(skip)
        return m if same else m.fail("x and what is added are not known to have the same shape")

    def rewrite(self, op: Any, x: ir.Value, skip: ir.Value, s: ir.Value, b: ir.Value | None, norm: ir.Node) -> Any:
        epsilon = facts.attr(norm, "epsilon", 1e-5)
        if self._op_type == "LayerNormalization":
            return op.SkipLayerNormalization(x, skip, s, b, epsilon=epsilon, _domain="com.microsoft")
        return op.SkipSimplifiedLayerNormalization(x, skip, s, epsilon=epsilon, _domain="com.microsoft")


def _unfinished(norm: ir.Node) -> bool:
    """Whether NormScaleFusion or NormBiasFusion may still take what reads a normalization."""
    uses = list(norm.outputs[0].uses())
    if len(uses) != 1 or uses[0][0].domain or uses[0][0].op_type not in ("Mul", "Add"):
        return False
    reader, i = uses[0]
    scale = facts.array(norm.inputs[1])
    plain = scale is not None and bool((scale == 1).all())
    awaited = plain if reader.op_type == "Mul" else facts.given(norm, 2) is None and norm.op_type != "RMSNormalization"
    return awaited and facts.array(reader.inputs[1 - i]) is not None


class EmbedLayerNormFusion(RewriteRule):
    """LayerNormalization(words[ids] + positions[places]) -> com.microsoft.EmbedLayerNormalization.

    As in BERT (Devlin et al. 2019), with a third table for segments or without.
    """

    name = "EmbedLayerNormFusion"
    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "fused into an EmbedLayerNormalization"

    def __init__(self, form: str) -> None:
        self._form = form
        super().__init__()

    def pattern(
        self, op: Any, words: Any, ids: Any, positions: Any, places: Any, segments: Any, kinds: Any, s: Any, b: Any
    ) -> Any:
        word, place = op.Gather(words, ids, axis=0), op.Gather(positions, places, axis=0)
        match self._form:
            case "segments first":
                total = op.Add(op.Add(word, op.Gather(segments, kinds, axis=0)), place)
            case "segments last":
                total = op.Add(op.Add(word, place), op.Gather(segments, kinds, axis=0))
            case _:
                total = op.Add(word, place)
        return op.LayerNormalization(total, s, b, stash_type=1, _name="norm")

    def check(
        self, m: MatchResult, words: ir.Value, ids: ir.Value, positions: ir.Value, places: ir.Value,
        segments: ir.Value | None, kinds: ir.Value | None, b: ir.Value | None, norm: ir.Node,
    ) -> MatchResult:  # fmt: skip
        tables = [t for t in (words, positions, segments) if t is not None]
        if any(facts.rank(t) != 2 or facts.dtype(t) != facts.dtype(words) for t in tables) or not facts.is_float(words):
            return m.fail("the tables are not matrices of floats of one type")
        sizes = [facts.symbols(v) for v in (ids, places, kinds) if v is not None]
        if any(s is None or len(s) != 2 or None in s for s in sizes) or facts.attr(norm, "axis", -1) not in (-1, 2):
            return m.fail("ids have not 2 axes, or what is normalized over is not the last axis")
        if b is None or _unfinished(norm):
            return m.fail("there is no bias, or a constant behind it comes first")
        # Which table is that of the words is for the shapes to say: its rows alone are never broadcast.
        if broadcast(sizes[:2]) != sizes[0] or (sizes[1] or [1])[1] == 1 != (sizes[0] or [1])[1]:
            return m.fail("ids and positions have not the same shape")
        return m if all(s == sizes[0] for s in sizes[2:]) else m.fail("ids and segments have not the same shape")

    def rewrite(
        self, op: Any, words: ir.Value, ids: ir.Value, positions: ir.Value, places: ir.Value, segments: Any, kinds: Any,
        s: ir.Value, b: ir.Value, norm: ir.Node,
    ) -> Any:  # fmt: skip
        whole = [
            v if v is None or facts.dtype(v) == ir.DataType.INT32 else op.Cast(v, to=6) for v in (ids, kinds, places)
        ]
        return op.EmbedLayerNormalization(
            whole[0], whole[1], words, positions, segments, s, b, None, whole[2],
            epsilon=facts.attr(norm, "epsilon", 1e-5), _domain="com.microsoft", _outputs=2,
        )[0]  # fmt: skip


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [
        *(LayerNormFusion(form) for form in range(8)),
        *(RMSNormFusion(form) for form in range(8)),
        *(NormScaleFusion(op_type) for op_type in ("LayerNormalization", "RMSNormalization")),
        NormBiasFusion(),
        *(EmbedLayerNormFusion(form) for form in ("segments first", "segments last", "")),
        *(SkipLayerNormFusion(op_type) for op_type in ("LayerNormalization", "RMSNormalization")),
    ]
