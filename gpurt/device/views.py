"""Tensors seen under other shapes and orders of axes, without moving an element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.movement import Dim, strided_copy, strides
from gpurt.device.table import Lower
from gpurt.graph.view import NodeView
from gpurt.infer import infer
from gpurt.infer.shapes import axis as front
from gpurt.spec import Spec

VIEWS = frozenset({"Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators whose results are views of their first input."""


BESIDE: Final[set[Lower]] = set()
"""The lowerings that can write their result as a part of the last axis of a larger tensor, see row_of."""

RUN: Final = 16
"""Elements side by side from which on a view is read as it is; shorter runs are quicker brought in order first."""


@dataclass(frozen=True, slots=True, eq=False)
class Strided(Ref):
    """A tensor in device memory whose elements do not lie in order: it has a stride, in elements, for each axis."""

    steps: tuple[int, ...] = ()


def whole(ref: Ref) -> Strided:
    """A dense tensor as a view of itself."""
    return ref if isinstance(ref, Strided) else Strided(ref.spec, ref.operand, ref.offset, tuple(strides(ref.shape)))


def row_of(y: Ref) -> int:
    """Elements from one position along the last axis but one to the next: more than the last axis has for a part."""
    return y.steps[-2] if isinstance(y, Strided) else y.shape[-1]


def far(ref: Ref) -> bool:
    """Whether a view has elements before its first, or so far behind it that 32 bits do not tell."""
    if not isinstance(ref, Strided):
        return False
    return min(ref.steps, default=0) < 0 or sum((n - 1) * s for n, s in zip(ref.shape, ref.steps, strict=True)) >= 2**31


def dense(c: Lowering, x: Strided) -> Strided:
    """The same elements in order; they are copied to a workspace unless they lie so already."""
    target = strides(x.shape)
    if all(n == 1 or s == t for n, s, t in zip(x.shape, x.steps, target, strict=True)):
        return x
    made = c.temp(x.dtype, x.shape)
    strided_copy(c, made, x, [Dim(n, s, t) for n, s, t in zip(x.shape, x.steps, target, strict=True)])
    return whole(made)


def seen_through(c: Lowering, nodes: Sequence[NodeView], specs: dict[str, Spec], values: dict[str, Strided]) -> None:
    """Results of nodes of VIEWS, as specs and as views of what is in `values`, which both gain them."""
    for node in nodes:
        numbers = [None if v is None else specs[v.name] for v in node.inputs]
        outs = infer(node, numbers)
        first = node.inputs[0]
        assert first is not None, "what is viewed is there"
        views = viewed(c, node, values[first.name], outs, numbers)
        for v, spec, x in zip(node.outputs, outs, views, strict=False):
            if v is not None:
                specs[v.name], values[v.name] = spec, x


def runs(x: Strided) -> bool:
    """Whether elements lie side by side in runs that are worth to be read where they are."""
    size = 1
    for n, step in zip(reversed(x.shape), reversed(x.steps), strict=True):
        if n != 1 and step != size:
            break
        size *= n
    return size >= RUN or size == x.size


def viewed(
    c: Lowering, node: NodeView, x: Strided, outs: Sequence[Spec], numbers: Sequence[Spec | None]
) -> list[Strided]:
    """The results of an operator of VIEWS.

    Args:
        c: where a copy is emitted if a Reshape needs one.
        node: the operator.
        x: its first input.
        outs: specs of its results.
        numbers: specs of all its inputs, those that say axes and bounds with their content.
    """
    match node.op_type:
        case "Transpose":
            order = [front(int(p), len(x.shape)) for p in node.attr("perm") or reversed(range(len(x.shape)))]
            return [_as(x, outs[0].shape, [x.steps[p] for p in order])]
        case "Split":
            along = front(node.attr("axis", 0), len(x.shape))
            parts, offset = [], 0
            for spec in outs:
                parts.append(_as(x, spec.shape, x.steps, offset * x.steps[along]))
                offset += spec.shape[along]
            return parts
        case "Slice":
            return [_sliced(x, outs[0], numbers)]
    steps = reshaped(x.shape, x.steps, outs[0].shape)
    if steps is None:
        x = dense(c, x)
        steps = strides(outs[0].shape)
    return [_as(x, outs[0].shape, steps)]


def _sliced(x: Strided, out: Spec, numbers: Sequence[Spec | None]) -> Strided:
    given = [None if s is None or s.const is None else [int(v) for v in s.const.reshape(-1)] for s in numbers[1:]]
    starts = given[0] or []
    axes = given[2] if len(given) > 2 and given[2] is not None else list(range(len(starts)))
    every = given[3] if len(given) > 3 and given[3] is not None else [1] * len(starts)
    steps, offset = list(x.steps), 0
    for start, along, step in zip(starts, (front(a, len(x.shape)) for a in axes), every, strict=True):
        size = x.shape[along]
        first = start + size if start < 0 else start
        first = min(max(first, 0), size - 1 if step < 0 else size)
        offset += first * x.steps[along]
        steps[along] = x.steps[along] * step
    return _as(x, out.shape, steps, offset)


def _as(x: Strided, shape: Sequence[int], steps: Sequence[int], offset: int = 0) -> Strided:
    return Strided(Spec(x.dtype, tuple(shape)), x.operand, x.offset + offset, tuple(steps))


def reshaped(shape: Sequence[int], steps: Sequence[int], target: Sequence[int]) -> list[int] | None:
    """Strides of a view under another shape with as many elements; None where it is none."""
    old = [(n, s) for n, s in zip(shape, steps, strict=True) if n != 1]
    result: list[int] = []
    inner = iter(reversed(old))
    size, step = 1, 1  # what is left of the run of axes at hand, and its stride
    for wanted in reversed(target):
        if wanted == 1:
            result.append(step)
            continue
        while size == 1:
            size, step = next(inner, (0, 0))
            if size == 0:
                return None
        while size % wanted:  # the axis goes on in the next outer one, if that lies right
            more, outer = next(inner, (0, 0))
            if more == 0 or outer != size * step:
                return None
            size *= more
        result.append(step)
        size //= wanted
        step *= wanted
    return result[::-1] if size == 1 and next(inner, None) is None else None
