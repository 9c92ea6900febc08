"""Operators that ONNX had as experiments in its first opsets, as exporters of those days wrote them into models."""

from __future__ import annotations

import numpy as np

from gpurt.errors import InvalidGraph
from gpurt.loader.upgrade.registry import upgrade
from gpurt.loader.upgrade.site import Site


@upgrade("Affine", upto=10_000, types=True, legacy=True)
def affine(at: Site) -> None:
    """``Affine(x; alpha, beta) -> alpha * x + beta``."""
    x = at.need(0)
    scaled = at.op("Mul", [x, at.scalar_like(at.attr("alpha", 1.0), "alpha", x)])
    at.replace(at.op("Add", [scaled, at.scalar_like(at.attr("beta", 0.0), "beta", x)]))


@upgrade("Scale", upto=10_000, types=True, legacy=True)
def scale(at: Site) -> None:
    """``Scale(x; scale) -> scale * x``."""
    at.replace(at.op("Mul", [at.need(0), at.scalar_like(at.attr("scale", 1.0), "scale", at.need(0))]))


@upgrade("ParametricSoftplus", upto=10_000, types=True, legacy=True)
def parametric_softplus(at: Site) -> None:
    """``ParametricSoftplus(x; alpha, beta) -> alpha * Softplus(beta * x)``."""
    x = at.need(0)
    inner = at.op("Softplus", [at.op("Mul", [x, at.scalar_like(at.attr("beta", 1.0), "beta", x)])])
    at.replace(at.op("Mul", [inner, at.scalar_like(at.attr("alpha", 1.0), "alpha", x)]))


@upgrade("ScaledTanh", upto=10_000, types=True, legacy=True)
def scaled_tanh(at: Site) -> None:
    """``ScaledTanh(x; alpha, beta) -> alpha * Tanh(beta * x)``."""
    x = at.need(0)
    inner = at.op("Tanh", [at.op("Mul", [x, at.scalar_like(at.attr("beta", 1.0), "beta", x)])])
    at.replace(at.op("Mul", [inner, at.scalar_like(at.attr("alpha", 1.0), "alpha", x)]))


@upgrade("ThresholdedRelu", upto=9, legacy=True)
def thresholded_relu(at: Site) -> None:
    """The experiment became the operator as it was."""
    at.set(alpha=at.attr("alpha", 1.0))


@upgrade("ImageScaler", upto=10_000, types=True, legacy=True)
def image_scaler(at: Site) -> None:
    """``ImageScaler(x; scale, bias) -> scale * x + bias[C, 1, 1]``."""
    x = at.need(0)
    scaled = at.op("Mul", [x, at.scalar_like(at.attr("scale", 1.0), "scale", x)])
    bias = at.const(np.array(at.attr("bias", ()), np.float32).reshape(-1, 1, 1), "bias")
    if at.dtype(x) != np.float32:
        bias = at.op("CastLike", [bias, x])
    at.replace(at.op("Add", [scaled, bias]))


@upgrade("Crop", upto=10_000, legacy=True)
def crop(at: Site) -> None:
    """``Crop(x; border, scale) -> Slice``: left, top, right and bottom are cut off, or scale gives the size."""
    left, top, right, bottom = at.attr("border", (0, 0, 0, 0))
    size = at.attr("scale")
    if size is not None and len(size) != 2:
        raise InvalidGraph(f"scale must give height and width, not {list(size)}", node=at.node.name, op="Crop")
    if size is not None:
        ends = [top + size[0], left + size[1]]
    else:
        ends = [-bottom or 2**63 - 1, -right or 2**63 - 1]
    at.replace(
        at.op("Slice", [at.need(0), at.ints([top, left], "starts"), at.ints(ends, "ends"), at.ints([2, 3], "axes")])
    )


@upgrade("DynamicSlice", upto=10_000, legacy=True)
def dynamic_slice(at: Site) -> None:
    """``DynamicSlice(x, starts, ends, axes) -> Slice(x, starts, ends, axes)``."""
    at.rename("Slice")
