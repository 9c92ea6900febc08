"""Sequences, which are Python lists, and optionals, which are a value or None."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.common import axis_in, ints, scalar
from gpurt_cpu.ops.movement import cut
from gpurt_cpu.ops.table import Array, op


def _place(position: Array | None, length: int, *, default: int, inclusive: bool = False) -> int:
    at = default if position is None else int(scalar(position))
    if not -length <= at < length + inclusive:
        raise InvalidArgument(f"position {at} lies outside a sequence of {length}")
    return at + length if at < 0 else at


@op("SequenceEmpty")
def sequence_empty(*, dtype: int | None = None) -> list[Array]:  # noqa: ARG001 - the type of the value says it
    return []


@op("SequenceConstruct")
def sequence_construct(*arrays: Array) -> list[Array]:
    return list(arrays)


@op("SequenceInsert")
def sequence_insert(sequence: list[Array], x: Array, position: Array | None = None) -> list[Array]:
    at = _place(position, len(sequence), default=len(sequence), inclusive=True)
    return [*sequence[:at], x, *sequence[at:]]


@op("SequenceErase")
def sequence_erase(sequence: list[Array], position: Array | None = None) -> list[Array]:
    at = _place(position, len(sequence), default=-1)
    return [*sequence[:at], *sequence[at + 1 :]]


@op("SequenceAt")
def sequence_at(sequence: list[Array], position: Array) -> Array:
    return sequence[_place(position, len(sequence), default=0)]


@op("SequenceLength")
def sequence_length(sequence: list[Array]) -> Array:
    return np.array(len(sequence), np.int64)


@op("ConcatFromSequence")
def concat_from_sequence(sequence: list[Array], *, axis: int, new_axis: int = 0) -> Array:
    if not sequence:
        raise InvalidArgument("ConcatFromSequence of an empty sequence", remedy="It needs at least one tensor")
    join = np.stack if new_axis else np.concatenate
    return join(sequence, axis=axis_in(axis, sequence[0].ndim + bool(new_axis)))


@op("SplitToSequence")
def split_to_sequence(x: Array, split: Array | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Array]:
    axis = axis_in(axis, x.ndim)
    length = x.shape[axis]
    if split is None:
        pieces = cut(x, [1] * length, axis)
        return pieces if keepdims else [p.reshape(p.shape[:axis] + p.shape[axis + 1 :]) for p in pieces]
    if split.ndim == 0:
        size = int(scalar(split))
        if size <= 0:
            raise InvalidArgument(f"split is {size}", remedy="Give a positive size")
        return cut(x, [min(size, length - i) for i in range(0, length, size)], axis)
    sizes = ints(split)
    if sum(sizes) != length:
        raise InvalidArgument(f"split {sizes} does not add up to {length}", remedy="Give sizes that fill the axis")
    return cut(x, sizes, axis)


@op("Optional")
def optional(value: Any = None, *, type: Any = None) -> Any:  # noqa: A002, ARG001 - the type of the value says it
    return value


@op("OptionalHasElement")
def optional_has_element(value: Any = None) -> Array:
    return np.array(value is not None, bool)


@op("OptionalGetElement")
def optional_get_element(value: Any) -> Any:
    if value is None:
        raise InvalidArgument("the optional is empty", remedy="Test it with OptionalHasElement first")
    return value
