"""Convolutions: Conv and its quantized, transposed, deformable and stateful forms, and Col2Im."""

from __future__ import annotations

import math

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import I32, Inputs, ints, like, need
from gpurt.infer.shapes import Shape, conv_geometry, conv_transpose_geometry, text, window_arguments
from gpurt.infer.table import rule
from gpurt.spec import Spec


def conv_shape(node: NodeView, x: Spec, w: Spec, name: str = "X") -> Shape:
    """Shape of a Conv of NCHW data. Raises ValueError where channels, groups and kernel do not fit."""
    group = node.attr("group", 1)
    if x.rank < 3 or w.rank != x.rank:
        raise ValueError(f"{node.op}: {name} {text(x.shape)} and W {text(w.shape)} must have the same rank, 3 or more")
    if x.shape[1] != w.shape[1] * group:
        raise ValueError(
            f"{node.op}: {name} has {x.shape[1]} channels, W expects {w.shape[1]} per group x {group} "
            + ("group" if group == 1 else "groups")
        )
    if w.shape[0] % group:
        raise ValueError(f"{node.op}: {w.shape[0]} output channels do not divide into {group} groups")
    kernel = node.attr("kernel_shape") or w.shape[2:]
    if tuple(kernel) != w.shape[2:]:
        raise ValueError(f"{node.op}: kernel_shape {text(kernel)} is not that of W {text(w.shape)}")
    spatial, _, _ = conv_geometry(
        x.shape[2:],
        kernel,
        node.attr("strides"),
        node.attr("dilations"),
        node.attr("pads"),
        node.attr("auto_pad", "NOTSET"),
    )
    return (x.shape[0], w.shape[0], *spatial)


@rule("Conv")
def conv(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w = need(node, inputs, 0), need(node, inputs, 1)
    return [like(x, conv_shape(node, x, w))]


@rule("ConvInteger")
def conv_integer(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w = need(node, inputs, 0), need(node, inputs, 1)
    return [Spec(I32, conv_shape(node, x, w, "x"))]


@rule("QLinearConv")
def qlinear_conv(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w = need(node, inputs, 0), need(node, inputs, 3)
    return [Spec(need(node, inputs, 7).dtype, conv_shape(node, x, w, "x"))]


@rule("ConvTranspose")
def conv_transpose(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w = need(node, inputs, 0), need(node, inputs, 1)
    if x.rank < 3 or w.rank != x.rank:
        raise ValueError(f"ConvTranspose: X {text(x.shape)} and W {text(w.shape)} must have the same rank, 3 or more")
    if x.shape[1] != w.shape[0]:
        raise ValueError(f"ConvTranspose: X has {x.shape[1]} channels, W expects {w.shape[0]}")
    spatial, _, _ = conv_transpose_geometry(
        x.shape[2:],
        node.attr("kernel_shape") or w.shape[2:],
        node.attr("strides"),
        node.attr("dilations"),
        node.attr("pads"),
        node.attr("output_padding"),
        node.attr("output_shape"),
        node.attr("auto_pad", "NOTSET"),
    )
    return [like(x, (x.shape[0], w.shape[1] * node.attr("group", 1), *spatial))]


@rule("DeformConv")
def deform_conv(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w, offset = (need(node, inputs, i) for i in range(3))
    shape = conv_shape(node, x, w)
    channels = node.attr("offset_group", 1) * math.prod(w.shape[2:]) * (x.rank - 2)
    if offset.shape != (x.shape[0], channels, *shape[2:]):
        raise ValueError(
            f"DeformConv: offset is {text(offset.shape)}, {text((x.shape[0], channels, *shape[2:]))} is expected"
        )
    return [like(x, shape)]


@rule("Col2Im")
def col2im(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    image, block = ints(node, inputs, 1, "image_shape"), ints(node, inputs, 2, "block_shape")
    taps = math.prod(block)
    if x.rank != 3 or x.shape[1] % taps:
        raise ValueError(f"Col2Im: input {text(x.shape)} does not hold columns of blocks {text(block)}")
    strides, dilations, pads = window_arguments(
        len(image), node.attr("strides"), node.attr("dilations"), node.attr("pads")
    )
    blocks, _, _ = conv_geometry(image, block, strides, dilations, pads)
    if math.prod(blocks) != x.shape[2]:
        raise ValueError(f"Col2Im: input has {x.shape[2]} blocks, image {text(image)} gives {text(blocks)}")
    return [like(x, (x.shape[0], x.shape[1] // taps, *image))]


@rule("CausalConvWithState")
def causal_conv(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w = need(node, inputs, 0), need(node, inputs, 1)
    if x.rank != 3 or w.rank != 3 or w.shape[:2] != (x.shape[1], 1):
        raise ValueError(
            f"CausalConvWithState: weight {text(w.shape)} is no depthwise kernel for input {text(x.shape)}"
        )
    return [like(x), like(x, (*x.shape[:2], max(w.shape[2] - 1, 0)))]
