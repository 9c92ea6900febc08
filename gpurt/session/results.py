"""What run hands out: arrays that are the caller's alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ctypes import addressof, c_byte
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument, suggest
from gpurt.loader import GraphInput
from gpurt.plan.values import aligned_empty
from gpurt.spec import Spec
from gpurt.tensor import Tensor


def positions(output_names: Sequence[str] | None, outputs: Sequence[GraphInput]) -> list[int]:
    """Where outputs of these names are among the model's; all for None. Raises InvalidArgument."""
    known = [o.name for o in outputs]
    if output_names is None:
        return list(range(len(known)))
    if isinstance(output_names, str) or not isinstance(output_names, Iterable):
        raise InvalidArgument(f"output_names is {output_names!r}", remedy="Give a list of names or None")
    for name in output_names:
        if name not in known:
            raise InvalidArgument(
                f"the model has no output {name!r}{suggest(str(name), known)}",
                remedy=f"Its outputs are {', '.join(known)}",
            )
    return [known.index(name) for name in output_names]


def owned(values: Sequence[Any], feeds: Iterable[Any], fixed: frozenset[int]) -> list[Any]:
    """Arrays that are the caller's alone, at 64-byte boundaries; copies are made only where they are not.

    `fixed` are the ids of the arrays that own the memory of the model's constants.
    """
    taken = {id(root(f)) for f in feeds if isinstance(f, np.ndarray)}
    found = []
    for value in values:
        if isinstance(value, np.ndarray) and value.dtype.kind == "O":
            value = value.copy()
        elif isinstance(value, np.ndarray):
            owner, flags = root(value), value.flags
            alone = id(owner) not in taken and id(owner) not in fixed and owner.flags.owndata
            if not (alone and flags.writeable and flags.c_contiguous and address(value) % 64 == 0):
                copy = aligned_empty(Spec(value.dtype, value.shape))
                copy[...] = value
                value, owner = copy, root(copy)
            taken.add(id(owner))
        found.append(value)
    return found


def result(value: Any, bound: Tensor | None, feeds: Iterable[Any], fixed: frozenset[int]) -> Any:
    """What a binding yields: the caller's tensor, or one whose memory is the caller's alone."""
    if bound is not None:
        return bound
    if isinstance(value, Tensor) and value.storage is None:
        (array,) = owned([value.numpy()], feeds, fixed)
        return Tensor(value.dtype, value.shape, array=array)
    return value


def root(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def address(array: np.ndarray) -> int:
    """Where a writable, contiguous array begins."""
    # Half of the time that ndarray.ctypes takes; dtypes that others register have no buffer protocol.
    if array.dtype.isbuiltin == 1 and array.size:
        return addressof(c_byte.from_buffer(array))  # type: ignore[arg-type]
    return array.ctypes.data
