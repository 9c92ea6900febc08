"""Conv and ConvTranspose take in what is linear around them: BatchNormalization, Mul, Div, Add, Sub, Pad."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts
from gpurt.optimizer.rewrite import MatchResult, RewriteRule
from gpurt.optimizer.rules.weights import Affine, along, batch_norm, exact, is_exact, rounded


def _channels(conv: ir.Node) -> int:
    w = facts.array(conv.inputs[1])
    assert w is not None, "the weights were checked"
    return int(w.shape[0] if conv.op_type == "Conv" else w.shape[1] * facts.attr(conv, "group", 1))


def _scaled(conv: ir.Node, scale: np.ndarray) -> np.ndarray | None:
    """The weights with every output channel multiplied by a factor."""
    w = exact(conv.inputs[1])
    assert w is not None, "the weights were checked"
    assert conv.inputs[1] is not None, "a convolution has weights"
    if conv.op_type == "Conv":
        return rounded(w * scale.reshape(-1, *(1,) * (w.ndim - 1)), conv.inputs[1], 0)
    group = facts.attr(conv, "group", 1)  # weights are [in, out / group, ...]; the groups follow one another in both
    grouped = w.reshape(group, w.shape[0] // group, *w.shape[1:]) * scale.reshape(group, 1, -1, *(1,) * (w.ndim - 2))
    return rounded(grouped.reshape(w.shape), conv.inputs[1])


def _fits(m: MatchResult, w: ir.Value, b: ir.Value | None) -> MatchResult:
    if not is_exact(w):
        return m.fail("the weights are not constant floats")
    return m if b is None or is_exact(b) else m.fail("the bias is not constant")


class _IntoConv(RewriteRule, ABC):
    """What follows a convolution and is ``y * scale + shift`` for each channel becomes part of its weights."""

    why = "fused into the convolution before it"

    def __init__(self, conv_type: str, op_type: str) -> None:
        self._conv_type, self._op_type = conv_type, op_type
        super().__init__()

    @abstractmethod
    def affine(self, conv: ir.Node, op: ir.Node, c: ir.Value | None) -> Affine | None:
        """What is done to each channel; None where it is not the same for all elements of a channel."""

    def check(self, m: MatchResult, w: ir.Value, b: ir.Value | None, conv: ir.Node, node: ir.Node, c: Any) -> Any:
        if not _fits(m, w, b):
            return m
        return m if self.affine(conv, node, c) is not None else m.fail("it is not a constant for each channel")

    def rewrite(
        self, op: Any, x: ir.Value, w: ir.Value, b: ir.Value | None, conv: ir.Node, node: ir.Node, c: Any
    ) -> Any:
        done = self.affine(conv, node, c)
        assert done is not None, "the condition was checked"
        before = exact(b) if b is not None else np.zeros(_channels(conv))
        assert before is not None, "the bias was checked"
        weights, bias = _scaled(conv, done.scale), rounded(before * done.scale + done.shift, w)
        if weights is None or bias is None:
            return None
        same = np.all(done.scale == 1)  # an addition alone leaves the weights to be shared
        kernel = w if same else op.constant(weights, name=f"{w.name}_fused")
        return getattr(op, self._conv_type)(x, kernel, op.constant(bias, name=f"{conv.name}_bias"), _like=conv)


class ConvBNFusion(_IntoConv):
    """BatchNormalization(Conv(x, w, b)) -> Conv(x, w', b')."""

    name = "ConvBNFusion"

    def pattern(self, op: Any, x: Any, w: Any, b: Any, c: Any, bias: Any, mean: Any, var: Any) -> Any:
        y = getattr(op, self._conv_type)(x, w, b, _name="conv")
        return op.BatchNormalization(y, c, bias, mean, var, _name="node")

    def affine(self, conv: ir.Node, op: ir.Node, c: ir.Value | None) -> Affine | None:  # noqa: ARG002 - as declared
        return batch_norm(op)


class _Arithmetic(_IntoConv):
    """An operator of two operands, the second a constant for each channel."""

    def pattern(self, op: Any, x: Any, w: Any, b: Any, c: Any) -> Any:
        return getattr(op, self._op_type)(getattr(op, self._conv_type)(x, w, b, _name="conv"), c, _name="node")


class ConvMulFusion(_Arithmetic):
    """Mul(Conv(x, w, b), c), Div(Conv(x, w, b), c) -> Conv(x, w', b')."""

    name = "ConvMulFusion"

    def affine(self, conv: ir.Node, op: ir.Node, c: ir.Value | None) -> Affine | None:
        w = facts.array(conv.inputs[1])
        factor = along(c, 1, w.ndim, _channels(conv)) if w is not None else None
        if factor is None or (op.op_type == "Div" and not factor.all()):
            return None
        return Affine(factor if op.op_type == "Mul" else 1 / factor, np.zeros_like(factor))


class ConvAddFusion(_Arithmetic):
    """Add(Conv(x, w, b), c), Sub(Conv(x, w, b), c) -> Conv(x, w, b')."""

    name = "ConvAddFusion"

    def affine(self, conv: ir.Node, op: ir.Node, c: ir.Value | None) -> Affine | None:
        w = facts.array(conv.inputs[1])
        shift = along(c, 1, w.ndim, _channels(conv)) if w is not None else None
        return None if shift is None else Affine(np.ones_like(shift), shift if op.op_type == "Add" else -shift)


class PadFusion(RewriteRule):
    """Conv(Pad(x, zeros)) -> Conv(x) with pads."""

    why = "fused into the convolution after it"

    def pattern(self, op: Any, x: Any, pads: Any, fill: Any, axes: Any, w: Any, b: Any) -> Any:
        return op.Conv(op.Pad(x, pads, fill, axes, mode="constant"), w, b, _name="conv")

    def check(self, m: MatchResult, pads: Any, fill: Any, axes: Any, w: Any, conv: ir.Node) -> MatchResult:
        if fill is not None and facts.scalar(fill) != 0:
            return m.fail("it does not pad with zeros")
        if facts.attr(conv, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return m.fail("the convolution finds its own padding")
        amounts = _per_axis(pads, axes, facts.rank(w))
        if amounts is None:
            return m.fail("the pads or axes are not constant")
        if amounts.min(initial=0) < 0 or amounts[:, :2].any():
            return m.fail("it crops, or pads samples or channels")
        return m

    def rewrite(self, op: Any, x: ir.Value, pads: Any, axes: Any, w: ir.Value, b: Any, conv: ir.Node) -> Any:
        amounts = _per_axis(pads, axes, facts.rank(w))
        assert amounts is not None, "the pads were checked"
        own = facts.attr(conv, "pads") if facts.attr(conv, "auto_pad", "NOTSET") == "NOTSET" else None
        return op.Conv(x, w, b, _like=conv, pads=_summed(amounts, own).tolist(), auto_pad=None)


class PadPoolFusion(RewriteRule):
    """AveragePool(Pad(x, zeros)), MaxPool(Pad(x, -inf)) -> the pool with pads."""

    name = "PadFusion"
    why = "fused into the pool after it"

    def __init__(self, op_type: str) -> None:
        self._op_type = op_type
        super().__init__()

    def pattern(self, op: Any, x: Any, pads: Any, fill: Any, axes: Any) -> Any:
        return getattr(op, self._op_type)(op.Pad(x, pads, fill, axes, mode="constant"), _name="pool")

    def check(self, m: MatchResult, x: Any, pads: Any, fill: Any, axes: Any, pool: ir.Node) -> MatchResult:
        if (0 if fill is None else facts.scalar(fill)) != (0 if self._op_type == "AveragePool" else -np.inf):
            return m.fail("it does not pad with what the pool pads with")
        own, kernel = facts.attr(pool, "pads"), np.asarray(facts.attr(pool, "kernel_shape"))
        if facts.attr(pool, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or facts.attr(pool, "ceil_mode", 0):
            return m.fail("the pool finds its own padding")
        if self._op_type == "AveragePool" and any(own or ()) and not facts.attr(pool, "count_include_pad", 0):
            return m.fail("the pool does not count its own padding")
        amounts = _per_axis(pads, axes, facts.rank(x))
        if amounts is None:
            return m.fail("the pads or axes are not constant, or the rank of x not known")
        if amounts.min(initial=0) < 0 or amounts[:, :2].any():
            return m.fail("it crops, or pads samples or channels")
        fits = (np.reshape(_summed(amounts, own), (2, -1)) < kernel).all()
        return m if fits else m.fail("the padding is as wide as the kernel")

    def rewrite(self, op: Any, x: ir.Value, pads: Any, axes: Any, pool: ir.Node) -> Any:
        amounts = _per_axis(pads, axes, facts.rank(x))
        assert amounts is not None, "the pads were checked"
        total = _summed(amounts, facts.attr(pool, "pads")).tolist()
        counted = {"count_include_pad": 1} if self._op_type == "AveragePool" else {}
        return getattr(op, self._op_type)(x, _like=pool, pads=total, auto_pad=None, **counted)


def _summed(amounts: np.ndarray, own: list[int] | None) -> np.ndarray:
    """Padding of the axes of an image, and the operator's own beside it, in the order of the attribute."""
    flat: np.ndarray = amounts[:, 2:].reshape(-1)
    return flat if not own else flat + np.asarray(own)


def _per_axis(pads: ir.Value, axes: ir.Value | None, rank: int | None) -> np.ndarray | None:
    """Padding as an array of [begin or end, axis]; None where it is not known."""
    amounts, where = facts.ints(pads), facts.ints(axes)
    if amounts is None or rank is None or rank < 3 or (axes is not None and where is None):
        return None
    result = np.zeros((2, rank), np.int64)
    result[:, where if where is not None else range(rank)] = np.reshape(amounts, (2, -1))
    return result


def rules() -> list[RewriteRule]:
    """The rules of this module."""
    made: list[RewriteRule] = [PadFusion(), *(PadPoolFusion(op_type) for op_type in ("AveragePool", "MaxPool"))]
    for conv in ("Conv", "ConvTranspose"):
        made.append(ConvBNFusion(conv, "BatchNormalization"))
        made += [ConvMulFusion(conv, op_type) for op_type in ("Mul", "Div")]
        made += [ConvAddFusion(conv, op_type) for op_type in ("Add", "Sub")]
    return made
