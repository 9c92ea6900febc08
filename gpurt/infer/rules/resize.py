"""Resize, and the sampling grids."""

from __future__ import annotations

import math

import numpy as np

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import Inputs, content, ints, like, need, optional
from gpurt.infer.shapes import axes, text
from gpurt.infer.table import rule
from gpurt.spec import Spec


def _given(inputs: Inputs, index: int) -> bool:
    # An empty tensor stands for "not given": opset 11 had no other way to leave scales out.
    spec = optional(inputs, index)
    return spec is not None and spec.size > 0


def _aspect_sizes(sizes: list[int], dims: list[int], policy: str) -> list[int]:
    """Sizes that keep the aspect ratio within, or outside, the sizes asked for."""
    choose = min if policy == "not_larger" else max
    scale = choose(size / dim for size, dim in zip(sizes, dims, strict=True) if dim)
    return [math.floor(scale * dim + 0.5) for dim in dims]  # halves go up, by the standard


@rule("Resize")
def resize(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    along = axes(node.attr("axes") or range(x.rank), x.rank)
    dims = [x.shape[a] for a in along]
    if _given(inputs, 3):
        sizes = list(ints(node, inputs, 3, "sizes"))
        _check(node, x, "sizes", len(sizes), len(along))
        policy = node.attr("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            sizes = _aspect_sizes(sizes, dims, policy)
    else:
        # Rounded to float32 before the floor: 10 x 0.7 has to give 7, and 0.7 as a float32 is a little less.
        scales = content(node, inputs, 2, "scales").astype(np.float32).reshape(-1)
        _check(node, x, "scales", len(scales), len(along))
        spans = np.ones(len(along), np.float32)
        if node.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
            roi = content(node, inputs, 1, "roi").astype(np.float32).reshape(-1)
            spans = roi[len(along) :] - roi[: len(along)]
        sizes = [math.floor(np.float32(d) * s * f) for d, s, f in zip(dims, spans, scales, strict=True)]
    shape = list(x.shape)
    for a, size in zip(along, sizes, strict=True):
        shape[a] = size
    return [like(x, shape)]


def _check(node: NodeView, x: Spec, name: str, count: int, wanted: int) -> None:
    if count != wanted:
        raise ValueError(f"{node.op}: {count} {name} for {wanted} axes of {text(x.shape)}")


@rule("GridSample")
def grid_sample(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, grid = need(node, inputs, 0), need(node, inputs, 1)
    if grid.rank != x.rank or grid.shape[-1] != x.rank - 2 or grid.shape[0] != x.shape[0]:
        raise ValueError(f"{node.op}: grid {text(grid.shape)} does not fit X {text(x.shape)}")
    return [like(x, (*x.shape[:2], *grid.shape[1:-1]))]


@rule("AffineGrid")
def affine_grid(node: NodeView, inputs: Inputs) -> list[Spec]:
    theta, size = need(node, inputs, 0), ints(node, inputs, 1, "size")
    if theta.shape[1:] != (len(size) - 2, len(size) - 1):
        raise ValueError(f"AffineGrid: theta {text(theta.shape)} does not fit size {text(size)}")
    return [like(theta, (size[0], *size[2:], len(size) - 2))]
