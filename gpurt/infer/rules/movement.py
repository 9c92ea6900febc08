"""Operators that move elements without changing them: reshapes, slices, joins, padding."""

from __future__ import annotations

import math

import numpy as np

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import I64, Inputs, ints, like, need, optional
from gpurt.infer.shapes import Shape, axes, axis, broadcast, text
from gpurt.infer.table import rule
from gpurt.spec import Spec
from gpurt.symbolic import Size


def reshape_shape(shape: Shape, target: Shape, allowzero: bool = False) -> Shape:
    """Concrete shape of a Reshape: 0 copies a dimension unless allowzero, -1 takes what is left over."""
    out = list(target)
    for i, dim in enumerate(target):
        if dim == 0 and not allowzero:
            if i >= len(shape):
                raise ValueError(f"Reshape: 0 at position {i} of {text(target)} has no dimension in {text(shape)}")
            out[i] = shape[i]
    size = math.prod(shape)
    if out.count(-1) == 1:
        rest = -math.prod(out)
        if rest == 0 or size % rest:
            raise ValueError(f"Reshape: {text(shape)} does not fit {text(target)}")
        out[out.index(-1)] = size // rest
    if min(out, default=0) < 0 or math.prod(out) != size:
        raise ValueError(f"Reshape: {text(shape)} does not fit {text(target)}")
    return tuple(out)


@rule("Reshape")
def reshape(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x, reshape_shape(x.shape, ints(node, inputs, 1, "shape"), bool(node.attr("allowzero", 0))))]


@rule("Transpose")
def transpose(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    perm = node.attr("perm")
    order = tuple(reversed(range(x.rank))) if perm is None else axes(perm, x.rank)
    if len(order) != x.rank:
        raise ValueError(f"Transpose: perm {text(order)} does not fit {text(x.shape)}")
    return [like(x, (x.shape[i] for i in order))]


@rule("Flatten")
def flatten(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    at = node.attr("axis", 1)
    at = at if at == x.rank else axis(at, max(x.rank, 1))  # axis == rank is allowed: one column
    return [like(x, (math.prod(x.shape[:at]), math.prod(x.shape[at:])))]


@rule("Squeeze")
def squeeze(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if optional(inputs, 1) is None:
        return [like(x, (dim for dim in x.shape if dim != 1))]
    drop = axes(ints(node, inputs, 1, "axes"), x.rank)
    for a in drop:
        if x.shape[a] != 1:
            raise ValueError(f"Squeeze: axis {a} of {text(x.shape)} is {x.shape[a]}, not 1")
    return [like(x, (dim for i, dim in enumerate(x.shape) if i not in drop))]


@rule("Unsqueeze")
def unsqueeze(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, values = need(node, inputs, 0), ints(node, inputs, 1, "axes")
    new = axes(values, x.rank + len(values))
    old = iter(x.shape)
    return [like(x, (1 if i in new else next(old) for i in range(x.rank + len(new))))]


@rule("Concat")
def concat(node: NodeView, inputs: Inputs) -> list[Spec]:
    specs = [need(node, inputs, i) for i in range(max(len(inputs), 1))]
    first = specs[0]
    along = axis(node.attr("axis"), first.rank)
    for spec in specs[1:]:
        if spec.rank != first.rank or any(
            a != b for i, (a, b) in enumerate(zip(spec.shape, first.shape, strict=True)) if i != along
        ):
            raise ValueError(f"Concat: {text(first.shape)} and {text(spec.shape)} do not join along axis {along}")
    return [like(first, (*first.shape[:along], sum(s.shape[along] for s in specs), *first.shape[along + 1 :]))]


@rule("Split")
def split(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    along = axis(node.attr("axis", 0), x.rank)
    size = x.shape[along]
    parts: tuple[int, ...]
    if optional(inputs, 1) is not None:
        parts = ints(node, inputs, 1, "split")
        if sum(parts) != size:
            raise ValueError(f"Split: parts {text(parts)} do not add up to {size}, axis {along} of {text(x.shape)}")
    else:
        count = node.attr("num_outputs") or len(node.outputs)
        chunk = -(-size // count)  # the last part is the smaller one
        parts = tuple(max(min(chunk, size - i * chunk), 0) for i in range(count))
    return [like(x, (*x.shape[:along], part, *x.shape[along + 1 :])) for part in parts]


def slice_bounds(start: int, end: int, step: int, size: int) -> tuple[int, int, int]:
    """First index, step and count of a Slice along an axis of the given size, after ONNX's clamping."""
    if step == 0:
        raise ValueError("Slice: a step is 0")
    if step == 1 and any(isinstance(n, Size) for n in (start, end, size)):
        first, last = (min(max(n + size if n < 0 else n, 0), size) for n in (start, end))
        return first, 1, max(last - first, 0)
    # Python's slice clamps as ONNX asks, huge sentinels of either sign included.
    picked = range(size)[slice(start, end, step)]
    return picked.start, step, len(picked)


@rule("Slice")
def slice_(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    starts, ends = ints(node, inputs, 1, "starts"), ints(node, inputs, 2, "ends")
    along = axes(range(len(starts)), x.rank)
    if optional(inputs, 3) is not None:
        along = axes(ints(node, inputs, 3, "axes"), x.rank)
    steps = (1,) * len(starts) if optional(inputs, 4) is None else ints(node, inputs, 4, "steps")
    if not len(starts) == len(ends) == len(along) == len(steps):
        raise ValueError(f"Slice: {len(starts)} starts, {len(ends)} ends, {len(along)} axes, {len(steps)} steps")
    shape = list(x.shape)
    for a, start, end, step in zip(along, starts, ends, steps, strict=True):
        shape[a] = slice_bounds(start, end, step, x.shape[a])[2]
    return [like(x, shape)]


@rule("Expand")
def expand(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x, broadcast(x.shape, ints(node, inputs, 1, "shape")))]


@rule("Tile")
def tile(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, repeats = need(node, inputs, 0), ints(node, inputs, 1, "repeats")
    if len(repeats) != x.rank:
        raise ValueError(f"Tile: repeats {text(repeats)} do not fit {text(x.shape)}")
    return [like(x, (dim * n for dim, n in zip(x.shape, repeats, strict=True)))]


@rule("Pad")
def pad(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, pads = need(node, inputs, 0), ints(node, inputs, 1, "pads")
    along = tuple(range(x.rank)) if optional(inputs, 3) is None else axes(ints(node, inputs, 3, "axes"), x.rank)
    if len(pads) != 2 * len(along):
        raise ValueError(f"Pad: {len(pads)} pads for {len(along)} axes of {text(x.shape)}")
    shape = list(x.shape)
    for i, a in enumerate(along):
        shape[a] += pads[i] + pads[len(along) + i]
        if shape[a] < 0:
            raise ValueError(f"Pad: pads {text(pads)} take more than there is of {text(x.shape)}")
    return [like(x, shape)]


@rule("CenterCropPad")
def center_crop_pad(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, target = need(node, inputs, 0), ints(node, inputs, 1, "shape")
    along = axes(node.attr("axes") or range(x.rank), x.rank)
    if len(target) != len(along):
        raise ValueError(f"CenterCropPad: shape {text(target)} for {len(along)} axes")
    shape = list(x.shape)
    for a, dim in zip(along, target, strict=True):
        shape[a] = dim
    return [like(x, shape)]


def _image(node: NodeView, x: Spec) -> tuple[int, int, int, int]:
    if x.rank != 4:
        raise ValueError(f"{node.op}: input {text(x.shape)} must have rank 4")
    n, c, h, w = x.shape
    return n, c, h, w


@rule("DepthToSpace")
def depth_to_space(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    block = node.attr("blocksize")
    n, c, h, w = _image(node, x)
    if c % (block * block):
        raise ValueError(f"DepthToSpace: {c} channels do not divide into blocks of {block}x{block}")
    return [like(x, (n, c // (block * block), h * block, w * block))]


@rule("SpaceToDepth")
def space_to_depth(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    block = node.attr("blocksize")
    n, c, h, w = _image(node, x)
    if h % block or w % block:
        raise ValueError(f"SpaceToDepth: {h}x{w} does not divide into blocks of {block}x{block}")
    return [like(x, (n, c * block * block, h // block, w // block))]


@rule("Trilu", "ReverseSequence")
def same_layout(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if x.rank < 2:
        raise ValueError(f"{node.op}: input {text(x.shape)} must have rank 2 or more")
    return [like(x)]


@rule("Shape")
def shape_of(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [Spec.of(np.array(x.shape[slice(node.attr("start", 0), node.attr("end"))], I64))]


@rule("Size")
def size_of(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [Spec.of(np.array(need(node, inputs, 0).size, I64))]
