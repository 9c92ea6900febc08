"""Operators that make a tensor out of attributes or of a few numbers: constants, ranges, random values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import F32, I32, STRING, Inputs, attr_dtype, ints, like, need, number
from gpurt.infer.shapes import text
from gpurt.infer.table import rule
from gpurt.spec import Spec, Unknown
from gpurt.symbolic import Size

# The attributes that Constant may hold its value in, and how each becomes an array.
_VALUES: dict[str, Callable[[Any], np.ndarray]] = {
    "value": np.asarray,
    "value_float": lambda v: np.array(v, np.float32),
    "value_floats": lambda v: np.array(v, np.float32),
    "value_int": lambda v: np.array(v, np.int64),
    "value_ints": lambda v: np.array(v, np.int64),
    "value_string": lambda v: np.array(v, STRING),
    "value_strings": lambda v: np.array(v, STRING),
}


@rule("Constant")
def constant(node: NodeView, inputs: Inputs) -> list[Spec]:
    for name, convert in _VALUES.items():
        value = node.attr(name)
        if value is not None:
            return [Spec.of(convert(value))]
    raise Unknown("Constant holds no dense value")


@rule("ConstantOfShape")
def constant_of_shape(node: NodeView, inputs: Inputs) -> list[Spec]:
    shape = ints(node, inputs, 0, "input")
    if min(shape, default=0) < 0:
        raise ValueError(f"ConstantOfShape: {text(shape)} has a negative dimension")
    value = node.attr("value")
    return [Spec(F32 if value is None else np.asarray(value).dtype, shape)]


def range_length(start: float, limit: float, delta: float) -> int:
    """Number of elements of a Range. Raises ValueError where delta is 0."""
    if delta == 0:
        raise ValueError("Range: delta is 0")
    if any(isinstance(n, Size) for n in (start, limit, delta)):
        return max(-((start - limit) // delta), 0)  # type: ignore[return-value]
    return max(math.ceil((limit - start) / delta), 0)


@rule("Range")
def range_(node: NodeView, inputs: Inputs) -> list[Spec]:
    start, limit, delta = (number(node, inputs, i, name) for i, name in enumerate(("start", "limit", "delta")))
    return [like(need(node, inputs, 0), (range_length(start, limit, delta),))]


@rule("EyeLike")
def eye_like(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if x.rank != 2:
        raise ValueError(f"EyeLike: input {text(x.shape)} must be a matrix")
    return [like(x, dtype=attr_dtype(node, "dtype", x.dtype))]


@rule("Bernoulli", "RandomNormalLike", "RandomUniformLike")
def random_like(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x, dtype=attr_dtype(node, "dtype", x.dtype))]


@rule("RandomNormal", "RandomUniform")
def random(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [Spec(attr_dtype(node, "dtype", F32), tuple(node.attr("shape")))]


@rule("Multinomial")
def multinomial(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if x.rank != 2:
        raise ValueError(f"Multinomial: input {text(x.shape)} must be a matrix")
    return [Spec(attr_dtype(node, "dtype", I32), (x.shape[0], node.attr("sample_size", 1)))]
