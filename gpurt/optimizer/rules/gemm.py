"""MatMul and Gemm take in what is linear around them: Add, Mul, Div, BatchNormalization, Transpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule
from gpurt.optimizer.rules.weights import along, batch_norm, exact, is_exact, rounded


class MatMulAddFusion(RewriteRule):
    """Add(MatMul(a, b), c) -> Gemm(a, b, c), for matrices."""

    why = "fused into a Gemm"

    def pattern(self, op: Any, a: Any, b: Any, c: Any) -> Any:
        return op.Add(op.MatMul(a, b, _name="product"), c)

    def check(self, m: MatchResult, a: ir.Value, b: ir.Value, c: ir.Value, product: ir.Node) -> MatchResult:
        if facts.rank(a) != 2 or facts.rank(b) != 2 or not facts.is_float(a):
            return m.fail("the factors are not matrices of floats")
        return m.fail("the sum may broadcast the product") if facts.extends(c, product.outputs[0]) else m

    def rewrite(self, op: Any, a: ir.Value, b: ir.Value, c: ir.Value, product: ir.Node) -> Any:
        return op.Gemm(a, b, c, _like=product)


class GemmSumFusion(RewriteRule):
    """Add(Gemm(a, b), c), Sum(Gemm(a, b), c) -> Gemm(a, b, c); with a constant bias already, the two are added up."""

    name = "GemmSumFusion"
    why = "fused into the Gemm before it"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, a: Any, b: Any, before: Any, c: Any) -> Any:
        return getattr(op, self._op_type)(op.Gemm(a, b, before, _name="gemm"), c)

    def check(self, m: MatchResult, before: ir.Value | None, c: ir.Value, gemm: ir.Node) -> MatchResult:
        if facts.extends(c, gemm.outputs[0]):
            return m.fail("the sum may broadcast the product")
        if before is not None and (not is_exact(before) or not is_exact(c)):
            return m.fail("there is a bias already, and not both are constants")
        return m

    def rewrite(self, op: Any, a: ir.Value, b: ir.Value, before: ir.Value | None, c: ir.Value, gemm: ir.Node) -> Any:
        if before is None:
            return op.Gemm(a, b, c, _like=gemm, beta=None)
        one, two = exact(before), exact(c)
        assert one is not None, "the biases were checked"
        assert two is not None, "the biases were checked"
        bias = rounded(facts.attr(gemm, "beta", 1.0) * one + two, c)
        return (
            None if bias is None else op.Gemm(a, b, op.constant(bias, name=f"{gemm.name}_bias"), _like=gemm, beta=None)
        )


class MatMulMulFusion(RewriteRule):
    """Mul(MatMul(a, w), c), Div(MatMul(a, w), c) -> MatMul(a, w'), for constants c of the columns of w."""

    name = "MatMulMulFusion"
    why = "fused into the MatMul before it"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, a: Any, w: Any, c: Any) -> Any:
        return getattr(op, self._op_type)(op.MatMul(a, w, _name="product"), c)

    def check(self, m: MatchResult, a: ir.Value, w: ir.Value, c: ir.Value) -> MatchResult:
        rank = facts.rank(a)
        if not is_exact(w) or facts.rank(w) != 2 or rank is None or rank < 1:
            return m.fail("the second factor is not a constant matrix, or the rank of the first is not known")
        return m if _factor(self._op_type, c, rank, w) is not None else m.fail("it is not a constant for each column")

    def rewrite(self, op: Any, a: ir.Value, w: ir.Value, c: ir.Value, product: ir.Node) -> Any:
        factor, weights = _factor(self._op_type, c, facts.rank(a) or 0, w), exact(w)
        assert factor is not None, "the constants were checked"
        assert weights is not None, "the constants were checked"
        scaled = rounded(weights * factor, w, 1)
        return None if scaled is None else op.MatMul(a, op.constant(scaled, name=f"{w.name}_fused"), _like=product)


def _factor(op_type: str, c: ir.Value, rank: int, w: ir.Value, axis: int = 1) -> np.ndarray | None:
    sizes = facts.shape(w)
    factor = None if sizes is None else along(c, rank - 1, rank, sizes[axis])
    if factor is None or (op_type == "Div" and not factor.all()):
        return None
    return factor if op_type == "Mul" else 1 / factor


class GemmMulFusion(RewriteRule):
    """Mul(Gemm(a, w, b), c), Div(Gemm(a, w, b), c) -> Gemm(a, w', b'), for constants c of the columns."""

    name = "GemmMulFusion"
    why = "fused into the Gemm before it"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, a: Any, w: Any, b: Any, c: Any) -> Any:
        return getattr(op, self._op_type)(op.Gemm(a, w, b, _name="gemm"), c)

    def check(self, m: MatchResult, w: ir.Value, b: ir.Value | None, c: ir.Value, gemm: ir.Node) -> MatchResult:
        if not is_exact(w) or (b is not None and not is_exact(b)):
            return m.fail("the second factor or the bias is not constant")
        factor = _factor(self._op_type, c, 2, w, 0 if facts.attr(gemm, "transB", 0) else 1)
        return m if factor is not None else m.fail("it is not a constant for each column")

    def rewrite(self, op: Any, a: ir.Value, w: ir.Value, b: ir.Value | None, c: ir.Value, gemm: ir.Node) -> Any:
        factor = _factor(self._op_type, c, 2, w, 0 if facts.attr(gemm, "transB", 0) else 1)
        assert factor is not None, "the constants were checked"
        return _scaled_gemm(op, gemm, a, w, b, factor, None)


class MatmulBNFusion(RewriteRule):
    """BatchNormalization(MatMul(a, w)), BatchNormalization(Gemm(a, w, b)) -> Gemm(a, w', b'), for matrices."""

    name = "MatmulBNFusion"
    why = "fused into the product before it"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, a: Any, w: Any, b: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        product = getattr(op, self._op_type)(a, w, b, _name="product")
        return op.BatchNormalization(product, scale, bias, mean, var, _name="bn")

    def check(self, m: MatchResult, a: ir.Value, w: ir.Value, b: ir.Value | None, bn: ir.Node) -> MatchResult:
        if facts.rank(a) != 2 or facts.rank(w) != 2 or not is_exact(w) or (b is not None and not is_exact(b)):
            return m.fail("the factors are not matrices, or the second or the bias is not constant")
        return m if batch_norm(bn) is not None else m.fail("the normalization is not of constants")

    def rewrite(self, op: Any, a: ir.Value, w: ir.Value, b: ir.Value | None, product: ir.Node, bn: ir.Node) -> Any:
        done = batch_norm(bn)
        assert done is not None, "the normalization was checked"
        return _scaled_gemm(op, product, a, w, b, done.scale, done.shift)


def _scaled_gemm(
    op: Any, node: ir.Node, a: ir.Value, w: ir.Value, b: ir.Value | None, scale: np.ndarray, shift: np.ndarray | None
) -> Any:
    """Gemm(a, w, b) * scale + shift, as one Gemm; the numbers belong to the columns."""
    weights, bias = exact(w), exact(b)
    assert weights is not None, "the weights were checked"
    columns = 0 if facts.attr(node, "transB", 0) else 1
    scaled = rounded(weights * (scale if columns else scale[:, None]), w, columns)
    if bias is not None:
        bias = facts.attr(node, "beta", 1.0) * bias * scale
    if shift is not None:
        bias = shift if bias is None else bias + shift
    total = None if bias is None else rounded(bias, w)
    if scaled is None or (bias is not None and total is None):
        return None
    constants = [op.constant(scaled, name=f"{w.name}_fused")]
    if total is not None:
        constants.append(op.constant(total, name=f"{node.name}_bias"))
    return op.Gemm(a, *constants, _like=node, beta=None)


class GemmTransposeFusion(RewriteRule):
    """Gemm(Transpose(a), b, c) -> Gemm(a, b, c) with transA turned round; b alike."""

    name = "GemmTransposeFusion"
    why = "fused into the Gemm after it"
    consumes = False

    def __init__(self, position: int) -> None:
        self._position = position
        super().__init__()

    def pattern(self, op: Any, a: Any, b: Any, c: Any) -> Any:
        turned = [op.Transpose(v, perm=op.attr("perm")) if i == self._position else v for i, v in enumerate((a, b))]
        return op.Gemm(*turned, c, _name="gemm")

    def check(self, m: MatchResult, perm: list[int] | None) -> MatchResult:
        return m if perm in (None, [1, 0]) else m.fail("the transpose moves nothing")

    def rewrite(self, op: Any, a: ir.Value, b: ir.Value, c: ir.Value | None, gemm: ir.Node) -> Any:
        name = ("transA", "transB")[self._position]
        return op.Gemm(a, b, c, _like=gemm, **{name: 0 if facts.attr(gemm, name, 0) else 1})


class MatMulTransposeFusion(RewriteRule):
    """MatMul(Transpose(a), b) -> Gemm(a, b) with transA, for matrices; b alike."""

    name = "MatMulTransposeFusion"
    why = "fused into a Gemm"
    consumes = False

    def __init__(self, position: int) -> None:
        self._position = position
        super().__init__()

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        turned = [op.Transpose(v, perm=op.attr("perm")) if i == self._position else v for i, v in enumerate((a, b))]
        return op.MatMul(*turned, _name="product")

    def check(self, m: MatchResult, a: ir.Value, b: ir.Value, perm: list[int] | None) -> MatchResult:
        if facts.rank(a) != 2 or facts.rank(b) != 2 or not facts.is_float(a):
            return m.fail("the factors are not matrices of floats")
        return m if perm in (None, [1, 0]) else m.fail("the transpose moves nothing")

    def rewrite(self, op: Any, a: ir.Value, b: ir.Value, product: ir.Node) -> Any:
        return op.Gemm(a, b, _like=product, **{("transA", "transB")[self._position]: 1})


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    return [
        *(MatmulBNFusion(op_type) for op_type in ("MatMul", "Gemm")),
        *(MatMulMulFusion(op_type) for op_type in ("Mul", "Div")),
        *(GemmMulFusion(op_type) for op_type in ("Mul", "Div")),
        *(GemmSumFusion(op_type) for op_type in ("Add", "Sum")),
        MatMulAddFusion(),
        *(GemmTransposeFusion(position) for position in (0, 1)),
        *(MatMulTransposeFusion(position) for position in (0, 1)),
    ]
