"""Normalisations and the softmax family: the data keeps its shape, statistics get one of their own."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import F32, Inputs, attr_dtype, like, need
from gpurt.infer.shapes import axis, broadcast, text
from gpurt.infer.table import rule
from gpurt.spec import Spec


@rule("Hardmax", "LogSoftmax", "LpNormalization", "Softmax")
def along_axis(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if x.rank:
        axis(node.attr("axis", -1), x.rank)
    return [like(x)]


@rule("LRN", "MeanVarianceNormalization")
def same(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [like(need(node, inputs, 0))]


def _check_channels(node: NodeView, x: Spec, inputs: Inputs, indices: range) -> None:
    if x.rank < 2 and node.op_type != "BatchNormalization":
        raise ValueError(f"{node.op}: input {text(x.shape)} has no channels")
    channels = x.shape[1] if x.rank > 1 else 1
    for i in indices:
        shape = need(node, inputs, i).shape
        if shape != (channels,):
            raise ValueError(f"{node.op}: input {i} is {text(shape)}, the data has {channels} channels")


@rule("BatchNormalization")
def batch_normalization(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, mean, variance = need(node, inputs, 0), need(node, inputs, 3), need(node, inputs, 4)
    _check_channels(node, x, inputs, range(1, 5))
    return [like(x), like(mean), like(variance)]


@rule("InstanceNormalization", "GroupNormalization")
def channel_normalization(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    _check_channels(node, x, inputs, range(1, 3))
    return [like(x)]


def check_scale(node: NodeView, x: Spec, scale: Spec) -> None:
    """Raise ValueError unless the scale broadcasts to the data."""
    if broadcast(x.shape, scale.shape) != x.shape:
        raise ValueError(f"{node.op}: scale {text(scale.shape)} does not broadcast to X {text(x.shape)}")


@rule("LayerNormalization")
def layer_normalization(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    first = axis(node.attr("axis", -1), x.rank)
    check_scale(node, x, need(node, inputs, 1))
    statistics = Spec(attr_dtype(node, "stash_type", F32), x.shape[:first] + (1,) * (x.rank - first))
    return [like(x), statistics, statistics]


@rule("RMSNormalization")
def rms_normalization(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, scale = need(node, inputs, 0), need(node, inputs, 1)
    axis(node.attr("axis", -1), x.rank)
    check_scale(node, x, scale)
    return [like(x, dtype=scale.dtype)]
