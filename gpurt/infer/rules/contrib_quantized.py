"""Quantized operators of com.microsoft."""

from __future__ import annotations

import numpy as np

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import I32, U8, Inputs, like, need, optional
from gpurt.infer.rules import conv, linalg, movement, pool, reduce, rnn
from gpurt.infer.rules.contrib import MS, channels_first, channels_last
from gpurt.infer.shapes import axes, axis, broadcast, text
from gpurt.infer.table import rule
from gpurt.spec import Spec


@rule("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", domain=MS)
def same(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [like(need(node, inputs, 0))]


@rule("QLinearAdd", "QLinearMul", domain=MS)
def qlinear_binary(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 3)
    return [like(a, broadcast(a.shape, b.shape))]


@rule("MulInteger", domain=MS)
def mul_integer(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 2)
    return [Spec(I32, broadcast(a.shape, b.shape))]


@rule("QLinearWhere", domain=MS)
def qlinear_where(node: NodeView, inputs: Inputs) -> list[Spec]:
    condition, x, y = need(node, inputs, 0), need(node, inputs, 1), need(node, inputs, 4)
    return [like(x, broadcast(condition.shape, x.shape, y.shape))]


@rule("QLinearConcat", domain=MS)
def qlinear_concat(node: NodeView, inputs: Inputs) -> list[Spec]:
    # Y's scale and zero point come first, then each tensor with its own.
    tensors = [need(node, inputs, i) for i in range(2, len(inputs), 3)]
    (joined,) = movement.concat(node, tensors)
    return [like(joined, dtype=need(node, inputs, 1).dtype)]


@rule("QLinearConv", domain=MS)
def qlinear_conv(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w, dtype = need(node, inputs, 0), need(node, inputs, 3), need(node, inputs, 7).dtype
    if not node.attr("channels_last", 0):
        return [Spec(dtype, conv.conv_shape(node, x, w, "x"))]
    return [Spec(dtype, channels_last(conv.conv_shape(node, like(x, channels_first(x.shape)), w, "x")))]


@rule("QLinearAveragePool", domain=MS)
def qlinear_average_pool(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if not node.attr("channels_last", 0):
        return [like(x, pool.pool_shape(node, x))]
    return [like(x, channels_last(pool.pool_shape(node, like(x, channels_first(x.shape)))))]


@rule("QLinearGlobalAveragePool", domain=MS)
def qlinear_global_average_pool(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    ones = (1,) * (x.rank - 2)
    if node.attr("channels_last", 0):
        return [like(x, (x.shape[0], *ones, x.shape[-1]))]
    return [like(x, (*x.shape[:2], *ones))]


@rule("QLinearReduceMean", domain=MS)
def qlinear_reduce_mean(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    over = axes(node.attr("axes") or range(x.rank), x.rank)
    return [like(x, reduce.reduced(x.shape, over, bool(node.attr("keepdims", 1))))]


@rule("ReduceSumInteger", domain=MS)
def reduce_sum_integer(node: NodeView, inputs: Inputs) -> list[Spec]:
    (summed,) = qlinear_reduce_mean(node, inputs)
    return [like(summed, dtype=np.dtype(np.uint32) if summed.dtype == U8 else I32)]


@rule("QGemm", domain=MS)
def qgemm(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, a_scale, b = need(node, inputs, 0), need(node, inputs, 1), need(node, inputs, 3)
    # Without y's zero point the result is not quantized again.
    zero_point = optional(inputs, 8)
    dtype = a_scale.dtype if zero_point is None else zero_point.dtype
    return [Spec(dtype, linalg.gemm_shape(node, a, b, optional(inputs, 6)))]


@rule("MatMulIntegerToFloat", domain=MS)
def matmul_integer_to_float(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 1)
    return [Spec(need(node, inputs, 2).dtype, linalg.matmul_shape(a.shape, b.shape))]


@rule("DynamicQuantizeMatMul", domain=MS)
def dynamic_quantize_matmul(node: NodeView, inputs: Inputs) -> list[Spec]:
    a, b = need(node, inputs, 0), need(node, inputs, 1)
    return [like(a, linalg.matmul_shape(a.shape, b.shape))]


@rule("DynamicQuantizeLSTM", domain=MS)
def dynamic_quantize_lstm(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, w, r = (need(node, inputs, i) for i in range(3))
    # The weights are transposed against LSTM's: [directions, input, 4*hidden] and [directions, hidden, 4*hidden].
    hidden = node.attr("hidden_size") or r.shape[1]
    if r.shape[1:] != (hidden, 4 * hidden):
        raise ValueError(f"{node.op}: R {text(r.shape)} does not fit hidden size {hidden}")
    if x.rank == 3 and w.shape[1] != x.shape[2]:
        raise ValueError(f"{node.op}: X has {x.shape[2]} features, W {text(w.shape)} expects {w.shape[1]}")
    return rnn.recurrent_specs(node, x, hidden, 2)


@rule("GatherBlockQuantized", domain=MS)
def gather_block_quantized(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, indices, scales = (need(node, inputs, i) for i in range(3))
    along = axis(node.attr("gather_axis", 0), x.rank)
    shape = list(x.shape)
    if x.dtype.name == "uint8":  # several narrow numbers share a byte along the last axis
        shape[-1] *= 8 // node.attr("bits", 4)
    return [like(scales, (*shape[:along], *indices.shape, *shape[along + 1 :]))]
