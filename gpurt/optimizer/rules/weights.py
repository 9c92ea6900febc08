"""Arithmetic on weights that is done ahead: in float64, and only where the result is finite in the weights' type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts

_EPS: Final = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def exact(value: ir.Value | None) -> np.ndarray | None:
    """A constant of floating-point numbers in float64; None for anything else."""
    content = facts.array(value)
    return content.astype(np.float64) if content is not None and is_exact(value) else None


def is_exact(value: ir.Value | None) -> bool:
    """Whether exact() has an answer, without making it: that of a large model's weights takes a while."""
    return facts.array(value) is not None and facts.is_float(value)


def rounded(content: np.ndarray, like: ir.Value, axis: int | None = None) -> np.ndarray | None:
    """An array in the type of another value; None where that type has no room for it.

    Numbers that get lost below the smallest normal one must not matter beside the largest: of the whole array, or of
    those with the same index along an axis.
    """
    model = facts.array(like)
    assert model is not None, "weights are constants"
    with np.errstate(over="ignore"):
        result = content.astype(model.dtype)
    back = result.astype(np.float64)
    if not np.isfinite(back).all():
        return None
    others = None if axis is None else tuple(i for i in range(content.ndim) if i != axis)
    largest = np.abs(content).max(axis=others, keepdims=True, initial=0)
    return result if (np.abs(back - content) <= _EPS[model.dtype.name] * largest).all() else None


def along(constant: ir.Value | None, axis: int, rank: int, size: int) -> np.ndarray | None:
    """A constant that broadcasts along one axis alone of a tensor, as ``size`` numbers; None where it does not.

    Args:
        constant: ``[C,1,1]`` or ``[1,C,1,1]`` for the channels of an image, or of one element.
        axis: where the numbers differ.
        rank: number of dimensions of the tensor.
        size: its dimension at the axis.
    """
    content = exact(constant)
    if content is None or content.ndim > rank:
        return None
    content = content.reshape((1,) * (rank - content.ndim) + content.shape)
    if content.size not in (1, size) or content.size != content.shape[axis]:
        return None
    return np.broadcast_to(content.reshape(-1), (size,))


@dataclass(frozen=True, slots=True)
class Affine:
    """``y = x * scale + shift`` for each channel."""

    scale: np.ndarray
    shift: np.ndarray


def batch_norm(node: ir.Node) -> Affine | None:
    """What BatchNormalization does at inference when all that it reads beside x is constant."""
    values = [exact(v) for v in node.inputs[1:5]]
    if facts.attr(node, "training_mode", 0) or len(values) < 4 or any(v is None for v in values):
        return None
    scale, bias, mean, var = (v for v in values if v is not None)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(var + facts.attr(node, "epsilon", 1e-5))
        return Affine(factor, bias - mean * factor) if np.isfinite(factor).all() else None
