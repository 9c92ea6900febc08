"""Operators of com.microsoft that ONNX Runtime's optimizer makes of several: products, convolutions and activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.activation import fast_gelu, gelu, sigmoid, softmax, softplus
from gpurt_cpu.ops.common import axis_in, ints, lifted, widen
from gpurt_cpu.ops.conv import conv, conv_transpose
from gpurt_cpu.ops.linalg import fused_matmul, gemm
from gpurt_cpu.ops.norm import dropout
from gpurt_cpu.ops.pool import max_pool
from gpurt_cpu.ops.table import Array, op

MS = "com.microsoft"

# Name -> (function of x and its parameters, their defaults).
_ACTIVATIONS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "Affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "Celu": (lambda x, a: np.maximum(x, 0) + np.minimum(a * np.expm1(x / a), 0), (1.0,)),
    "Clip": (np.clip, (-math.inf, math.inf)),
    "Elu": (lambda x, a: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))), (1.0,)),
    "HardSigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), (0.2, 0.5)),
    "HardSwish": (lambda x, a, b: x * np.clip(a * x + b, 0, 1), (1 / 6, 0.5)),
    "LeakyRelu": (lambda x, a: np.where(x >= 0, x, a * x), (0.01,)),
    "Relu": (lambda x: np.maximum(x, 0), ()),
    "ScaledTanh": (lambda x, a, b: a * np.tanh(b * x), (1.0, 1.0)),
    "Selu": (
        lambda x, a, g: g * np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
        (1.6732631921768188, 1.0507010221481323),
    ),
    "Sigmoid": (sigmoid, ()),
    "Softplus": (softplus, ()),
    "Softsign": (lambda x: x / (1 + np.abs(x)), ()),
    "Tanh": (np.tanh, ()),
    "ThresholdedRelu": (lambda x, a: np.where(x > a, x, 0), (1.0,)),
}


def _activated(x: Array, name: str, given: tuple[float | None, ...] = ()) -> Any:
    """An activation by its name; parameters that are not given have the standard's defaults."""
    if not name:
        return x
    known = _ACTIVATIONS.get(name)
    if known is None:
        raise InvalidArgument(f"activation is {name!r}", remedy=f"Use one of {', '.join(_ACTIVATIONS)}")
    fn, defaults = known
    filled = [*given, *[None] * len(defaults)][: len(defaults)]
    values = [x.dtype.type(d if g is None else g) for g, d in zip(filled, defaults, strict=True)]
    return np.asarray(fn(x, *values)).astype(x.dtype, copy=False)


def _first(x: Array) -> Array:
    """Channels last moved to the second axis."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def _last(x: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


@op("FusedConv", domain=MS)
@lifted
def fused_conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    z: Array | None = None,
    *,
    activation: str = "",
    activation_params: tuple[float, ...] = (),
    **attributes: Any,
) -> Any:
    y = conv(x, w, b, **attributes)
    if z is not None:
        y = y + z
    return _activated(y, activation, activation_params)


@op("NhwcFusedConv", domain=MS)
@lifted
def nhwc_fused_conv(x: Array, w: Array, b: Array | None = None, z: Array | None = None, **attributes: Any) -> Any:
    return _last(fused_conv(_first(x), w, b, None if z is None else _first(z), **attributes))


@op("NhwcConv", domain=MS)
@lifted
def nhwc_conv(x: Array, w: Array, b: Array | None = None, **attributes: Any) -> Any:
    # Its filters have their channels last too; NhwcFusedConv keeps the standard's layout.
    return _last(conv(_first(x), _first(w), b, **attributes))


@op("ConvTransposeWithDynamicPads", domain=MS)
@lifted
def conv_transpose_with_dynamic_pads(
    x: Array, w: Array, pads: Array | None = None, b: Array | None = None, **attributes: Any
) -> Array:
    y: Array = conv_transpose(x, w, b, pads=None if pads is None else ints(pads), **attributes)
    return y


@op("NhwcMaxPool", domain=MS)
def nhwc_max_pool(x: Array, **attributes: Any) -> Array:
    return _last(max_pool(_first(x), **attributes))


op("TransposeMatMul", domain=MS)(fused_matmul)


@op("FusedMatMulActivation", domain=MS)
@lifted
def fused_matmul_activation(
    a: Array,
    b: Array,
    *,
    activation: str,
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    activation_axis: int | None = None,
    **attributes: Any,
) -> Any:
    y = fused_matmul(a, b, **attributes)
    if activation == "Softmax":
        return softmax(y, -1 if activation_axis is None else activation_axis)
    return _activated(y, activation, (activation_alpha, activation_beta, activation_gamma))


@op("FusedGemm", domain=MS)
@lifted
def fused_gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    **attributes: Any,
) -> Any:
    y = gemm(a, b, c, **attributes)
    return _activated(y, activation, (activation_alpha, activation_beta, activation_gamma))


@op("GemmFastGelu", domain=MS)
@lifted
def gemm_fast_gelu(x: Array, w: Array, bias: Array | None = None) -> Any:
    return fast_gelu(np.matmul(x, w), bias)


@op("BiasSplitGelu", domain=MS)
@lifted
def bias_split_gelu(x: Array, bias: Array) -> Any:
    y = x + bias
    half = y.shape[-1] // 2
    return y[..., :half] * gelu(y[..., half:])


@op("BiasAdd", domain=MS)
@lifted
def bias_add(x: Array, bias: Array, skip: Array) -> Any:
    y = x + bias
    y += skip
    return y


@op("BiasSoftmax", domain=MS)
@lifted
def bias_softmax(data: Array, bias: Array, *, is_inner_broadcast: int, axis: int = 1) -> Any:
    """Softmax over all axes from one on. The bias lacks axes, or has ones, in the middle (inner) or at the front."""
    axis = axis_in(axis, data.ndim)
    if is_inner_broadcast and bias.ndim < data.ndim:
        lead = 0  # its first axes are those of the data, up to where the broadcast begins
        while lead < bias.ndim - (data.ndim - axis) and bias.shape[lead] == data.shape[lead]:
            lead += 1
        bias = bias.reshape(*bias.shape[:lead], *(1,) * (data.ndim - bias.ndim), *bias.shape[lead:])
    y = data + bias
    return softmax(y.reshape(*y.shape[:axis], -1)).reshape(data.shape)


@op("BiasDropout", domain=MS, wants_outputs=True)
def bias_dropout(
    x: Array,
    bias: Array,
    residual: Array | None = None,
    ratio: Array | None = None,
    training_mode: Array | None = None,
    *,
    seed: int | None = None,
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    total = (widen(x) + widen(bias)).astype(x.dtype, copy=False)
    y, mask = dropout(total, ratio, training_mode, seed=seed, outputs=(True, True))
    if residual is not None:
        y = (widen(y) + widen(residual)).astype(x.dtype, copy=False)
    return (y, mask) if any(outputs[1:]) else y


def _bits(mask: Array) -> Array:
    """A mask as bits, the first element in the lowest of each word of 32."""
    packed = np.packbits(mask.reshape(-1), bitorder="little")
    words = np.zeros(-(-mask.size // 32) * 4, np.uint8)
    words[: packed.size] = packed
    return words.view("<u4").astype(np.uint32, copy=False)


@op("BitmaskDropout", domain=MS)
def bitmask_dropout(
    x: Array, ratio: Array | None = None, training_mode: Array | None = None, *, seed: int | None = None
) -> Any:
    y, mask = dropout(x, ratio, training_mode, seed=seed, outputs=(True, True))
    return y, _bits(mask)


@op("BitmaskBiasDropout", domain=MS)
def bitmask_bias_dropout(
    x: Array,
    bias: Array,
    residual: Array | None = None,
    ratio: Array | None = None,
    training_mode: Array | None = None,
    *,
    seed: int | None = None,
) -> Any:
    y, mask = bias_dropout(x, bias, residual, ratio, training_mode, seed=seed, outputs=(True, True))
    return y, _bits(mask)
