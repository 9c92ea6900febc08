"""Operators of com.microsoft on 8-bit tensors: element by element, pools, and matrix products. The LSTM is apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.activation import leaky_relu, sigmoid, softmax
from gpurt_cpu.ops.common import F32, F64, axis_in, scalar, widen
from gpurt_cpu.ops.conv import qlinear_conv
from gpurt_cpu.ops.linalg import centred
from gpurt_cpu.ops.movement import concat
from gpurt_cpu.ops.pool import average_pool
from gpurt_cpu.ops.quantize import dequantize_linear, dynamic_quantize_linear, limits, quantize_linear
from gpurt_cpu.ops.table import Array, op

MS = "com.microsoft"
_EXACT = 1 << 24  # integers up to here, and so all sums that stay below, are exact in float32

# These had 16-bit and 4-bit types before the standard did, and are what the standard has now.
op("QuantizeLinear", domain=MS)(quantize_linear)
op("DequantizeLinear", domain=MS)(dequantize_linear)


def integer_product(a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None) -> Array:
    """Exact product of two quantized arrays less their zero points, held in floats.

    The sums are made in float32, where BLAS is fastest, over as many terms as cannot leave its exact integers; such
    blocks are added in float64. ``b_zero`` may have one value for each column.
    """
    zero_a = None if a_zero is None else a_zero.reshape(())
    zero_b = b_zero.reshape(()) if b_zero is not None and b_zero.size == 1 else b_zero
    length = a.shape[-1]
    block = _EXACT // (_reach(a, zero_a) * _reach(b, zero_b))
    left, right = centred(a, zero_a, np.float32), centred(b, zero_b, np.float32)
    if right.ndim == 2:
        left = left.reshape(-1, length)
    if length <= block:
        y = np.matmul(left, right)
    else:
        y = np.matmul(left[..., :block], right[..., :block, :]).astype(F64)
        for start in range(block, length, block):
            stop = start + block
            y += np.matmul(left[..., start:stop], right[..., start:stop, :])
    return np.asarray(y).reshape(*a.shape[:-1], b.shape[-1]) if right.ndim == 2 else np.asarray(y)


def _reach(x: Array, zero: Array | None) -> int:
    """Greatest absolute value that an element less its zero point can have."""
    low, high = limits(x.dtype)
    first, last = (0, 0) if zero is None or not zero.size else (int(zero.min()), int(zero.max()))
    return max(high - first, last - low)


def _requantized(y: Array, zero: Array | None, dtype: np.dtype[Any]) -> Array:
    """Scaled floats as quantized values. Unlike QuantizeLinear, which rounds first, the zero point comes before."""
    if zero is not None and zero.any():
        y += zero.reshape(()).astype(y.dtype)
    np.rint(y, out=y)
    low, high = limits(dtype)
    np.clip(y, low, high, out=y)
    return y.astype(dtype)


def _one(scale: Array, what: str) -> np.float32:
    if scale.size != 1:
        raise InvalidArgument(f"{what} has {scale.size} values", remedy="ONNX Runtime defines one scale for the tensor")
    return np.float32(scale.reshape(-1)[0])


def _offset(x: Array, zero: Array | None) -> Array:
    return centred(x, None if zero is None else zero.reshape(()), np.float32)


@op("QLinearAdd", domain=MS)
def qlinear_add(
    a: Array,
    a_scale: Array,
    a_zero: Array | None,
    b: Array,
    b_scale: Array,
    b_zero: Array | None,
    c_scale: Array,
    c_zero: Array | None = None,
) -> Array:
    unit = _one(c_scale, "C_scale")
    y = _offset(a, a_zero) * (_one(a_scale, "A_scale") / unit)
    y = np.asarray(y + _offset(b, b_zero) * (_one(b_scale, "B_scale") / unit))
    return _requantized(y, c_zero, a.dtype)


@op("QLinearMul", domain=MS)
def qlinear_mul(
    a: Array,
    a_scale: Array,
    a_zero: Array | None,
    b: Array,
    b_scale: Array,
    b_zero: Array | None,
    c_scale: Array,
    c_zero: Array | None = None,
) -> Array:
    y = np.asarray(_offset(a, a_zero) * _offset(b, b_zero))
    y *= _one(a_scale, "A_scale") * _one(b_scale, "B_scale") / _one(c_scale, "C_scale")
    return _requantized(y, c_zero, a.dtype)


@op("QLinearWhere", domain=MS)
def qlinear_where(
    condition: Array,
    x: Array,
    x_scale: Array,
    x_zero: Array | None,
    y: Array,
    y_scale: Array,
    y_zero: Array | None,
    z_scale: Array,
    z_zero: Array | None = None,
) -> Array:
    first = _mapped(x, x_scale, x_zero, z_scale, z_zero, x.dtype)
    return np.where(condition, first, _mapped(y, y_scale, y_zero, z_scale, z_zero, x.dtype))


def _mapped(
    x: Array,
    x_scale: Array,
    x_zero: Array | None,
    y_scale: Array,
    y_zero: Array | None,
    dtype: np.dtype[Any],
    fn: Callable[[Array], Array] | None = None,
) -> Array:
    """A function of the real values, from quantized to quantized: computed for 256 codes, then looked up."""
    if fn is None and dtype == x.dtype and _same(x_scale, y_scale) and _same(x_zero, y_zero):
        return x
    every = np.arange(256, dtype=np.uint8).view(x.dtype)
    real = dequantize_linear(every, x_scale.reshape(()), None if x_zero is None else x_zero.reshape(()))
    if fn is not None:
        real = fn(real)
    zero = np.zeros((), dtype) if y_zero is None else y_zero.reshape(())
    return np.take(quantize_linear(real, y_scale.reshape(()), zero), x.view(np.uint8))


def _same(a: Array | None, b: Array | None) -> bool:
    return bool(scalar(a, 0) == scalar(b, 0))


@op("QLinearSigmoid", domain=MS)
def qlinear_sigmoid(
    x: Array, x_scale: Array, x_zero: Array | None, y_scale: Array, y_zero: Array | None = None
) -> Array:
    return _mapped(x, x_scale, x_zero, y_scale, y_zero, x.dtype, sigmoid)


@op("QLinearLeakyRelu", domain=MS)
def qlinear_leaky_relu(
    x: Array, x_scale: Array, x_zero: Array | None, y_scale: Array, y_zero: Array | None = None, *, alpha: float = 0.01
) -> Array:
    return _mapped(x, x_scale, x_zero, y_scale, y_zero, x.dtype, lambda real: leaky_relu(real, alpha=alpha))


@op("QLinearConcat", domain=MS)
def qlinear_concat(y_scale: Array, y_zero: Array, *tensors: Array, axis: int) -> Array:
    triples = [tensors[i : i + 3] for i in range(0, len(tensors), 3)]
    return concat(*(_mapped(x, s, z, y_scale, y_zero, y_zero.dtype) for x, s, z in triples), axis=axis)


@op("QLinearSoftmax", domain=MS)
def qlinear_softmax(
    x: Array,
    x_scale: Array,
    x_zero: Array | None,  # noqa: ARG001 - it cancels out
    y_scale: Array,
    y_zero: Array,
    *,
    opset: int,
    axis: int = -1,
) -> Array:
    real = x.astype(F32) * _one(x_scale, "X_scale")
    axis = axis_in(axis, x.ndim)
    if opset < 13:  # all axes from this one on are one
        y = softmax(real.reshape(*x.shape[:axis], -1)).reshape(x.shape)
    else:
        y = softmax(real, axis)
    return quantize_linear(y, y_scale.reshape(()), y_zero.reshape(()))


@op("QLinearAveragePool", domain=MS)
def qlinear_average_pool(
    x: Array,
    x_scale: Array,
    x_zero: Array | None,
    y_scale: Array,
    y_zero: Array | None = None,
    *,
    channels_last: int = 0,
    **attributes: Any,
) -> Array:
    real = _offset(x, x_zero) * _one(x_scale, "x_scale")
    if channels_last:
        y = np.moveaxis(average_pool(np.moveaxis(real, -1, 1), **attributes), 1, -1)
    else:
        y = average_pool(real, **attributes)
    zero = np.zeros((), x.dtype) if y_zero is None else y_zero.reshape(())
    return quantize_linear(np.ascontiguousarray(y), y_scale.reshape(()), zero)


def _mean(
    x: Array, over: tuple[int, ...], x_scale: Array, x_zero: Array | None, y_scale: Array, y_zero: Array | None
) -> Array:
    """Mean over some axes, kept with size one, from an exact sum."""
    count = int(np.prod([x.shape[a] for a in over], dtype=np.int64))
    total = x.sum(axis=over, keepdims=True, dtype=np.int64) - count * int(scalar(x_zero, 0))
    factor = _one(x_scale, "x_scale") / (_one(y_scale, "y_scale") * np.float32(max(count, 1)))
    return _requantized(total.astype(F32) * factor, y_zero, x.dtype)


@op("QLinearGlobalAveragePool", domain=MS)
def qlinear_global_average_pool(
    x: Array, x_scale: Array, x_zero: Array, y_scale: Array, y_zero: Array, *, channels_last: int = 0
) -> Array:
    over = tuple(range(1, x.ndim - 1) if channels_last else range(2, x.ndim))
    return _mean(x, over, x_scale, x_zero, y_scale, y_zero)


@op("QLinearReduceMean", domain=MS)
def qlinear_reduce_mean(
    x: Array,
    x_scale: Array,
    x_zero: Array | None,
    y_scale: Array,
    y_zero: Array | None = None,
    *,
    axes: tuple[int, ...] = (),
    keepdims: int = 1,
) -> Array:
    over = tuple(axis_in(a, x.ndim) for a in axes) or tuple(range(x.ndim))
    y = _mean(x, over, x_scale, x_zero, y_scale, y_zero)
    return y if keepdims else y.reshape([d for i, d in enumerate(x.shape) if i not in over])


@op("QLinearConv", domain=MS)
def qlinear_conv_any_layout(x: Array, *rest: Array | None, channels_last: int = 0, **attributes: Any) -> Array:
    if not channels_last:
        return qlinear_conv(x, *rest, **attributes)  # type: ignore[arg-type]
    y = qlinear_conv(np.ascontiguousarray(np.moveaxis(x, -1, 1)), *rest, **attributes)  # type: ignore[arg-type]
    return np.ascontiguousarray(np.moveaxis(y, 1, -1))


@op("QGemm", domain=MS)
def qgemm(
    a: Array,
    a_scale: Array,
    a_zero: Array,
    b: Array,
    b_scale: Array,
    b_zero: Array,
    c: Array | None = None,
    y_scale: Array | None = None,
    y_zero: Array | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    if (y_scale is None) != (y_zero is None):
        raise InvalidArgument("y_scale and y_zero_point come together", remedy="Give both, or neither for floats")
    # A zero point for each column goes along the columns of B as it is multiplied.
    y = integer_product(a.T if transA else a, b.T if transB else b, a_zero, b_zero)
    if c is not None:  # in the units of the sums
        y = y.astype(F64, copy=False)
        y += c
    factor = np.float32(alpha) * _one(a_scale, "a_scale") * b_scale
    if y_scale is None or y_zero is None:
        return np.asarray(y.astype(F32) * factor)
    return _requantized(y.astype(F32) * (factor / _one(y_scale, "y_scale")), y_zero, y_zero.dtype)


@op("MatMulIntegerToFloat", domain=MS)
def matmul_integer_to_float(
    a: Array,
    b: Array,
    a_scale: Array,
    b_scale: Array,
    a_zero: Array | None = None,
    b_zero: Array | None = None,
    bias: Array | None = None,
) -> Array:
    y = integer_product(a, b, a_zero, b_zero).astype(F32, copy=False)
    factor = np.float32(_one(widen(a_scale), "a_scale")) * widen(b_scale)
    y *= factor if factor.size > 1 else factor.reshape(())
    if bias is not None:
        y += widen(bias)
    return y.astype(a_scale.dtype, copy=False)


@op("DynamicQuantizeMatMul", domain=MS)
def dynamic_quantize_matmul(
    a: Array, b: Array, b_scale: Array, b_zero: Array | None = None, bias: Array | None = None
) -> Array:
    codes, scale, zero = dynamic_quantize_linear(a)
    return matmul_integer_to_float(codes, b, scale, b_scale, zero, b_zero, bias)


@op("MulInteger", domain=MS)
def mul_integer(a: Array, a_zero: Array | None, b: Array, b_zero: Array | None = None) -> Array:
    return np.asarray(_offset(a, a_zero) * _offset(b, b_zero)).astype(np.int32)


@op("ReduceSumInteger", domain=MS)
def reduce_sum_integer(x: Array, *, axes: tuple[int, ...], keepdims: int = 1) -> Array:
    over = tuple(axis_in(a, x.ndim) for a in axes) or tuple(range(x.ndim))
    dtype = np.uint32 if x.dtype == np.uint8 else np.int32
    return np.asarray(x.sum(axis=over, keepdims=bool(keepdims), dtype=dtype))
