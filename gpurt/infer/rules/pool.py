"""Pools over windows, over the whole plane and over regions of interest."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import I64, Inputs, ints, like, need, optional
from gpurt.infer.shapes import Shape, conv_geometry, text, window_arguments
from gpurt.infer.table import rule
from gpurt.spec import Spec


def pool_shape(node: NodeView, x: Spec) -> Shape:
    """Shape of a pool of NCHW data by the node's kernel_shape, strides, dilations, pads, auto_pad and ceil_mode."""
    if x.rank < 3:
        raise ValueError(f"{node.op}: X {text(x.shape)} has no spatial axes")
    spatial, _, _ = conv_geometry(
        x.shape[2:],
        node.attr("kernel_shape"),
        node.attr("strides"),
        node.attr("dilations"),
        node.attr("pads"),
        node.attr("auto_pad", "NOTSET"),
        bool(node.attr("ceil_mode", 0)),
    )
    return (*x.shape[:2], *spatial)


@rule("AveragePool", "LpPool")
def pool(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x, pool_shape(node, x))]


@rule("MaxPool")
def max_pool(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    shape = pool_shape(node, x)
    return [like(x, shape), Spec(I64, shape)]


@rule("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
def global_pool(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if x.rank < 2:
        raise ValueError(f"{node.op}: X {text(x.shape)} has no channels")
    return [like(x, (*x.shape[:2], *(1,) * (x.rank - 2)))]


@rule("MaxUnpool")
def max_unpool(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if optional(inputs, 2) is not None:
        return [like(x, ints(node, inputs, 2, "output_shape"))]
    kernel, rank = node.attr("kernel_shape"), x.rank - 2
    strides, _, pads = window_arguments(rank, node.attr("strides"), None, node.attr("pads"))
    spatial = ((x.shape[2 + i] - 1) * strides[i] + kernel[i] - pads[i] - pads[rank + i] for i in range(rank))
    return [like(x, (*x.shape[:2], *spatial))]


@rule("MaxRoiPool")
def max_roi_pool(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, rois = need(node, inputs, 0), need(node, inputs, 1)
    return [like(x, (rois.shape[0], x.shape[1], *node.attr("pooled_shape")))]


@rule("RoiAlign")
def roi_align(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, rois = need(node, inputs, 0), need(node, inputs, 1)
    if x.rank != 4 or rois.rank != 2:
        raise ValueError(f"RoiAlign: X {text(x.shape)} and rois {text(rois.shape)} must have ranks 4 and 2")
    return [like(x, (rois.shape[0], x.shape[1], node.attr("output_height", 1), node.attr("output_width", 1)))]
