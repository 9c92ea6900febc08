"""Comparison, boolean and bitwise logic, the tests for NaN and infinity, and Where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpurt_cpu.ops.common import lifted
from gpurt_cpu.ops.table import Array, op

_BINARY: dict[str, Callable[[Array, Array], Any]] = {
    "And": np.logical_and,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}


def _binary(ufunc: Callable[[Array, Array], Any]) -> Callable[[Array, Array], Any]:
    def kernel(a: Array, b: Array) -> Any:
        return ufunc(a, b)

    return lifted(kernel)


for _name, _ufunc in _BINARY.items():
    op(_name)(_binary(_ufunc))


@op("Equal")
@lifted
def equal(a: Array, b: Array) -> Any:
    return np.asarray(np.equal(a, b)).astype(bool, copy=False)  # strings compare to an object array


@op("Not")
def logical_not(x: Array) -> Any:
    return np.logical_not(x)


@op("BitwiseNot")
def bitwise_not(x: Array) -> Any:
    return np.bitwise_not(x)


@op("IsNaN")
@lifted
def is_nan(x: Array) -> Any:
    return np.isnan(x)


@op("IsInf")
@lifted
def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Any:
    if detect_negative and detect_positive:
        return np.isinf(x)
    if detect_negative:
        return np.isneginf(x)
    return np.isposinf(x) if detect_positive else np.zeros(x.shape, bool)


@op("Where")
def where(condition: Array, x: Array, y: Array) -> Any:
    return np.where(condition, x, y)
