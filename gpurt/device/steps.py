"""Groups of elementwise nodes before they are a kernel: steps over tensors, and broadcasting as strides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpurt.device.lowering import Ref
from gpurt.device.ops.expressions import EXPRESSIONS
from gpurt.device.views import whole
from gpurt.graph.view import NodeView


def eight_wide(node: NodeView, dtypes: Sequence[np.dtype | None], dtype: np.dtype) -> bool:
    """Whether a node can be computed eight elements at a time."""
    row = EXPRESSIONS[node.domain, node.op_type]
    return row.scalar is None or not row.scalar(node, dtypes, dtype)


@dataclass(slots=True, eq=False)
class Step:
    """A node of a group.

    Attributes:
        operands: for each input the tensor (a Ref) or the step that it comes from; None where it is left out.
        dtype: of the result.
        shape: of the result.
    """

    node: NodeView
    operands: Sequence[Ref | Step | None]
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def dtypes(self) -> list[np.dtype | None]:
        """Dtypes of the operands."""
        return [None if x is None else x.dtype for x in self.operands]

    @property
    def size(self) -> int:
        """Number of elements of the result."""
        return math.prod(self.shape)


def collapse(shape: Sequence[int], operands: Sequence[Ref]) -> tuple[list[int], list[tuple[int, ...]]]:
    """The fewest dimensions that walk a shape along operands broadcast to it, and each operand's strides.

    Dimensions of size 1 vanish, and neighbours merge where every operand walks them as one.
    """
    strides = []
    for ref in operands:
        outer = len(shape) - len(ref.shape)
        steps = [step if n != 1 else 0 for n, step in zip(ref.shape, whole(ref).steps, strict=True)]
        strides.append([0] * outer + steps)
    kept: list[int] = []
    walks: list[list[int]] = [[] for _ in operands]
    for i, dim in enumerate(shape):
        if dim == 1:
            continue
        if kept and all(w[-1] == s[i] * dim for w, s in zip(walks, strides, strict=True)):
            kept[-1] *= dim
            for w, s in zip(walks, strides, strict=True):
                w[-1] = s[i]
        else:
            kept.append(dim)
            for w, s in zip(walks, strides, strict=True):
                w.append(s[i])
    if not kept:
        return [1], [(0,) for _ in operands]
    return kept, [tuple(w) for w in walks]
