"""Operators that pick or place elements by index, and those whose output size only the data can tell."""

from __future__ import annotations

import math

import numpy as np

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import I64, Inputs, content, integer, like, need
from gpurt.infer.shapes import axis, text
from gpurt.infer.table import rule
from gpurt.spec import Spec, Unknown


@rule("Gather")
def gather(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, indices = need(node, inputs, 0), need(node, inputs, 1)
    along = axis(node.attr("axis", 0), x.rank)
    return [like(x, x.shape[:along] + indices.shape + x.shape[along + 1 :])]


@rule("GatherElements")
def gather_elements(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, indices = need(node, inputs, 0), need(node, inputs, 1)
    axis(node.attr("axis", 0), x.rank)
    if x.rank != indices.rank:
        raise ValueError(f"GatherElements: data {text(x.shape)} and indices {text(indices.shape)} differ in rank")
    return [like(x, indices.shape)]


@rule("GatherND")
def gather_nd(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, indices = need(node, inputs, 0), need(node, inputs, 1)
    batch = node.attr("batch_dims", 0)
    if not indices.rank or batch + indices.shape[-1] > x.rank:
        raise ValueError(f"GatherND: indices {text(indices.shape)} do not fit data {text(x.shape)}")
    return [like(x, indices.shape[:-1] + x.shape[batch + indices.shape[-1] :])]


@rule("ScatterElements")
def scatter_elements(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, indices, updates = (need(node, inputs, i) for i in range(3))
    axis(node.attr("axis", 0), x.rank)
    if indices.shape != updates.shape or indices.rank != x.rank:
        raise ValueError(
            f"ScatterElements: indices {text(indices.shape)} and updates {text(updates.shape)} "
            f"do not fit data {text(x.shape)}"
        )
    return [like(x)]


@rule("ScatterND")
def scatter_nd(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, indices, updates = (need(node, inputs, i) for i in range(3))
    if not indices.rank or indices.shape[-1] > x.rank:
        raise ValueError(f"ScatterND: indices {text(indices.shape)} do not fit data {text(x.shape)}")
    expected = indices.shape[:-1] + x.shape[indices.shape[-1] :]
    if updates.shape != expected:
        raise ValueError(f"ScatterND: updates are {text(updates.shape)}, {text(expected)} is expected")
    return [like(x)]


@rule("TensorScatter")
def tensor_scatter(node: NodeView, inputs: Inputs) -> list[Spec]:
    cache, update = need(node, inputs, 0), need(node, inputs, 1)
    along = axis(node.attr("axis", -2), cache.rank)
    if update.rank != cache.rank or any(
        a != b for i, (a, b) in enumerate(zip(update.shape, cache.shape, strict=True)) if i != along
    ):
        raise ValueError(f"TensorScatter: update {text(update.shape)} does not fit cache {text(cache.shape)}")
    return [like(cache)]


@rule("OneHot")
def one_hot(node: NodeView, inputs: Inputs) -> list[Spec]:
    indices, values = need(node, inputs, 0), need(node, inputs, 2)
    depth = integer(node, inputs, 1, "depth")
    at = axis(node.attr("axis", -1), indices.rank + 1)
    return [like(values, (*indices.shape[:at], depth, *indices.shape[at:]))]


@rule("TopK")
def top_k(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, k = need(node, inputs, 0), integer(node, inputs, 1, "K")
    along = axis(node.attr("axis", -1), x.rank)
    if not 0 <= k <= x.shape[along]:
        raise ValueError(f"TopK: K is {k}, axis {along} of {text(x.shape)} has {x.shape[along]} elements")
    shape = (*x.shape[:along], k, *x.shape[along + 1 :])
    return [like(x, shape), Spec(I64, shape)]


@rule("Compress")
def compress(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    along = node.attr("axis")
    size = math.prod(x.shape) if along is None else x.shape[axis(along, x.rank)]
    picked = int(np.count_nonzero(content(node, inputs, 1, "condition")[:size]))
    if along is None:
        return [like(x, (picked,))]
    along = axis(along, x.rank)
    return [like(x, (*x.shape[:along], picked, *x.shape[along + 1 :]))]


@rule("NonZero")
def non_zero(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [Spec(I64, (x.rank, int(np.count_nonzero(content(node, inputs, 0, "X")))))]


@rule("Unique", "NonMaxSuppression", "ImageDecoder", "StringSplit")
def data_dependent(node: NodeView, inputs: Inputs) -> list[Spec]:
    raise Unknown(f"{node.op} has an output whose size depends on the data")
