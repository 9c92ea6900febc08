"""Matrix products, Einsum and Det."""

from __future__ import annotations

from collections.abc import Sequence

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import I32, Inputs, like, need, optional
from gpurt.infer.shapes import broadcast, text
from gpurt.infer.table import rule
from gpurt.spec import Spec


def matmul_shape(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """Shape of ``numpy.matmul`` of two shapes. Raises ValueError where the inner dimensions differ."""
    if not a or not b:
        raise ValueError(f"MatMul: inputs {text(a)} and {text(b)} must have a dimension at least")
    left = (1, *a) if len(a) == 1 else tuple(a)
    right = (*b, 1) if len(b) == 1 else tuple(b)
    if left[-1] != right[-2]:
        raise ValueError(f"MatMul: inner dimensions {left[-1]} and {right[-2]} of {text(a)} and {text(b)} differ")
    batch = broadcast(left[:-2], right[:-2])
    return (*batch, *(left[-2:-1] if len(a) > 1 else ()), *(right[-1:] if len(b) > 1 else ()))


@rule("MatMul")
def matmul(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 1)
    return [like(a, matmul_shape(a.shape, b.shape))]


@rule("MatMulInteger")
def matmul_integer(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [Spec(I32, matmul_shape(need(node, inputs, 0).shape, need(node, inputs, 1).shape))]


@rule("QLinearMatMul")
def qlinear_matmul(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 3)
    return [Spec(need(node, inputs, 7).dtype, matmul_shape(a.shape, b.shape))]


def gemm_shape(node: NodeView, a: Spec, b: Spec, c: Spec | None) -> tuple[int, int]:
    """Shape of Gemm by its attributes transA and transB; C must broadcast to it."""
    if a.rank != 2 or b.rank != 2:
        raise ValueError(f"{node.op}: A {text(a.shape)} and B {text(b.shape)} must be matrices")
    m, k = reversed(a.shape) if node.attr("transA", 0) else a.shape
    inner, n = reversed(b.shape) if node.attr("transB", 0) else b.shape
    if k != inner:
        raise ValueError(f"{node.op}: inner dimensions {k} and {inner} of {text(a.shape)} and {text(b.shape)} differ")
    if c is not None and broadcast((m, n), c.shape) != (m, n):
        raise ValueError(f"{node.op}: C {text(c.shape)} does not broadcast to {text((m, n))}")
    return m, n


@rule("Gemm")
def gemm(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 1)
    return [like(a, gemm_shape(node, a, b, optional(inputs, 2)))]


@rule("Det")
def det(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if x.rank < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"Det: {text(x.shape)} holds no square matrices")
    return [like(x, x.shape[:-2])]


def einsum_shape(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Shape of an Einsum; the output is implicit where the equation has no arrow. Raises ValueError on a mismatch."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    operands = terms.split(",")
    if len(operands) != len(shapes):
        raise ValueError(f"Einsum: equation {equation!r} has {len(operands)} terms for {len(shapes)} inputs")
    sizes: dict[str, int] = {}
    ellipsis: tuple[int, ...] = ()
    for term, shape in zip(operands, shapes, strict=True):
        head, dots, tail = term.partition("...")
        spread = len(shape) - len(head) - len(tail)
        if spread < 0 or (spread and not dots):
            raise ValueError(f"Einsum: term {term!r} does not fit the input {text(shape)}")
        ellipsis = broadcast(ellipsis, shape[len(head) : len(head) + spread])
        labels = [*zip(head, shape, strict=False), *zip(tail, shape[len(shape) - len(tail) :], strict=True)]
        for label, dim in labels:
            known = sizes.setdefault(label, dim)
            if known == 1:
                sizes[label] = dim
            elif dim not in {1, known}:
                raise ValueError(f"Einsum: {label!r} is {known} and {dim} in {equation!r}")
    if not arrow:
        letters = terms.replace(".", "").replace(",", "")
        result = "..." * ("..." in terms) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    head, dots, tail = result.partition("...")
    return (*(sizes[c] for c in head), *(ellipsis if dots else ()), *(sizes[c] for c in tail))


@rule("Einsum")
def einsum(node: NodeView, inputs: Inputs) -> list[Spec]:
    specs = [need(node, inputs, i) for i in range(len(inputs))]
    return [like(specs[0], einsum_shape(node.attr("equation"), [spec.shape for spec in specs]))]
