"""What a run hands to its caller: memory that is the caller's alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpurt.plan.values import aligned_empty
from gpurt.spec import Spec
from gpurt.tensor import Tensor


def owned(values: Sequence[Any], foreign: Sequence[Any]) -> list[Any]:
    """Arrays that are the caller's alone, at 64-byte boundaries; copies are made only where they are not."""
    taken = {id(_root(f)) for f in foreign if isinstance(f, np.ndarray)}
    owned = []
    for value in values:
        if isinstance(value, np.ndarray) and value.dtype.kind == "O":
            value = value.copy()
        elif isinstance(value, np.ndarray):
            root = _root(value)
            alone = id(root) not in taken and root.flags.owndata and value.flags.writeable
            if not (alone and value.flags.c_contiguous and value.ctypes.data % 64 == 0):
                copy = aligned_empty(Spec(value.dtype, value.shape))
                copy[...] = value
                value = copy
            taken.add(id(_root(value)))
        owned.append(value)
    return owned


def result(value: Any, bound: Tensor | None, foreign: Sequence[Any]) -> Any:
    """What a binding yields: the caller's tensor, or one whose memory is the caller's alone."""
    if bound is not None:
        return bound
    if isinstance(value, Tensor) and value.storage is None:
        (array,) = owned([value.numpy()], foreign)
        return Tensor(value.dtype, value.shape, array=array)
    return value


def _root(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
