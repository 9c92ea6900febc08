"""What a node costs on a device: its work from shapes, over the device's rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gpurt.graph.view import NodeView
from gpurt.provider import Rates
from gpurt.spec import Spec


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIEWS: Final = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Shape", "Size"})
"""Operators that give their input's memory another shape, or look at nothing but its shape."""

_GEMM: Final = _words(
    "MatMul Gemm MatMulInteger QLinearMatMul FusedMatMul FusedGemm DynamicQuantizeMatMul MatMulIntegerToFloat QGemm "
    "MatMulNBits"
)
_CONV: Final = frozenset({"Conv", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv", "DeformConv"})
_WINDOW: Final = frozenset({"MaxPool", "AveragePool", "LpPool", "QLinearAveragePool", "MaxUnpool", "LRN"})
_MATH: Final = _words(
    "Exp Log Erf Gelu Tanh Sigmoid Softmax LogSoftmax Sin Cos Tan Pow Swish Mish Softplus Elu Selu Celu HardSwish "
    "FastGelu BiasGelu QuickGelu Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Softsign SoftmaxCrossEntropyLoss Mod"
)
_RECURRENT: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}

# NumPy: calls that a node of a kind takes, and how much longer it takes by way of another type.
_CALLS: Final = {"conv": 12, "depthwise": 12, "window": 10, "math": 5, "gemm": 3}
_DETOUR: Final = 5
_QUANTIZED: Final = _words("QuantizeLinear DequantizeLinear DynamicQuantizeLinear")


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one node.

    Attributes:
        kind: which rate it goes by: "gemm", "conv", "depthwise", "window", "math", "data" or "view".
        amount: multiplications and additions, window taps or elements, by kind; 0 for data.
        nbytes: read and written.
        launches: kernels that follow one another.
        narrow: whether it is in a type that NumPy computes by way of others: integers in products, short floats.
    """

    kind: str
    amount: float = 0.0
    nbytes: float = 0.0
    launches: int = 1
    narrow: bool = False

    def seconds(self, rates: Rates) -> float:
        """Estimated run time on a device."""
        if self.kind == "view":
            return rates.view
        speed = getattr(rates, self.kind) if self.kind != "data" else math.inf
        seconds = max(self.amount / speed, self.nbytes / rates.data)
        if not rates.calls:
            return self.launches * rates.launch + seconds
        return self.launches * _CALLS.get(self.kind, 2) * rates.launch + seconds * (_DETOUR if self.narrow else 1)


def work(node: NodeView, ins: Sequence[Spec | None], outs: Sequence[Spec | None]) -> Work:
    """The work of a node; a value without Spec counts nothing."""
    found = _work(node, ins, outs)
    first = ins[0] if ins else None
    product = found.kind in ("gemm", "conv", "depthwise") or node.op_type in _QUANTIZED
    short = first is not None and (first.dtype.kind == "V" or first.dtype == np.float16)
    integer = product and any(s is not None and s.dtype.kind in "iu" for s in (*ins, *outs))
    return replace(found, narrow=True) if short or integer else found


def _work(node: NodeView, ins: Sequence[Spec | None], outs: Sequence[Spec | None]) -> Work:
    nbytes = float(sum(s.nbytes for s in (*ins, *outs) if s is not None))
    size = float(sum(s.size for s in outs if s is not None))
    op = node.op_type
    if op in VIEWS:
        return Work("view")
    if op in _GEMM:
        return Work("gemm", 2.0 * size * _depth(node, ins), nbytes)
    if op in _CONV:
        weight = _weight(node, ins, 3 if op == "QLinearConv" else 1)
        if weight is not None and weight.rank >= 3:
            kind = "depthwise" if weight.shape[1] == 1 and (node.attr("group") or 1) > 1 else "conv"
            return Work(kind, 2.0 * size * math.prod(weight.shape[1:]), nbytes)
    if op == "ConvTranspose":
        weight, source = _weight(node, ins, 1), ins[0]
        if weight is not None and source is not None:
            return Work("conv", 2.0 * source.size * math.prod(weight.shape[1:]), nbytes)
    if op in _RECURRENT:
        return _recurrent(node, ins, nbytes)
    if op == "Einsum":
        return Work("gemm", 2.0 * _einsum(node, ins), nbytes)
    if op in ("Attention", "MultiHeadAttention", "GroupQueryAttention"):
        q, k = ins[0], ins[1] if len(ins) > 1 else None
        if q is not None and k is not None and k.rank >= 2:
            return Work("gemm", 4.0 * q.size * k.shape[-2], nbytes)
    if op in _WINDOW:
        taps = math.prod(node.attr("kernel_shape") or (node.attr("size") or 2,))
        return Work("window", size * taps, nbytes)
    if op in _MATH:
        return Work("math", size, nbytes)
    if op in ("Gather", "GatherND", "Slice", "Split", "GatherElements", "Resize", "Tile", "Expand"):
        nbytes = 2.0 * sum(s.nbytes for s in outs if s is not None)  # only what is kept is read
    return Work("data", 0.0, nbytes)


def _weight(node: NodeView, ins: Sequence[Spec | None], position: int) -> Spec | None:
    return ins[position] if len(node.inputs) > position and len(ins) > position else None


def _depth(node: NodeView, ins: Sequence[Spec | None]) -> int:
    first = ins[0]
    if first is None or not first.rank:
        return 1
    return first.shape[0] if node.attr("transA") and first.rank == 2 else first.shape[-1]


def _recurrent(node: NodeView, ins: Sequence[Spec | None], nbytes: float) -> Work:
    x, w = ins[0], ins[1] if len(ins) > 1 else None
    if x is None or w is None or x.rank != 3 or w.rank != 3:
        return Work("data", 0.0, nbytes)
    hidden = w.shape[1] // _RECURRENT[node.op_type]
    steps = x.shape[1] if node.attr("layout") else x.shape[0]
    rows = x.shape[0] * x.shape[1]
    return Work("gemm", 2.0 * rows * w.shape[0] * w.shape[1] * (w.shape[2] + hidden), nbytes, max(steps, 1))


def _einsum(node: NodeView, ins: Sequence[Spec | None]) -> float:
    terms = str(node.attr("equation") or "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, spec in zip(terms, ins, strict=False):
        letters = term.replace(" ", "")
        if spec is not None and "." not in letters and len(letters) == spec.rank:
            sizes.update(zip(letters, spec.shape, strict=True))
    if sizes:
        return float(math.prod(sizes.values()))
    return float(max((s.size for s in ins if s is not None), default=0))
