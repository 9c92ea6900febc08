"""Normalisation: over the batch, the layer, groups, instances, a neighbourhood of channels, or a norm; and Dropout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import BLOCK, NARROW, axis_in, dtype_of, lifted, per_channel, scalar, widen
from gpurt_cpu.ops.table import Array, op


@op("BatchNormalization", wants_outputs=True)
def batch_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    wide = widen(x)
    stats = np.result_type(wide.dtype, widen(mean).dtype)
    mean_in, var_in = mean.astype(stats), var.astype(stats)
    running: tuple[Array, ...] = ()
    if training_mode:
        axes = (0, *range(2, x.ndim))
        now_mean = wide.mean(axis=axes, dtype=stats)
        now_var = wide.var(axis=axes, dtype=stats)
        if any(outputs[1:]):
            running = (
                (mean_in * momentum + now_mean * (1 - momentum)).astype(mean.dtype),
                (var_in * momentum + now_var * (1 - momentum)).astype(var.dtype),
            )
        mean_in, var_in = now_mean, now_var
    factor = scale.astype(stats) / np.sqrt(var_in + epsilon)
    shift = bias.astype(stats) - mean_in * factor
    rank = max(x.ndim, 2)
    y = wide * per_channel(factor.astype(wide.dtype), rank)
    y += per_channel(shift.astype(wide.dtype), rank)
    return (y.astype(x.dtype, copy=False), *running)


def _normalized(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """``(x - mean) / sqrt(var + epsilon)`` in the array's precision, with the mean and the inverse deviation."""
    lead = x.ndim - len(axes)
    if axes == tuple(range(lead, x.ndim)) and x.flags.c_contiguous and x.size:
        shape = (*x.shape[:lead], *(1,) * len(axes))
        rows = x.reshape(math.prod(x.shape[:lead]), -1)
        y = np.empty(rows.shape, x.dtype)
        mean, inverse = np.empty((2, len(rows), 1), x.dtype)
        count = max(BLOCK // rows.shape[1], 1)  # rows at a time: four passes go over them
        weights = np.full((rows.shape[1], 1), 1 / rows.shape[1], x.dtype)
        for i in range(0, len(rows), count):
            part = slice(i, i + count)
            np.matmul(rows[part], weights, out=mean[part])
            np.subtract(rows[part], mean[part], out=y[part])
            var = np.einsum("ij,ij->i", y[part], y[part])[:, None] / x.dtype.type(rows.shape[1])
            inverse[part] = 1 / np.sqrt(var + x.dtype.type(epsilon))
            np.multiply(y[part], inverse[part], out=y[part])
        return y.reshape(x.shape), mean.reshape(shape), inverse.reshape(shape)
    mean = x.mean(axis=axes, keepdims=True)
    y = x - mean
    var = np.square(y).mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(var + x.dtype.type(epsilon))
    y *= inverse
    return y, mean, inverse


def _stashed(x: Array, stash_type: int) -> Array:
    """The array in the type that statistics are computed in; narrow ones are computed in float32."""
    stash = dtype_of(stash_type)
    return x.astype(np.float32 if stash in NARROW else stash, copy=False)


@op("LayerNormalization", wants_outputs=True)
def layer_normalization(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    axes = tuple(range(axis_in(axis, x.ndim), x.ndim))
    stash = dtype_of(stash_type)
    y, mean, inverse = _normalized(_stashed(x, stash_type), axes, epsilon)
    y *= widen(scale)
    if bias is not None:
        y += widen(bias)
    y = y.astype(x.dtype, copy=False)
    if not any(outputs[1:]):
        return y
    return y, mean.astype(stash, copy=False), inverse.astype(stash, copy=False)


@op("SkipLayerNormalization", domain="com.microsoft", wants_outputs=True)
def skip_layer_normalization(
    x: Array,
    skip: Array,
    gamma: Array,
    beta: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-12,
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    total = widen(x) + widen(skip)
    if bias is not None:
        total += widen(bias)
    y, mean, inverse = _normalized(total, (x.ndim - 1,), epsilon)
    y *= widen(gamma)
    if beta is not None:
        y += widen(beta)
    y = y.astype(x.dtype, copy=False)
    return (y, mean, inverse, total.astype(x.dtype, copy=False)) if any(outputs[1:]) else y


@op("RMSNormalization")
@op("SimplifiedLayerNormalization")
def rms_normalization(x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Any:
    axes = tuple(range(axis_in(axis, x.ndim), x.ndim))
    wide = _stashed(x, stash_type)
    mean_square = np.square(wide).mean(axis=axes, keepdims=True)
    y = wide * (1 / np.sqrt(mean_square + wide.dtype.type(epsilon)))
    y *= widen(scale)
    return y.astype(scale.dtype, copy=False)


@op("InstanceNormalization")
@lifted
def instance_normalization(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5) -> Any:
    y, _, _ = _normalized(x, tuple(range(2, x.ndim)), epsilon)
    y *= per_channel(scale, x.ndim)
    y += per_channel(bias, x.ndim)
    return y


@op("GroupNormalization")
def group_normalization(
    x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Any:
    n, channels = x.shape[:2]
    if channels % num_groups:
        raise InvalidArgument(
            f"{channels} channels do not divide into {num_groups} groups", remedy="num_groups must divide the channels"
        )
    y, _, _ = _normalized(_stashed(x, stash_type).reshape(n, num_groups, -1), (2,), epsilon)
    y = y.reshape(x.shape)
    y *= per_channel(widen(scale), x.ndim)
    y += per_channel(widen(bias), x.ndim)
    return y.astype(x.dtype, copy=False)


@op("MeanVarianceNormalization")
@lifted
def mean_variance_normalization(x: Array, *, axes: tuple[int, ...] = (0, 2, 3)) -> Any:
    where = tuple(axis_in(a, x.ndim) for a in axes)
    mean = x.mean(axis=where, keepdims=True)
    y = x - mean
    y /= np.sqrt(np.square(y).mean(axis=where, keepdims=True)) + x.dtype.type(1e-9)
    return y


@op("LpNormalization")
@lifted
def lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Any:
    if p not in (1, 2):
        raise InvalidArgument(f"p is {p}", remedy="LpNormalization knows 1 and 2")
    size = np.abs(x) if p == 1 else np.square(x)
    norm = np.sum(size, axis=axis, keepdims=True)
    if p == 2:
        norm = np.sqrt(norm)
    return np.divide(x, norm, out=np.zeros_like(x), where=np.broadcast_to(norm != 0, x.shape))


@op("LRN")
@lifted
def lrn(x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Any:
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    channels = x.shape[1]
    square = np.square(x)
    total = np.zeros_like(x)
    for shift in range(-before, after + 1):
        low, high = max(0, -shift), min(channels, channels - shift)
        if low < high:
            total[:, low:high] += square[:, low + shift : high + shift]
    total *= alpha / size
    total += bias
    return x * np.power(total, -beta)


@op("Dropout", wants_outputs=True)
def dropout(
    x: Array,
    ratio: Array | None = None,
    training_mode: Array | None = None,
    *,
    seed: int | None = None,
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    rate = scalar(ratio, 0.5)
    if not scalar(training_mode, default=False) or rate == 0:
        return (x, np.ones(x.shape, bool)) if any(outputs[1:]) else x
    # The legacy generator: ONNX's test cases were made with it, and reproducing them costs nothing.
    mask = np.random.RandomState(seed).uniform(0, 1, x.shape) >= rate
    wide = widen(x)
    y = (np.where(mask, wide, 0) / wide.dtype.type(1 - rate)).astype(x.dtype)
    return (y, mask) if any(outputs[1:]) else y
