"""Operands of the product that gemm() emits: matrices in memory, panels for the CPU class, columns of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpurt.device.lowering import Ref
from gpurt.device.weights import blank


@dataclass(frozen=True, slots=True, eq=False)
class Mat:
    """A matrix, or a batch of them, in a tensor's memory; all strides are in elements.

    Attributes:
        ref: the tensor, from the first matrix's first element on.
        row: stride between rows.
        col: stride between columns.
        batch: stride for each batch dimension of the product; empty means 0 everywhere.
    """

    ref: Ref
    row: int
    col: int
    batch: tuple[int, ...] = ()

    @property
    def t(self) -> Mat:
        """The transposed matrix."""
        return Mat(self.ref, self.col, self.row, self.batch)

    def shifted(self, offset: int, batch: tuple[int, ...]) -> Mat:
        """The same matrix further on in memory, with other batch strides."""
        return Mat(self.ref.at(offset, self.ref.shape) if offset else self.ref, self.row, self.col, batch)


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """B in the form that the CPU class reads: float32 [batch, panel, k, 16], columns filled up with zeros."""

    ref: Ref
    batch: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """B of a convolution: element (k, pixel) is at table[k] plus the pixel's position in padded planes.

    Attributes:
        ref: float32 planes (CPU class) or planes of any type, see conv_pad.cl.
        table: int32 offset for each k.
        plane: rows and columns of a plane; leading dimensions follow without gaps.
        out: output depth, height and width.
        batch: stride for each batch dimension.
    """

    ref: Ref
    table: Ref
    plane: tuple[int, int]
    out: tuple[int, int, int]
    batch: tuple[int, ...]


def panels(b: np.ndarray) -> np.ndarray:
    """Pack [..., K, N] for the CPU class into float32 [..., ceil(N / 16), K, 16]."""
    *lead, k, n = b.shape
    count = -(-n // 16)
    made = blank((*lead, count, k, 16), np.float32)
    for panel in range(count):  # what a panel takes stays in the cache
        part = b[..., panel * 16 : (panel + 1) * 16]
        made[..., panel, :, : part.shape[-1]] = part
    return made


def position_count(out: tuple[int, int, int], plane: tuple[int, int]) -> int:
    """Positions in padded planes from the first output pixel to the last."""
    return ((out[0] - 1) * plane[0] + out[1] - 1) * plane[1] + out[2]


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Element strides of a dense tensor."""
    steps, step = [], 1
    for size in reversed(shape):
        steps.append(step)
        step *= size
    return tuple(reversed(steps))


def moved_by(operand: Mat | Panels | Columns, offset: int, batch: tuple[int, ...]) -> Mat | Panels | Columns:
    """An operand further on in memory, by so many elements, with other batch strides."""
    if isinstance(operand, Mat):
        return operand.shifted(offset, batch)
    ref = operand.ref.at(offset, operand.ref.shape) if offset else operand.ref
    if isinstance(operand, Panels):
        return Panels(ref, batch)
    return Columns(ref, operand.table, operand.plane, operand.out, batch)


def collapse_batch(
    sizes: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Merge neighbouring batch dimensions that every operand walks through with one stride, drop those of size 1."""
    kept: list[int] = []
    steps: list[list[int]] = []  # per kept dimension, a stride for each operand
    for i, size in enumerate(sizes):
        if size == 1:
            continue
        step = [s[i] for s in strides]
        if kept and all(before == now * size for before, now in zip(steps[-1], step, strict=True)):
            kept[-1] *= size
            steps[-1] = step
        else:
            kept.append(size)
            steps.append(step)
    return tuple(kept), [tuple(s[i] for s in steps) for i in range(len(strides))]
