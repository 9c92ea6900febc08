"""Gradients of operators that only move elements: the way back is a move too, or a sum over where each one went."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gpurt.autodiff.build import static
from gpurt.autodiff.table import Step, rule

Grads = Sequence[ir.Value | None]


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(c: Step) -> Grads:
    return (c.op("Reshape", c.g, c.build.shape(c.x()), allowzero=1),)


@rule("Transpose")
def transpose(c: Step) -> Grads:
    perm = c.attr("perm")
    if perm is None:
        return (c.op("Transpose", c.g),)
    return (c.op("Transpose", c.g, perm=[list(perm).index(i) for i in range(len(perm))]),)


@rule("Expand")
def expand(c: Step) -> Grads:
    return (c.over(0, c.g),)


@rule("Concat")
def concat(c: Step) -> Grads:
    """Each input takes its part back; the lengths are known when it runs."""
    axis = c.attr("axis")
    lengths = [_length(c, c.x(i), axis) for i in range(len(c.node.inputs))]
    sizes = c.op("Concat", *lengths, axis=0)
    return c.build.ops("Split", c.g, sizes, outputs=len(lengths), axis=axis)


@rule("Split")
def split(c: Step) -> Grads:
    parts = [
        c.build.filled(0, y) if g is None else g
        for y, g in zip(c.node.outputs, _named_or_refused(c), strict=True)
    ]  # fmt: skip
    return (c.op("Concat", *parts, axis=c.attr("axis", 0)),)


def _named_or_refused(c: Step) -> Sequence[ir.Value | None]:
    if any(v.name == "" for v in c.node.outputs):
        c.refuse("an output is left out")
    return c.grads


@rule("Slice")
def slice_(c: Step) -> Grads:
    """Slice with steps of 1 and known bounds -> Pad; any other -> a sum over element numbers."""
    sizes = static(c.x())
    starts, ends, steps = (c.known(i) for i in (1, 2, 4))
    axes = c.known(3)
    unit = c.maybe(4) is None or (steps is not None and bool((steps == 1).all()))
    if sizes is None or starts is None or ends is None or not unit or (c.maybe(3) is not None and axes is None):
        return numbered(c)
    low, high = [0] * len(sizes), [0] * len(sizes)
    for axis, start, end in zip(range(len(starts)) if axes is None else axes.tolist(), starts, ends, strict=True):
        first, last, _ = slice(int(start), int(end)).indices(sizes[axis])
        low[axis], high[axis] = first, sizes[axis] - max(last, first)
    return (c.op("Pad", c.g, c.ints(*low, *high)),)


@rule("Pad")
def pad(c: Step) -> Grads:
    """Constant(x) -> Pad by the negative amounts, which crops; the other modes repeat elements."""
    if c.attr("mode", "constant") != "constant":
        return numbered(c)
    grads: list[ir.Value | None] = [c.op("Pad", c.g, c.op("Neg", c.x(1)), None, c.maybe(3))]
    if 2 in c.wanted:  # the fill takes what the data does not
        rest = c.op("Sub", c.op("ReduceSum", c.g, keepdims=0), c.op("ReduceSum", grads[0], keepdims=0))
        grads += [None, c.op("Reshape", rest, c.op("Shape", c.x(2)))]
    return grads


@rule("DepthToSpace", "SpaceToDepth", "Gather", "GatherElements", "GatherND", "Tile")
def numbered(c: Step) -> Grads:
    """Move the elements' numbers in the same way; then each gradient is added where its number says.

    It serves every operator that copies elements of its first input, however it picks them.
    """
    x = c.x()
    count = c.op("Size", x)
    numbers = c.op("Range", c.build.const(0, "int64"), count, c.build.const(1, "int64"))
    grid = c.op("Reshape", numbers, c.build.shape(x), allowzero=1)
    moved = c.build.clone(c.node, [grid, *c.node.inputs[1:]])[0]
    moved.type = ir.TensorType(ir.DataType.INT64)
    flat = c.op("Reshape", c.build.filled(0, x), c.ints(-1))
    places, parts = c.op("Reshape", moved, c.ints(-1)), c.op("Reshape", c.g, c.ints(-1))
    added = c.op("ScatterElements", flat, places, parts, axis=0, reduction="add")
    return (c.op("Reshape", added, c.build.shape(x), allowzero=1),)


@rule("Trilu")
def trilu(c: Step) -> Grads:
    return (c.op("Trilu", c.g, c.maybe(1), upper=c.attr("upper", 1)),)


def _length(c: Step, x: ir.Value, axis: int) -> ir.Value:
    sizes = static(x)
    if sizes is not None:
        return c.ints(sizes[axis])
    return c.op("Shape", x, start=axis, end=axis + 1 if axis != -1 else None)
