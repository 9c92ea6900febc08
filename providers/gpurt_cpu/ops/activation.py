"""Activations: the Relu, sigmoid and Gelu families, and the normalised exponentials along an axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpurt_cpu.ops.common import BFLOAT16, BLOCK, F32, NARROW, blocked, lifted
from gpurt_cpu.ops.elementwise import erf
from gpurt_cpu.ops.table import Array, op


@blocked
def sigmoid(x: Array) -> Any:
    """Logistic function; ``exp`` may overflow to infinity, which gives the right zero."""
    y = np.exp(-x)
    y += 1
    return np.reciprocal(y, out=y) if isinstance(y, np.ndarray) else 1 / y


@blocked
def softplus(x: Array) -> Any:
    """``log(1 + exp(x))`` without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


@op("Relu")
@lifted
def relu(x: Array) -> Any:
    return np.maximum(x, np.zeros((), x.dtype))


@op("LeakyRelu")
@lifted
def leaky_relu(x: Array, *, alpha: float = 0.01) -> Any:
    return np.maximum(x, alpha * x) if 0 <= alpha <= 1 else np.where(x < 0, alpha * x, x)


@op("PRelu")
@lifted
def prelu(x: Array, slope: Array) -> Any:
    y = np.minimum(x, np.zeros((), x.dtype)) * slope
    y += np.maximum(x, np.zeros((), x.dtype))
    return y


@op("ThresholdedRelu")
@lifted
def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Any:
    return np.where(x > alpha, x, np.zeros((), x.dtype))


@op("Elu")
@lifted
def elu(x: Array, *, alpha: float = 1.0) -> Any:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


@op("Selu")
@lifted
def selu(x: Array, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323) -> Any:
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


@op("Celu")
@lifted
def celu(x: Array, *, alpha: float = 1.0) -> Any:
    return np.maximum(x, 0) + np.minimum(alpha * np.expm1(x / alpha), 0)


@op("Sigmoid")
@lifted
def sigmoid_op(x: Array) -> Any:
    return sigmoid(x)


@op("HardSigmoid")
@lifted
def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Any:
    return np.clip(alpha * x + beta, 0, 1)


@op("HardSwish")
@lifted
def hard_swish(x: Array) -> Any:
    return x * np.clip(x * (1 / 6) + 0.5, 0, 1)


@op("Softplus")
@lifted
def softplus_op(x: Array) -> Any:
    return softplus(x)


@op("Softsign")
@lifted
def softsign(x: Array) -> Any:
    return x / (1 + np.abs(x))


@op("Mish")
@lifted
def mish(x: Array) -> Any:
    return x * np.tanh(softplus(x))


@op("Swish")
@lifted
def swish(x: Array, *, alpha: float = 1.0) -> Any:
    return x * sigmoid(x if alpha == 1 else alpha * x)


@op("SwiGLU")
@lifted
def swiglu(a: Array, b: Array, *, alpha: float = 1.0) -> Any:
    return a * sigmoid(a if alpha == 1 else alpha * a) * b


@op("Shrink")
@lifted
def shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Any:
    wide = x if x.dtype.kind == "f" else x.astype(np.float64)
    y = np.where(wide < -lambd, wide + bias, np.where(wide > lambd, wide - bias, 0))
    return y.astype(x.dtype)


@blocked
def _gelu_erf(x: Array) -> Any:
    return 0.5 * x * (1 + erf(x * (1 / math.sqrt(2))))


@blocked
def _gelu_tanh(x: Array) -> Any:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


@op("Gelu")
@op("Gelu", domain="com.microsoft")
@lifted
def gelu(x: Array, *, approximate: str = "none") -> Any:
    return _gelu_tanh(x) if approximate == "tanh" else _gelu_erf(x)


@op("FastGelu", domain="com.microsoft")
@lifted
def fast_gelu(x: Array, bias: Array | None = None) -> Any:
    return _gelu_tanh(x if bias is None else x + bias)


@op("BiasGelu", domain="com.microsoft")
@lifted
def bias_gelu(x: Array, bias: Array) -> Any:
    return _gelu_erf(x + bias)


@op("QuickGelu", domain="com.microsoft")
@lifted
def quick_gelu(x: Array, *, alpha: float = 1.702) -> Any:
    return x * sigmoid(alpha * x)


def softmax(x: Array, axis: int = -1) -> Array:
    """Softmax of a float array along an axis; rows that hold only minus infinity give NaN, as the formula does."""
    if axis in (-1, x.ndim - 1) and x.size > BLOCK and x.flags.c_contiguous:
        rows, y = x.reshape(-1, x.shape[-1]), np.empty(x.shape, x.dtype)
        results = y.reshape(rows.shape)
        count = max(BLOCK // rows.shape[1], 1)  # rows at a time: four passes go over them
        for i in range(0, len(rows), count):
            _softmax(rows[i : i + count], -1, results[i : i + count])
        return y
    return _softmax(x, axis, np.empty_like(x))


def _softmax(x: Array, axis: int, out: Array) -> Array:
    np.subtract(x, np.max(x, axis=axis, keepdims=True, initial=-np.inf), out=out)
    np.exp(out, out=out)
    np.divide(out, np.sum(out, axis=axis, keepdims=True), out=out)
    return out


def narrow_softmax(x: Array, dtype: np.dtype[Any], axis: int = -1) -> Array:
    """Softmax in a narrow type, of it or of float32: rounded after each step, as ONNX's reference does.

    Models in these types are compared with runtimes that round so, and one step differs by a whole unit of bfloat16.
    The arithmetic itself stays in float32, where NumPy is fast. Only the sum is different by type: NumPy adds float16
    in float32, but bfloat16 one by one in bfloat16, which stalls at 256 equal terms. So bfloat16 is added like that in
    runs of eight, which gives the reference's result for short rows and a sound one for long rows.
    """
    if axis not in (-1, x.ndim - 1):
        return np.moveaxis(narrow_softmax(np.moveaxis(x, axis, -1), dtype), -1, axis)
    out = np.empty(x.shape, dtype)
    if out.size == 0:
        return out
    rows, results = x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1])
    count = max(BLOCK // x.shape[-1], 1)  # rows at a time: five conversions go by, which must stay in cache
    for i in range(0, len(rows), count):
        block = rows[i : i + count].astype(F32, copy=False)
        y = np.subtract(block, block.max(axis=-1, keepdims=True)).astype(dtype).astype(F32)
        y = np.exp(y, out=y).astype(dtype)
        wide = y.astype(F32)
        runs = wide
        if dtype == BFLOAT16:
            runs = np.add.reduceat(y, np.arange(0, y.shape[-1], 8), axis=-1).astype(F32)
        wide /= runs.sum(axis=-1, keepdims=True).astype(dtype).astype(F32)
        results[i : i + count] = wide
    return out


@op("Softmax")
def softmax_op(x: Array, *, axis: int = -1) -> Any:
    rows = np.atleast_1d(x)
    y = narrow_softmax(rows, x.dtype, axis) if x.dtype in NARROW else softmax(rows, axis)
    return y.reshape(x.shape)


@op("LogSoftmax")
@lifted
def log_softmax(x: Array, *, axis: int = -1) -> Any:
    rows = np.atleast_1d(x)
    y = rows - np.max(rows, axis=axis, keepdims=True, initial=-np.inf)
    y -= np.log(np.sum(np.exp(y), axis=axis, keepdims=True))
    return y.reshape(x.shape)


@op("Hardmax")
@lifted
def hardmax(x: Array, *, axis: int = -1) -> Any:
    rows = np.atleast_1d(x)
    y = np.zeros_like(rows)
    if rows.size:
        np.put_along_axis(y, np.argmax(rows, axis=axis, keepdims=True), 1, axis)
    return y.reshape(x.shape)
