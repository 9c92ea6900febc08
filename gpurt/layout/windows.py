"""Convolutions, pools, normalizations along channels, and resizing."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from gpurt.graph.channels_last import DOMAIN
from gpurt.layout.reshapes import rearranged, tokens
from gpurt.layout.turn import Data, Made, Operand, Step, Turn, rank_of, rest, rule, whole_axes
from gpurt.optimizer import facts


@rule("Conv", "MaxPool", "AveragePool", "LpPool")
def window(node: ir.Node) -> Turn | None:
    x = node.inputs[0]
    if x is None or not rank_of(x) or any(facts.wanted(v) for v in node.outputs[1:] if not facts.absent(v)):
        return None  # MaxPool's indices count in the model's own layout
    if facts.attr(node, "storage_order", 0):
        return None
    return Turn([Step(node.op_type, [Data(x), *rest(node)], domain=DOMAIN, like=node)])


@rule("ConvTranspose")
def conv_transpose(node: ir.Node) -> Turn | None:
    found = window(node)
    return None if found is None else Turn(found.steps, instead=_apart(node))


def _apart(node: ir.Node) -> Turn | None:
    """A ConvTranspose whose windows do not meet: a convolution of size one makes a block of pixels out of each."""
    x, weights, bias = node.inputs[0], facts.array(node.inputs[1]), facts.given(node, 2)
    shift, sizes = facts.array(bias), tokens(x)
    if x is None or weights is None or sizes is None or (bias is not None and shift is None):
        return None
    depth, filters, *kernel = weights.shape
    moved = [*(facts.attr(node, n) or [0] for n in ("pads", "output_padding"))]
    if facts.attr(node, "group", 1) != 1 or (facts.attr(node, "strides") or [1]) != kernel or any(map(any, moved)):
        return None
    if max(facts.attr(node, "dilations") or [1]) > 1 or facts.attr(node, "output_shape") is not None:
        return None
    if facts.attr(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    count, blocks = len(kernel), math.prod(kernel)
    matrix = np.moveaxis(weights, (0, 1), (-1, -2)).reshape(blocks * filters, depth, *[1] * count)
    operands: list[Operand] = [Data(x), np.ascontiguousarray(matrix)]
    if shift is not None:
        operands.append(np.tile(shift, blocks))
    product = Step("Conv", operands, domain=DOMAIN, rank=count + 2)
    parts = [sizes[0], *kernel, filters, *sizes[2:]]
    places = range(count + 2, 2 * count + 2)
    ins = [[0], list(range(1, count + 2)), *([p] for p in places)]
    outs = [[0], [count + 1], *([p, 1 + i] for i, p in enumerate(places))]
    return rearranged(Made(0), parts, ins, outs, [product])


@rule("GroupNormalization", "InstanceNormalization", "LRN")
def normalization(node: ir.Node) -> Turn | None:
    x = node.inputs[0]
    if x is None or not rank_of(x):
        return None
    return Turn([Step(node.op_type, [Data(x), *rest(node)], domain=DOMAIN, like=node)])


_GLOBAL = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}


@rule(*_GLOBAL, "GlobalLpPool")
def global_pool(node: ir.Node) -> Turn | None:
    x, rank = node.inputs[0], rank_of(node.inputs[0])
    reduction = _GLOBAL.get(node.op_type) or {1: "ReduceL1", 2: "ReduceL2"}.get(facts.attr(node, "p", 2))
    if x is None or not rank or reduction is None:
        return None
    axes = np.arange(1, rank - 1, dtype=np.int64)
    return Turn([Step(reduction, [Data(x), axes], {"keepdims": 1})])


@rule("Resize")
def resize(node: ir.Node) -> Turn | None:
    """Sizes, scales and the region stay as they are; the attribute says to which axes they belong."""
    x, rank = node.inputs[0], rank_of(node.inputs[0])
    if x is None or not rank:
        return None
    given = facts.attr(node, "axes")
    everywhere = whole_axes(rank)
    axes = everywhere if given is None else [everywhere[a] for a in given]
    return Turn([Step("Resize", [Data(x), *rest(node)], {"axes": axes}, like=node)])
