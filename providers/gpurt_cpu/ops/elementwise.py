"""Arithmetic, element by element: one array, two arrays with broadcasting, or any number of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import F32, blocked, lifted, scalar
from gpurt_cpu.ops.table import Array, op

_UNARY: dict[str, Callable[[Array], Any]] = {
    "Abs": np.abs,
    "Acos": np.arccos,
    "Acosh": np.arccosh,
    "Asin": np.arcsin,
    "Asinh": np.arcsinh,
    "Atan": np.arctan,
    "Atanh": np.arctanh,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Cosh": np.cosh,
    "Exp": np.exp,
    "Floor": np.floor,
    "Log": np.log,
    "Neg": np.negative,
    "Round": np.rint,
    "Sign": np.sign,
    "Sin": np.sin,
    "Sinh": np.sinh,
    "Sqrt": np.sqrt,
    "Tan": np.tan,
    "Tanh": np.tanh,
}

_BINARY: dict[str, Callable[[Array, Array], Any]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}


def _register() -> None:
    for name, ufunc in _UNARY.items():
        op(name)(_unary(ufunc))
    for name, binary in _BINARY.items():
        op(name)(_binary(binary))


def _unary(ufunc: Callable[[Array], Any]) -> Callable[[Array], Any]:
    def kernel(x: Array) -> Any:
        return ufunc(x)

    return lifted(kernel)


def _binary(ufunc: Callable[[Array, Array], Any]) -> Callable[[Array, Array], Any]:
    def kernel(a: Array, b: Array) -> Any:
        return ufunc(a, b)

    return lifted(kernel)


_register()


@op("Reciprocal")
@lifted
def reciprocal(x: Array) -> Any:
    return 1 / x


@op("Div")
@lifted
def div(a: Array, b: Array) -> Any:
    if a.dtype.kind == "f" or a.dtype.kind == "c":
        return a / b
    quotient = np.floor_divide(a, b)
    if a.dtype.kind == "u":
        return quotient
    inexact = (quotient * b != a) & (b != 0)
    return quotient + (inexact & ((a < 0) != (b < 0))).astype(a.dtype)


@op("Mod")
@lifted
def mod(a: Array, b: Array, *, fmod: int = 0) -> Any:
    if fmod:
        return np.fmod(a, b)
    return np.mod(a, b)


@op("Pow")
def power(x: Array, y: Array) -> Any:
    if x.dtype.kind in "iu" and y.dtype.kind in "iu":
        if not (y.dtype.kind == "i" and y.size and y.min() < 0):
            return np.power(x, y.astype(x.dtype))
        return np.power(x.astype(np.float64), y).astype(x.dtype)
    if x.dtype.kind in "iu":
        return np.power(x.astype(np.float64), y.astype(np.float64)).astype(x.dtype)
    wide = np.result_type(F32, x.dtype)
    base = x.astype(wide, copy=False)
    if y.size == 1 and y.ndim <= x.ndim:
        exponent = float(y.reshape(-1)[0])
        if exponent in (1.0, 2.0, 3.0):
            cube = base if exponent == 1.0 else base * base if exponent == 2.0 else base * base * base
            return cube.astype(x.dtype, copy=exponent == 1.0)
    if y.dtype == np.float64:
        wide = y.dtype
    return np.power(base, y.astype(wide, copy=False)).astype(x.dtype, copy=False)


def _fold(ufunc: Callable[..., Any], arrays: tuple[Array, ...]) -> Array:
    """Combine any number of arrays; the first result is reused where the shapes allow."""
    if len(arrays) == 1:
        return arrays[0].copy()
    total = np.asarray(ufunc(arrays[0], arrays[1]))
    for x in arrays[2:]:
        fits = np.broadcast_shapes(total.shape, x.shape) == total.shape
        total = np.asarray(ufunc(total, x, out=total) if fits else ufunc(total, x))
    return total


@op("Sum")
@lifted
def add_all(*arrays: Array) -> Array:
    return _fold(np.add, arrays)


@op("Max")
@lifted
def maximum(*arrays: Array) -> Array:
    return _fold(np.maximum, arrays)


@op("Min")
@lifted
def minimum(*arrays: Array) -> Array:
    return _fold(np.minimum, arrays)


@op("Mean")
@lifted
def mean(*arrays: Array) -> Any:
    return _fold(np.add, arrays) / len(arrays)


@op("Clip")
@lifted
def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Any:
    if low is not None:
        x = np.maximum(x, low.reshape(()))
    if high is not None:
        x = np.minimum(x, high.reshape(()))
    return x


@op("BitShift")
def bit_shift(x: Array, y: Array, *, direction: str) -> Any:
    if direction not in ("LEFT", "RIGHT"):
        raise InvalidArgument(f"direction is {direction!r}", remedy="Use 'LEFT' or 'RIGHT'")
    # NumPy already shifts by negative and too great amounts the way ONNX asks for.
    return np.left_shift(x, y) if direction == "LEFT" else np.right_shift(x, y)


# erf(x) = tanh(x P(x^2)), P the polynomial for which the greatest error is least, highest power first (fitted for this;
# 6e-8 in exact arithmetic, 1.3e-7 in float32). NumPy's tanh costs less than the divisions of a rational function.
ERF: Final = tuple(
    np.float32(c)
    for c in (1.589600192e-07, -5.985687413e-06, 8.971256926e-05, -6.257195317e-04,
              -1.843837336e-04, 1.027654814e-01, 1.128379705e+00)
)  # fmt: skip


def horner(square: Array, out: Array, coefficients: Sequence[np.float32]) -> None:
    """Write a polynomial, highest power first, of an array that is not ``out``."""
    np.multiply(square, coefficients[0], out=out)
    for c in coefficients[1:-1]:
        np.add(out, c, out=out)
        np.multiply(out, square, out=out)
    np.add(out, coefficients[-1], out=out)


def erf32(x: Array) -> Any:
    """Error function of a float32 array."""
    total = np.empty_like(x)
    horner(np.square(x), total, ERF)
    np.multiply(total, x, out=total)
    return np.tanh(total, out=total)


@blocked
def erf(x: Array) -> Any:
    """Error function of a float32 or float64 array, in the array's own precision."""
    if x.dtype == F32:
        return erf32(x)
    return np.asarray(_erf_fn(x)).astype(x.dtype)


_erf_fn = np.frompyfunc(math.erf, 1, 1)


@op("Erf")
@lifted
def erf_op(x: Array) -> Any:
    if x.dtype.kind != "f":
        return np.asarray(erf(x.astype(np.float64))).astype(x.dtype)
    return erf(x)


@op("Range")
@lifted
def arange(start: Array, limit: Array, delta: Array, *, stash_type: int = 1) -> Any:  # noqa: ARG001 - float32 always
    first, last, step = scalar(start), scalar(limit), scalar(delta)
    if step == 0:
        raise InvalidArgument("Range has a delta of 0", remedy="Use a positive or a negative step")
    n = max(math.ceil((last - first) / step), 0) if start.dtype.kind == "f" else len(range(first, last, step))
    if start.dtype.kind == "f":
        return (first + np.arange(n) * step).astype(start.dtype)
    return np.arange(n, dtype=start.dtype) * np.asarray(delta).reshape(()) + np.asarray(start).reshape(())
