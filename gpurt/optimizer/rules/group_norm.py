"""GroupNormalization (Wu and He 2018), which torch writes as an InstanceNormalization of the groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule
from gpurt.optimizer.rules.weights import along, exact, is_exact, rounded
from gpurt.options import GraphOptimizationLevel


class GroupNormFusion(RewriteRule):
    """Reshape(InstanceNormalization(Reshape(x, [0, groups, -1]), s, b), Shape(x)) -> GroupNormalization(x)."""

    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "fused into a GroupNormalization"

    def pattern(self, op: Any, x: Any, inner: Any, outer: Any, s: Any, b: Any) -> Any:
        groups = op.Reshape(x, inner, _name="groups")
        return op.Reshape(op.InstanceNormalization(groups, s, b, _name="norm"), outer, _name="back")

    def check(
        self, m: MatchResult, x: ir.Value, groups: ir.Node, s: ir.Value, b: ir.Value, back: ir.Node
    ) -> MatchResult:
        if not is_exact(s) or not is_exact(b):
            return m.fail("scale and bias of the groups are not constant")
        whole, flat = facts.symbols(x), facts.symbols(groups.outputs[0])
        if whole is None or len(whole) < 3 or not isinstance(whole[1], int) or None in whole:
            return m.fail("the channels or other dimensions of x are not known")
        if flat is None or len(flat) < 3 or flat[0] != whole[0] or not isinstance(flat[1], int) or not flat[1]:
            return m.fail("samples and groups are not the first axes of the groups")
        if whole[1] % flat[1]:
            return m.fail(f"{whole[1]} channels do not divide into {flat[1]} groups")
        return m if facts.symbols(back.outputs[0]) == whole else m.fail("x does not get its shape back")

    def rewrite(self, op: Any, x: ir.Value, s: ir.Value, b: ir.Value, norm: ir.Node) -> Any:
        scale, bias, dims = facts.array(s), facts.array(b), facts.dims(x)
        assert scale is not None, "the constants were checked"
        assert bias is not None, "the constants were checked"
        assert dims is not None, "the shape was checked"
        each = (dims[1] or 0) // len(scale)
        epsilon = facts.attr(norm, "epsilon", 1e-5)
        return op.GroupNormalization(
            x, np.repeat(scale, each), np.repeat(bias, each), num_groups=len(scale), epsilon=epsilon
        )


class GroupNormAffineFusion(RewriteRule):
    """Mul(GroupNormalization(x, s, b), c), Add(GroupNormalization(x, s, b), c) -> GroupNormalization(x, s', b')."""

    name = "GroupNormAffineFusion"
    level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    why = "fused into the normalization before it"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any, s: Any, b: Any, c: Any) -> Any:
        return getattr(op, self._op_type)(op.GroupNormalization(x, s, b, _name="norm"), c)

    def check(self, m: MatchResult, x: ir.Value, s: ir.Value, b: ir.Value, c: ir.Value) -> MatchResult:
        if not is_exact(s) or not is_exact(b) or facts.dtype(s) != facts.dtype(c):
            return m.fail("the constants of the normalization are not known, or of another type")
        return m if _by_channel(x, s, c) is not None else m.fail("it is not a constant for each channel")

    def rewrite(self, op: Any, x: ir.Value, s: ir.Value, b: ir.Value, c: ir.Value, norm: ir.Node) -> Any:
        scale, bias, factor = exact(s), exact(b), _by_channel(x, s, c)
        assert scale is not None, "the constants were checked"
        assert bias is not None, "the constants were checked"
        assert factor is not None, "the constants were checked"
        made = (scale * factor, bias * factor) if self._op_type == "Mul" else (scale, bias + factor)
        values = [rounded(content, like) for content, like in zip(made, (s, b), strict=True)]
        if any(v is None for v in values):
            return None
        return op.GroupNormalization(x, *(op.constant(v, name=f"{norm.name}_fused") for v in values), _like=norm)


def _by_channel(x: ir.Value, s: ir.Value, c: ir.Value) -> np.ndarray | None:
    rank, sizes = facts.rank(x), facts.shape(s)
    return None if rank is None or sizes is None or len(sizes) != 1 else along(c, 1, rank, sizes[0])


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [GroupNormFusion(), *(GroupNormAffineFusion(op_type) for op_type in ("Mul", "Add"))]
