"""Operators that are told axes: the axes are others in a turned value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gpurt.graph.channels_last import to_last
from gpurt.layout.turn import (
    Data,
    Made,
    Operand,
    Step,
    Turn,
    order_after,
    place,
    places,
    rank_of,
    rest,
    rule,
    turned,
    whole_axes,
)
from gpurt.optimizer import facts


def _constant(axes: Sequence[int]) -> np.ndarray:
    return np.array(axes, np.int64)


@rule("Concat")
def concat(node: ir.Node) -> Turn | None:
    rank = rank_of(node.outputs[0])
    if not rank or any(facts.rank(v) != rank for v in node.inputs):
        return None
    inputs: list[Operand] = []
    for value in node.inputs:
        content = facts.array(value)
        inputs.append(Data(value) if content is None else _permuted(content))  # type: ignore[arg-type]
    if not any(isinstance(i, Data) for i in inputs):
        return None
    return Turn([Step("Concat", inputs, {"axis": place(facts.attr(node, "axis"), rank)}, like=node)])


def _permuted(content: np.ndarray) -> np.ndarray:
    made = turned(content, content.ndim)
    return made.reshape((1,) * (content.ndim - made.ndim) + made.shape)


_AXIS = {"ArgMax": 0, "ArgMin": 0, "Hardmax": -1, "LogSoftmax": -1, "Softmax": -1, "Split": 0}


@rule("Hardmax", "LogSoftmax", "Softmax", "Split")
def along(node: ir.Node) -> Turn | None:
    x, rank = node.inputs[0], rank_of(node.inputs[0])
    if x is None or not rank:
        return None
    axis = place(facts.attr(node, "axis", _AXIS[node.op_type]), rank)
    return Turn([Step(node.op_type, [Data(x), *rest(node)], {"axis": axis}, like=node)])


@rule("CumSum")
def cumsum(node: ir.Node) -> Turn | None:
    x, rank, axis = node.inputs[0], rank_of(node.inputs[0]), facts.scalar(node.inputs[1])
    if x is None or not rank or axis is None:
        return None
    return Turn([Step("CumSum", [Data(x), np.array(place(axis, rank), np.int64)], like=node)])


@rule("ArgMax", "ArgMin")
def arg(node: ir.Node) -> Turn | None:
    x, rank = node.inputs[0], rank_of(node.inputs[0])
    if x is None or not rank:
        return None
    axis = facts.attr(node, "axis", 0)
    after = True if facts.attr(node, "keepdims", 1) else order_after({axis % rank}, rank)
    if after is None:
        return None
    return Turn([Step(node.op_type, [Data(x)], {"axis": place(axis, rank)}, like=node)], exit=not after)


@rule(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduce(node: ir.Node) -> Turn | None:
    x, rank, given = node.inputs[0], rank_of(node.inputs[0]), facts.given(node, 1)
    axes = facts.ints(given) if given is not None else []
    if x is None or not rank or axes is None:
        return None
    if not axes and facts.attr(node, "noop_with_empty_axes", 0):
        return Turn([Step(node.op_type, [Data(x), *rest(node)], like=node)])
    gone = {a % rank for a in axes} or set(range(rank))
    after = True if facts.attr(node, "keepdims", 1) else order_after(gone, rank)
    if after is None:
        return None
    inputs: list[Operand] = [Data(x), _constant(sorted(places(sorted(gone), rank)))]
    return Turn([Step(node.op_type, inputs, like=node)], exit=not after)


@rule("Squeeze")
def squeeze(node: ir.Node) -> Turn | None:
    x, rank = node.inputs[0], rank_of(node.inputs[0])
    axes = facts.ints(facts.given(node, 1))
    after = order_after({a % rank for a in axes}, rank) if rank and axes else None
    if x is None or axes is None or after is None:
        return None
    return Turn([Step("Squeeze", [Data(x), _constant(sorted(places(axes, rank)))], like=node)], exit=not after)


@rule("Slice")
def slice_(node: ir.Node) -> Turn | None:
    x, rank, given = node.inputs[0], rank_of(node.inputs[0]), facts.given(node, 3)
    count = facts.shape(node.inputs[1])
    axes = facts.ints(given) if given is not None else None if count is None else list(range(count[0]))
    if x is None or not rank or axes is None:
        return None
    inputs = [Data(x), node.inputs[1], node.inputs[2], _constant(places(axes, rank)), *rest(node, 4)]
    return Turn([Step("Slice", inputs, like=node)])


@rule("Pad")
def pad(node: ir.Node) -> Turn | None:
    x, rank, given = node.inputs[0], rank_of(node.inputs[0]), facts.given(node, 3)
    axes = facts.ints(given) if given is not None else list(range(rank))
    if x is None or not rank or axes is None:
        return None
    pads = facts.array(node.inputs[1])
    if given is None and pads is not None and pads.size == 2 * rank:
        both = pads.reshape(2, rank)[:, to_last(rank)]
        inputs: list[Operand] = [Data(x), both.reshape(-1), facts.given(node, 2)]
    else:
        inputs = [Data(x), node.inputs[1], facts.given(node, 2), _constant(places(axes, rank))]
    return Turn([Step("Pad", inputs, like=node)])


@rule("Expand")
def expand(node: ir.Node) -> Turn | None:
    x, rank, target = node.inputs[0], rank_of(node.inputs[0]), facts.ints(node.inputs[1])
    if x is None or not rank or target is None or len(target) > rank:
        return None
    wide = [1] * (rank - len(target)) + target
    return Turn([Step("Expand", [Data(x), _constant([wide[a] for a in to_last(rank)])], like=node)])


@rule("Tile")
def tile(node: ir.Node) -> Turn | None:
    x, rank, repeats = node.inputs[0], rank_of(node.inputs[0]), facts.ints(node.inputs[1])
    if x is None or not rank or repeats is None or len(repeats) != rank:
        return None
    return Turn([Step("Tile", [Data(x), _constant([repeats[a] for a in to_last(rank)])], like=node)])


@rule("Gather")
def gather(node: ir.Node) -> Turn | None:
    x, rank = node.inputs[0], rank_of(node.inputs[0])
    count = facts.rank(node.inputs[1])
    if x is None or not rank or count not in (0, 1):
        return None
    axis = facts.attr(node, "axis", 0) % rank
    after = True if count == 1 else order_after({axis}, rank)
    if after is None:
        return None
    return Turn([Step("Gather", [Data(x), node.inputs[1]], {"axis": place(axis, rank)}, like=node)], exit=not after)


@rule("Shape")
def shape(node: ir.Node) -> Turn | None:
    """The sizes in the order of the model's own layout: no data is looked at."""
    x, rank = node.inputs[0], rank_of(node.inputs[0])
    if x is None or not rank:
        return None
    start, end = facts.attr(node, "start", 0), facts.attr(node, "end")
    wanted = whole_axes(rank)[slice(start, end)]
    sizes = Step("Shape", [Data(x)], rank=1, dtype=np.dtype(np.int64))
    return Turn([sizes, Step("Gather", [Made(0), _constant(wanted)], {"axis": 0})], exit=True, shapes=True)


@rule("Size")
def size(node: ir.Node) -> Turn | None:
    x = node.inputs[0]
    return Turn([Step("Size", [Data(x)], like=node)], exit=True, shapes=True) if x is not None and rank_of(x) else None
