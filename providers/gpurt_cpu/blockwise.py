"""Several elementwise nodes as one pass over memory: blocks that stay in cache, intermediates in scratch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gpurt.errors import RuntimeException
from gpurt.graph.view import NodeView
from gpurt_cpu.memory import Empty
from gpurt_cpu.ops.common import channels_last
from gpurt_cpu.ops.table import Array

BLOCK: Final = 1 << 15  # elements: a few float32 arrays of this size fit a second-level cache
_SHAPES: Final = 16  # layouts kept for each chain

NOTHING: Final[Mapping[int, Array]] = {}

Compute = Callable[[Sequence[Array], Array], Any]
"""Writes an array from its arguments; the array may be one of them."""


@dataclass(frozen=True, slots=True)
class Step:
    """One elementwise computation: values by number in, one value out.

    Attributes:
        apart: whether the result must not be written over an argument; not for the last step of a chain.
    """

    node: NodeView
    compute: Compute
    args: tuple[int, ...]
    result: int
    apart: bool = False


class _Layout:
    """How a chain walks arrays of certain shapes: what is computed once, and where each block lies.

    Attributes:
        shape: shape of the chain's result.
        once: steps whose results are far smaller than the chain's; they run before the blocks.
        inner: the other steps, in order, each with the number of its scratch array (-1: the result).
        places: for each block its index in the result.
        blocks: for each block the index of each value that is read, by value.
        repeated: constants along the last axis, repeated along the one before: steps are faster over longer runs.
    """

    def __init__(
        self, steps: Sequence[Step], shapes: dict[int, tuple[int, ...]], constants: Mapping[int, Array]
    ) -> None:
        for s in steps:
            try:
                shapes[s.result] = np.broadcast_shapes(*(shapes[a] for a in s.args))
            except ValueError as e:
                found = ", ".join(str(list(shapes[a])) for a in s.args)
                raise RuntimeException(
                    f"the shapes {found} do not broadcast", node=s.node.name, op=s.node.op, provider="cpu"
                ) from e
        self.shapes = shapes
        self.shape = shapes[steps[-1].result]
        size = math.prod(self.shape)
        small = {s.result for s in steps if 8 * math.prod(shapes[s.result]) <= size}
        self.once = [s for s in steps if s.result in small]
        inner = [s for s in steps if s.result not in small]
        made = {s.result for s in inner}
        outside = {a for s in inner for a in s.args if a not in made}
        self.repeated: dict[int, Array] = {}
        for v in outside & constants.keys():
            readers = [shapes[s.result] for s in steps if v in s.args]
            if all(r[-2:] == self.shape[-2:] for r in readers) and _is_row(shapes[v], self.shape):
                row = np.broadcast_to(constants[v].reshape(-1), self.shape[-2:])
                self.repeated[v] = np.ascontiguousarray(row)
                shapes[v] = row.shape
        self.places = _cut(self.shape)
        self.blocks = [{v: _index(shapes[v], self.shape, where) for v in outside} for where in self.places]
        self.inner, self.scratch = _scratch(inner)


def _is_row(shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    """Whether an array has but a last axis, which is short, and what it broadcasts to has another before that."""
    return (
        len(out) > 1 and shape[-1:] == out[-1:] and 1 < math.prod(shape) == out[-1] and math.prod(out[-2:]) <= 2 * BLOCK
    )


def _cut(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Indices that cut an array into blocks: whole inner axes, a range of one axis, single places on outer axes."""
    if math.prod(shape) <= 2 * BLOCK:
        return [()]
    axis, rest = len(shape), 1
    while rest < BLOCK:
        axis -= 1
        rest *= shape[axis]
    rows = max(1, BLOCK * shape[axis] // rest)
    return [
        (*(slice(i, i + 1) for i in at), slice(start, start + rows))
        for at in np.ndindex(*shape[:axis])
        for start in range(0, shape[axis], rows)
    ]


def _index(shape: tuple[int, ...], out: tuple[int, ...], where: tuple[slice, ...]) -> tuple[slice, ...]:
    """The part of a value that broadcasts to a block of the result."""
    missing = len(out) - len(shape)
    return tuple(slice(None) if shape[axis - missing] == 1 else where[axis] for axis in range(missing, len(where)))


def _scratch(steps: Sequence[Step]) -> tuple[list[tuple[Step, int]], int]:
    """A scratch array for each step but the last, taken over from an argument that is read for the last time."""
    last = {a: i for i, s in enumerate(steps) for a in s.args}
    held: dict[int, int] = {}
    free: list[int] = []
    count = 0
    out = []
    for i, s in enumerate(steps):
        done = [held.pop(a) for a in dict.fromkeys(s.args) if a in held and last[a] == i]
        if not s.apart:
            free += done
        if i == len(steps) - 1:
            out.append((s, -1))
            break
        if not free:
            free.append(count)
            count += 1
        held[s.result] = free.pop()
        if s.apart:
            free += done
        out.append((s, held[s.result]))
    return out, count


class Chain:
    """Elementwise steps over float32 arrays; the last one yields the result."""

    def __init__(self, steps: Sequence[Step], empty: Empty, constants: Mapping[int, Array] = NOTHING) -> None:
        self.steps = steps
        self._constants = constants
        self._empty = empty
        self._layouts: dict[tuple[tuple[int, ...], ...], _Layout] = {}
        made = {s.result for s in steps}
        self.outside = list(dict.fromkeys(a for s in steps for a in s.args if a not in made))

    def run(self, values: dict[int, Array], owned: Sequence[int]) -> Array:
        """The result. Of the values, which `values` gains to, those `owned` may be overwritten by it."""
        if any(channels_last(values[v]) for v in self.outside):
            rank = max(values[v].ndim for v in self.outside)
            for v in self.outside:
                values[v] = _turned(values[v], rank)
            result = self._run(values, owned)
            return result.transpose(0, rank - 1, *range(1, rank - 1))
        return self._run(values, owned)

    def _run(self, values: dict[int, Array], owned: Sequence[int]) -> Array:
        key = tuple(values[v].shape for v in self.outside)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _SHAPES:
                self._layouts.clear()
            layout = _Layout(self.steps, dict(zip(self.outside, key, strict=True)), self._constants)
            self._layouts[key] = layout
        values.update(layout.repeated)
        for s in layout.once:
            out = values[s.result] = np.empty(layout.shapes[s.result], np.float32)
            s.compute([values[a] for a in s.args], out)
        result = next((values[v] for v in owned if values[v].shape == layout.shape), None)
        if result is None:
            result = self._empty(layout.shape)
        buffers = [self._empty((min(result.size, 2 * BLOCK),)) for _ in range(layout.scratch)]
        views: dict[tuple[int, tuple[int, ...]], Array] = {}
        inner = layout.inner
        for where, index in zip(layout.places, layout.blocks, strict=True):
            part = result[where] if where else result
            now = {v: values[v][at] if at else values[v] for v, at in index.items()}
            for s, number in inner:
                out = part
                if number >= 0:
                    shape = layout.shapes[s.result]
                    if shape != layout.shape:
                        shape = _part(shape, layout.shape, part.shape)
                    else:
                        shape = part.shape
                    found = views.get((number, shape))
                    if found is None:
                        found = views[number, shape] = buffers[number][: math.prod(shape)].reshape(shape)
                    out = found
                s.compute([now[a] for a in s.args], out)
                now[s.result] = out
        return result


def _turned(x: Array, rank: int) -> Array:
    """View of an array that broadcasts to a rank, with what is the second axis at that rank as the last."""
    if x.ndim <= rank - 2:
        return x[..., None] if x.ndim else x
    x = x if x.ndim == rank else x[None]
    return x.transpose(0, *range(2, rank), 1)


def _part(shape: tuple[int, ...], whole: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the part of a value that belongs to a block of the result."""
    missing = len(whole) - len(shape)
    return tuple(1 if n == 1 else block[missing + i] for i, n in enumerate(shape))
