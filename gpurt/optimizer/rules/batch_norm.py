"""BatchNormalization takes in what scales or shifts its channels further, as Caffe's Scale layers do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule
from gpurt.optimizer.rules.weights import Affine, along, exact, is_exact, rounded


class BatchNormAffineFusion(RewriteRule):
    """Mul, Div, Add or Sub of BatchNormalization(x, scale, bias, mean, var) and a constant for each channel -> one."""

    name = "BatchNormAffineFusion"
    why = "fused into the normalization before it"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any, scale: Any, bias: Any, mean: Any, var: Any, c: Any) -> Any:
        normalized = op.BatchNormalization(x, scale, bias, mean, var, _name="norm")
        return getattr(op, self._op_type)(normalized, c, _name="node")

    def check(
        self, m: MatchResult, x: ir.Value, scale: ir.Value, bias: ir.Value, c: ir.Value, norm: ir.Node
    ) -> MatchResult:
        if facts.attr(norm, "training_mode", 0) or not (is_exact(scale) and is_exact(bias)):
            return m.fail("its scale and bias are not constant")
        found = self._affine(x, scale, c)
        return m if found is not None else m.fail("the operand is not a constant for each channel")

    def rewrite(
        self, op: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, mean: ir.Value, var: ir.Value, c: ir.Value,
        norm: ir.Node,
    ) -> Any:  # fmt: skip
        found, factor, shift = self._affine(x, scale, c), exact(scale), exact(bias)
        assert found is not None, "the operand was checked"
        assert factor is not None, "the scale was checked"
        assert shift is not None, "the bias was checked"
        factor = rounded(factor * found.scale, scale)
        shift = rounded(shift * found.scale + found.shift, bias)
        if factor is None or shift is None:
            return None
        made = (op.constant(factor, name=f"{norm.name}_scale"), op.constant(shift, name=f"{norm.name}_bias"))
        return op.BatchNormalization(x, *made, mean, var, _like=norm)

    def _affine(self, x: ir.Value, scale: ir.Value, c: ir.Value) -> Affine | None:
        """What follows does to each channel; None where it is not the same for all elements of a channel."""
        rank, known = facts.rank(x), facts.array(scale)
        operand = None if rank is None or rank < 2 or known is None else along(c, 1, rank, known.size)
        if operand is None or (self._op_type == "Div" and not operand.all()):
            return None
        one, none = np.ones_like(operand), np.zeros_like(operand)
        by_type = {
            "Mul": lambda: Affine(operand, none),
            "Div": lambda: Affine(1 / operand, none),
            "Add": lambda: Affine(one, operand),
            "Sub": lambda: Affine(one, -operand),
        }
        return by_type[self._op_type]()


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [BatchNormAffineFusion(op_type) for op_type in ("Mul", "Div", "Add", "Sub")]
