"""Einsum (ONNX 12): operands are joined from left to right, each pair by one product over batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.gemm import gemm
from gpurt.device.ops.matrices import Mat, dense_strides
from gpurt.device.table import op
from gpurt.graph.view import NodeView
from gpurt.provider import Refused

TYPES = "float32 float16 double int32 int64 uint32 uint64"


def _terms(equation: str) -> tuple[list[str], str | None]:
    left, arrow, right = equation.replace(" ", "").partition("->")
    return left.split(","), right if arrow else None


def _check(node: NodeView, _: DeviceInfo) -> str | None:
    terms, result = _terms(node.attr("equation"))
    if any(len(set(t)) != len(t) for t in (s.replace("...", "") for s in (*terms, result or ""))):
        return f"Einsum {node.attr('equation')!r} repeats an index within a term"
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Term:
    """A dense tensor and the labels of its dimensions."""

    ref: Ref
    labels: str

    def strides(self) -> dict[str, int]:
        return dict(zip(self.labels, dense_strides(self.ref.shape), strict=True))


def parse(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[str], str, dict[str, int]]:
    """Labels of each operand and of the result, the ellipsis spelled out, and the size of each label."""
    terms, result = _terms(equation)
    spread = max((len(s) - len(t) + 3 for t, s in zip(terms, shapes, strict=True) if "..." in t), default=0)
    names = "".join(chr(0x100 + i) for i in range(spread))  # no letter of an equation
    full = []
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        own = len(shape) - len(term) + 3
        labels = term.replace("...", names[spread - own :])
        for label, dim in zip(labels, shape, strict=True):
            if sizes.get(label, 1) == 1:
                sizes[label] = dim
        full.append(labels)
    if result is None:
        letters = [label for labels in full for label in labels if label not in names]
        result = names + "".join(sorted(label for label in set(letters) if letters.count(label) == 1))
    return full, result.replace("...", names), sizes


@op("Einsum", types=TYPES, check=_check)
def einsum(c: Lowering) -> None:
    """Einsum without indices repeated in a term; a label of size 1 in one operand broadcasts."""
    refs = [c.input(i) for i in range(len(c.specs))]
    labels, result, sizes = parse(c.node.attr("equation"), [r.shape for r in refs])
    if c.output().size == 0:
        return
    if any(size == 0 for size in sizes.values()):
        raise Refused("Einsum over a sum of length 0")
    terms = []
    # A label of size 1 changes nothing: the others bring its size, or the result gets it by a view.
    labels = [_pick(own, ref.shape) for ref, own in zip(refs, labels, strict=True)]
    for i, (ref, own) in enumerate(zip(refs, labels, strict=True)):
        term = _Term(ref.view([d for d in ref.shape if d != 1]), own)
        others = set(result).union(*(set(x) for j, x in enumerate(labels) if j != i))
        terms.append(_summed(c, term, [x for x in term.labels if x not in others]))
    wanted = "".join(x for x in result if sizes[x] != 1)
    out = _Term(c.output().view([sizes[x] for x in wanted]), wanted)
    while len(terms) > 2:
        keep = set(wanted).union(*(t.labels for t in terms[2:]))
        both = terms[0].labels + "".join(x for x in terms[1].labels if x not in terms[0].labels)
        now = "".join(x for x in both if x in keep)
        joined = _Term(c.temp(c.output().dtype, [sizes[x] for x in now]), now)
        _join(c, terms[0], terms[1], joined, sizes)
        terms[:2] = [joined]
    if len(terms) == 2:
        _join(c, terms[0], terms[1], out, sizes)
    else:
        _transpose(c, terms[0], wanted, out.ref)


def _pick(labels: str, shape: Sequence[int]) -> str:
    return "".join(x for x, dim in zip(labels, shape, strict=True) if dim != 1)


def _summed(c: Lowering, term: _Term, away: Sequence[str]) -> _Term:
    """The term without labels that nobody else has."""
    if not away:
        return term
    axes = np.array([term.labels.index(x) for x in away], np.int64)
    (ref,) = c.emit("ReduceSum", [term.ref, axes], {"keepdims": 0})
    return _Term(ref, "".join(x for x in term.labels if x not in away))


def _transpose(c: Lowering, term: _Term, order: str, out: Ref | None = None) -> _Term:
    if term.labels == order:
        if out is not None:
            c.copy(out, term.ref)
        return term
    (ref,) = c.emit("Transpose", [term.ref], {"perm": tuple(term.labels.index(x) for x in order)}, out=out)
    return _Term(ref, order)


def _stride(labels: Iterable[str], strides: Mapping[str, int], sizes: Mapping[str, int]) -> int | None:
    """One stride that walks through all labels, the last one fastest; None if there is none."""
    labels = list(labels)
    for outer, inner in pairwise(labels):
        if strides[outer] != strides[inner] * sizes[inner]:
            return None
    return strides[labels[-1]] if labels else 1


def _matrix(c: Lowering, term: _Term, batch: str, rows: str, cols: str, sizes: Mapping[str, int]) -> Mat:
    """The term as matrices over the batch labels, transposed into another memory where strides cannot say it."""
    strides = term.strides()
    row, col = _stride(rows, strides, sizes), _stride(cols, strides, sizes)
    if row is None or col is None:
        term = _transpose(c, term, batch + rows + cols)
        strides = term.strides()
        row, col = _stride(rows, strides, sizes), _stride(cols, strides, sizes)
    assert row is not None
    assert col is not None
    return Mat(term.ref, row, col, tuple(strides[x] for x in batch))


def _join(c: Lowering, a: _Term, b: _Term, out: _Term, sizes: Mapping[str, int]) -> None:
    """Emit out = a * b, summed over the labels that out lacks."""
    wanted = out.labels
    batch = "".join(x for x in wanted if x in a.labels and x in b.labels)
    summed = "".join(x for x in a.labels if x not in wanted)
    rows = "".join(x for x in wanted if x not in b.labels)
    cols = "".join(x for x in wanted if x not in a.labels)
    if not summed or not (rows or cols):
        _multiply(c, a, b, out, summed, sizes)
        return
    if wanted[-1:] and wanted[-1] in rows:  # columns of a product are contiguous
        a, b, rows, cols = b, a, cols, rows
    strides = out.strides()
    target = out
    usable = (not cols or _stride(cols, strides, sizes) == 1) and _stride(rows, strides, sizes) is not None
    if not usable:
        order = batch + rows + cols
        target = _Term(c.temp(out.ref.dtype, [sizes[x] for x in order]), order)
    left = _matrix(c, a, batch, rows, summed, sizes)
    right = _matrix(c, b, batch, summed, cols, sizes)
    y = _matrix(c, target, batch, rows, cols, sizes)
    size = tuple(math.prod(sizes[x] for x in group) for group in (rows, cols, summed))
    gemm(c, left, right, y, (size[0], size[1], size[2]), [sizes[x] for x in batch])
    if target is not out:
        _transpose(c, target, wanted, out.ref)


def _multiply(c: Lowering, a: _Term, b: _Term, out: _Term, summed: str, sizes: Mapping[str, int]) -> None:
    """Elementwise: no label is summed, or there is nothing to share between rows and columns."""
    order = out.labels + summed
    views = []
    for term in (a, b):
        sorted_term = _transpose(c, term, "".join(x for x in order if x in term.labels))
        views.append(sorted_term.ref.view([sizes[x] if x in term.labels else 1 for x in order]))
    if not summed:
        c.emit("Mul", views, out=out.ref)
        return
    (product,) = c.emit("Mul", views)
    axes = np.arange(len(out.labels), len(order), dtype=np.int64)
    c.emit("ReduceSum", [product, axes], {"keepdims": 0}, out=out.ref)
