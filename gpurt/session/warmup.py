"""Feeds of zeros for InferenceSession.warmup."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpurt.dtypes import from_name
from gpurt.errors import InvalidArgument
from gpurt.loader import GraphInput
from gpurt.session.feeds import check_names

Shapes = Mapping[str, Sequence[int] | np.ndarray]
"""Input name -> shape, or the array itself where its content decides shapes."""


def listed(shapes: Shapes | Sequence[Shapes]) -> Sequence[Shapes]:
    """What was given to warmup as a list of mappings. Raises InvalidArgument for anything else."""
    found = [shapes] if isinstance(shapes, Mapping) else shapes
    if isinstance(found, str) or not isinstance(found, Sequence) or not all(isinstance(s, Mapping) for s in found):
        raise InvalidArgument(f"the shapes are {shapes!r}", remedy='Give {"x": (1, 3, 224, 224)} or a list of such')
    return found


def zeros(shapes: Shapes, inputs: Sequence[GraphInput], optional: frozenset[str]) -> dict[str, Any]:
    """Feeds of these shapes; inputs that are not named have the model's shape, if it is fixed.

    Raises InvalidArgument for names that the model does not have, for shapes that are none, and where one is missing.
    """
    check_names(shapes, inputs)
    feeds: dict[str, Any] = {}
    for info in inputs:
        given = shapes.get(info.name)
        if isinstance(given, np.ndarray):
            feeds[info.name] = given
        elif info.type.startswith("tensor(") and (given is not None or info.name not in optional):
            dtype = from_name(info.type[len("tensor(") : -1])
            shape = _shape(info, given)
            feeds[info.name] = _array(info.name, shape, dtype)
        elif given is not None or not (info.name in optional or info.type.startswith("optional")):
            raise InvalidArgument(
                f"input {info.name!r} is a {info.type}", remedy="Warm such a model up with a call of run"
            )
    return feeds


def _array(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    try:
        return np.full(shape, "", object) if dtype.kind == "O" else np.zeros(shape, dtype)
    except (MemoryError, ValueError, OverflowError) as e:  # ValueError: more than NumPy can count
        raise InvalidArgument(
            f"the shape of {name!r} is {shape}, for which there is no memory: {e}", remedy="Give smaller sizes"
        ) from e


def _shape(info: GraphInput, given: Sequence[int] | None) -> tuple[int, ...]:
    shape = info.shape if given is None else given
    if given is None and (shape is None or not all(isinstance(n, int) and n >= 0 for n in shape)):
        text = "unknown" if shape is None else f"[{', '.join('?' if n is None else str(n) for n in shape)}]"
        raise InvalidArgument(f"the shape of input {info.name!r} is {text}", remedy=f"Give {info.name!r} a shape")
    try:
        sizes = tuple(map(operator.index, shape))  # type: ignore[arg-type]
    except TypeError:
        sizes = (-1,)
    if any(n < 0 for n in sizes):
        raise InvalidArgument(f"the shape of {info.name!r} is {given!r}", remedy="Give a tuple of sizes")
    return sizes
