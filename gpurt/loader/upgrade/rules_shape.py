"""Upgrades of operators that move data: attributes that became inputs, names that changed."""

from __future__ import annotations

import numpy as np

from gpurt.errors import InvalidGraph
from gpurt.loader.upgrade.registry import upgrade
from gpurt.loader.upgrade.site import Site

_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
               "ReduceProd", "ReduceSumSquare")  # fmt: skip


@upgrade("Squeeze", "Unsqueeze", "ReduceSum", upto=12)
@upgrade(*_REDUCTIONS, upto=17)
def axes_to_input(at: Site) -> None:
    """``op(x; axes) -> op(x, axes)``."""
    axes = at.pop("axes")
    if axes is not None:
        at.set_inputs(at.need(0), at.ints(list(axes), "axes"))


@upgrade("Slice", upto=9)
def slice_attributes(at: Site) -> None:
    """``Slice(x; starts, ends, axes) -> Slice(x, starts, ends, axes)``."""
    starts, ends, axes = at.pop("starts"), at.pop("ends"), at.pop("axes")
    if starts is None or ends is None or len(starts) != len(ends):
        raise InvalidGraph("starts and ends do not belong together", node=at.node.name, op="Slice")
    at.set_inputs(
        at.need(0),
        at.ints(list(starts), "starts"),
        at.ints(list(ends), "ends"),
        at.ints(list(axes if axes is not None else range(len(starts))), "axes"),
    )


@upgrade("Split", upto=1)
def split_input(at: Site) -> None:
    """``Split-1(x, split) -> Split(x, Cast(split))``: the sizes had the element type of x."""
    sizes = at.input(1)
    if sizes is not None:
        at.set_inputs(at.need(0), at.op("Cast", [sizes], to=7))


@upgrade("Split", upto=12)
def split_attribute(at: Site) -> None:
    """``Split(x; split) -> Split(x, split)``; without sizes, the next rule states the number of parts."""
    sizes = at.pop("split")
    if sizes is not None and at.input(1) is None:
        at.set_inputs(at.need(0), at.ints(list(sizes), "split"))


@upgrade("Split", upto=17)
def split_count(at: Site) -> None:
    """``Split(x) -> Split(x; num_outputs)``: how many parts, which was left to the number of outputs."""
    if at.input(1) is None:
        at.set(num_outputs=len(at.node.outputs))


@upgrade("Pad", upto=1)
def pad_name(at: Site) -> None:
    """``Pad(x; paddings) -> Pad(x; pads)``."""
    pads = at.pop("paddings")
    if pads is not None:
        at.set(pads=list(pads))


@upgrade("Pad", upto=10, types=True)
def pad_attributes(at: Site) -> None:
    """``Pad(x; pads, value) -> Pad(x, pads, value)``."""
    x, pads, value = at.need(0), at.pop("pads"), at.pop("value", 0.0)
    if pads is None:
        raise InvalidGraph("attribute 'pads' is missing", node=at.node.name, op="Pad")
    at.set_inputs(x, at.ints(list(pads), "pads"), at.scalar_like(value, "value", x) if value else None)


@upgrade("Reshape", upto=4)
def reshape_attribute(at: Site) -> None:
    """``Reshape(x; shape) -> Reshape(x, shape)``."""
    shape = at.pop("shape")
    if shape is not None:
        at.set_inputs(at.need(0), at.ints(list(shape), "shape"))


@upgrade("Concat", upto=3)
def concat_axis(at: Site) -> None:
    """The axis was 1 where it was not given."""
    at.set(axis=at.attr("axis", 1))


@upgrade("Tile", upto=5, types=True)
def tile_axis(at: Site) -> None:
    """``Tile(x, tiles, axis) -> Tile(x, repeats)``."""
    x, tiles, axis = at.need(0), at.need(1), at.need(2)
    rank, times, where = at.rank(x), at.known(tiles), at.known(axis)
    if rank is not None and times is not None and where is not None:
        repeats = np.ones(rank, np.int64)
        repeats[int(where.reshape(-1)[0])] = int(times.reshape(-1)[0])
        at.set_inputs(x, at.const(repeats, "repeats"))
        return
    one = at.ints([1], "one")
    ones = at.op("Expand", [one, at.op("Shape", [at.op("Shape", [x])])])
    index, update = (at.op("Cast", [at.op("Reshape", [value, one]), ], to=7) for value in (axis, tiles))  # fmt: skip
    at.set_inputs(x, at.op("ScatterElements", [ones, index, update], axis=0))


@upgrade("TopK", upto=9)
def top_k(at: Site) -> None:
    """``TopK(x; k) -> TopK(x, [k])``."""
    k = at.pop("k")
    if k is not None:
        at.set_inputs(at.need(0), at.ints([k], "k"))


@upgrade("Scatter", upto=10_000)
def scatter(at: Site) -> None:
    """``Scatter -> ScatterElements``, its new name."""
    at.rename("ScatterElements")


# OneHot-9 said that negative indices give no one; ONNX Runtime counts them from the end in every opset, and so do we.
