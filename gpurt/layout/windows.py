"""Convolutions, pools, normalizations along channels, and resizing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gpurt.graph.channels_last import DOMAIN
from gpurt.layout.turn import Data, Step, Turn, rank_of, rest, rule, whole_axes
from gpurt.optimizer import facts


@rule("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")
def window(node: ir.Node) -> Turn | None:
    x = node.inputs[0]
    if x is None or not rank_of(x) or any(facts.wanted(v) for v in node.outputs[1:] if not facts.absent(v)):
        return None  # MaxPool's indices count in the model's own layout
    if facts.attr(node, "storage_order", 0):
        return None
    return Turn([Step(node.op_type, [Data(x), *rest(node)], domain=DOMAIN, like=node)])


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
