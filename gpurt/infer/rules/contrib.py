"""Operators of com.microsoft that fuse or vary standard ones, as the optimizer of ONNX Runtime writes them."""

from __future__ import annotations

import numpy as np

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import BOOL, F32, Inputs, content, integer, ints, like, need, optional
from gpurt.infer.rules import conv, generate, linalg, movement, norm, pool, resize, select
from gpurt.infer.shapes import axis, broadcast, conv_transpose_geometry, text
from gpurt.infer.table import rule
from gpurt.spec import Spec

MS = "com.microsoft"

# These differ from the standard operator in details that do not touch the shape.
rule("FusedConv", domain=MS)(conv.conv)
rule("FusedGemm", domain=MS)(linalg.gemm)
rule("GemmFastGelu", domain=MS)(linalg.matmul)
rule("GatherND", domain=MS)(select.gather_nd)
rule("GridSample", domain=MS)(resize.grid_sample)
rule("Pad", domain=MS)(movement.pad)
rule("Range", domain=MS)(generate.range_)
rule("Trilu", domain=MS)(movement.same_layout)
rule("Unique", domain=MS)(select.data_dependent)

SAME = "BiasGelu BiasSoftmax FastGelu Gelu GroupNorm Inverse LongformerAttention MoE QMoE QuickGelu BiasAdd"


@rule(*SAME.split(), domain=MS)
def same(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [like(need(node, inputs, 0))]


@rule("NGramRepeatBlock", domain=MS)
def ngram_repeat_block(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [like(need(node, inputs, 1))]  # the scores, with those of repeats ruled out


@rule("BiasSplitGelu", domain=MS)
def bias_split_gelu(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x, (*x.shape[:-1], x.shape[-1] // 2))]


@rule("BiasDropout", domain=MS)
def bias_dropout(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x), like(x, dtype=BOOL)]


@rule("BitmaskDropout", "BitmaskBiasDropout", domain=MS)
def bitmask_dropout(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x), Spec(np.dtype(np.uint32), (-(-x.size // 32),))]  # a bit for each element


@rule("IsAllFinite", domain=MS)
def is_all_finite(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [Spec(BOOL, ())]


@rule("SkipGroupNorm", domain=MS)
def skip_group_norm(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x), like(x)]


@rule("SimplifiedLayerNormalization")
@rule("SimplifiedLayerNormalization", domain=MS)
def simplified_layer_normalization(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, scale = need(node, inputs, 0), need(node, inputs, 1)
    first = axis(node.attr("axis", -1), x.rank)
    norm.check_scale(node, x, scale)
    return [like(x, dtype=scale.dtype), Spec(F32, x.shape[:first] + (1,) * (x.rank - first))]


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MS)
def skip_layer_normalization(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, skip, gamma = (need(node, inputs, i) for i in range(3))
    if broadcast(x.shape, skip.shape) != x.shape or gamma.shape != x.shape[-1:]:
        raise ValueError(
            f"{node.op}: skip {text(skip.shape)} and gamma {text(gamma.shape)} do not fit the input {text(x.shape)}"
        )
    statistics = Spec(F32, (*x.shape[:-1], 1))
    return [like(x), statistics, statistics, like(x)]


def _transposed(shape: tuple[int, ...], trans: bool, trans_batch: bool) -> tuple[int, ...]:
    # transBatch moves the first axis behind the batch axes, trans swaps the last two; a vector stays as it is.
    if len(shape) < 2:
        return shape
    if trans_batch:
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if trans else shape


@rule("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", domain=MS)
def fused_matmul(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 1)
    left = _transposed(a.shape, bool(node.attr("transA", 0)), bool(node.attr("transBatchA", 0)))
    right = _transposed(b.shape, bool(node.attr("transB", 0)), bool(node.attr("transBatchB", 0)))
    return [like(a, linalg.matmul_shape(left, right))]


@rule("MatMulBnb4", "MatMulFpQ4", "MatMulNBits", domain=MS)
def matmul_packed(node: NodeView, inputs: Inputs) -> list[Spec]:
    a = need(node, inputs, 0)
    if node.op_type == "MatMulFpQ4":  # the shape of the packed matrix is an input there
        inner, columns = ints(node, inputs, 2, "B_shape")
    else:
        inner, columns = node.attr("K"), node.attr("N")
    if a.shape[-1:] != (inner,):
        raise ValueError(f"{node.op}: A {text(a.shape)} does not end in K = {inner}")
    return [like(a, (*a.shape[:-1], columns))]


@rule("NhwcConv", "NhwcFusedConv", domain=MS)
def nhwc_conv(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w = need(node, inputs, 0), need(node, inputs, 1)
    if node.op_type == "NhwcConv":  # its weights are laid out with the channels last too
        w = like(w, channels_first(w.shape))
    return [like(x, channels_last(conv.conv_shape(node, like(x, channels_first(x.shape)), w)))]


@rule("NhwcMaxPool", domain=MS)
def nhwc_max_pool(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x, channels_last(pool.pool_shape(node, like(x, channels_first(x.shape)))))]


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """NHWC dimensions in the order NCHW."""
    return (shape[0], shape[-1], *shape[1:-1])


def channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """NCHW dimensions in the order NHWC."""
    return (shape[0], *shape[2:], shape[1])


@rule("ConvTransposeWithDynamicPads", domain=MS)
def conv_transpose_with_dynamic_pads(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w = need(node, inputs, 0), need(node, inputs, 1)
    spatial, _, _ = conv_transpose_geometry(
        x.shape[2:],
        node.attr("kernel_shape") or w.shape[2:],
        node.attr("strides"),
        node.attr("dilations"),
        None if optional(inputs, 2) is None else ints(node, inputs, 2, "Pads"),
        node.attr("output_padding"),
        None,
        node.attr("auto_pad", "NOTSET"),
    )
    return [like(x, (x.shape[0], w.shape[1] * node.attr("group", 1), *spatial))]


@rule("CDist", domain=MS)
def cdist(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 1)
    if a.rank != 2 or b.rank != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"{node.op}: A {text(a.shape)} and B {text(b.shape)} do not hold points of one space")
    return [like(a, (a.shape[0], b.shape[0]))]


@rule("ExpandDims", domain=MS)
def expand_dims(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    at = axis(integer(node, inputs, 1, "axis"), x.rank + 1)
    return [like(x, (*x.shape[:at], 1, *x.shape[at:]))]


@rule("CropAndResize", domain=MS)
def crop_and_resize(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, rois = need(node, inputs, 0), need(node, inputs, 1)
    height, width = content(node, inputs, 3, "crop_size").reshape(-1)
    return [like(x, (rois.shape[0], x.shape[1], int(height), int(width)))]
