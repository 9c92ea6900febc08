"""Elementwise nodes before a reduction or normalisation, computed where its kernel reads their result.

The text is two functions, for one element and for eight, that stand for loads of the data; macros carry their
parameters through the kernel, see chains.h. The data are walked as [outer, r, inner], so what the steps read begins
at a place that a slice fixes, and from there goes on with the row, with the column, with both or with neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gpurt.device.codegen import Kernel, Leaf, Params, emit, scalar_load
from gpurt.device.lowering import Emitted, Lowering, Ref
from gpurt.device.ops.expressions import EXPRESSIONS
from gpurt.device.ops.registers import register
from gpurt.device.scalars import i64
from gpurt.device.steps import Step, collapse, eight_wide
from gpurt.device.table import Lower
from gpurt.dtypes import kernel_name

FED: Final[set[Lower]] = set()
"""The lowerings that take a prologue in place of their first input, as Lowering.prologue."""

STORING: Final[set[Lower]] = set()
"""Those of FED that also store what the prologue computes, where it is wanted besides."""

PRODUCTS: Final[set[Lower]] = set()
"""Those of FED that are products of matrices or convolutions."""

_REAL: Final = frozenset(np.dtype(t) for t in (np.float16, np.float32, np.float64))


@dataclass(frozen=True, slots=True)
class _Walk:
    """How a tensor is read: terms (step, count, stride) of where a slice begins, and strides within the slice."""

    outer: list[tuple[int, int | None, int]]  # count is None where nothing comes after
    along: int
    across: int


def _costly(step: Step) -> bool:
    return EXPRESSIONS[step.node.domain, step.node.op_type].costly


class Prologue(Kernel):
    """What is computed of the tensors that a kernel reads, as text for it.

    Args:
        c: a context; nothing is emitted through it.
        root: the last step.
        data: stands for its result.
        wanted: the result is wanted besides; the kernel that takes the prologue stores it in `data`.
    """

    _mark = "w"  # an epilogue's names are in the same kernel

    def __init__(self, c: Lowering, root: Step, data: Ref, *, wanted: bool = False) -> None:
        self._c, self._out, self._root = c, data, root
        self.wanted = wanted
        self._steps, self._leaves, self._attrs = [], {}, {}
        self._collect(root)
        self._vector = False
        self._body = self._write()
        self._wide = c.cpu_class and c.info.dialect == "opencl"
        self._wide = self._wide and all(eight_wide(s.node, s.dtypes, s.dtype) for s in self._steps)
        self.used = False

    @property
    def costly(self) -> bool:
        """Whether a step takes longer than loading what it reads."""
        return any(map(_costly, self._steps))

    def settle(self, c: Lowering, start: int) -> None:
        """Emit the steps as kernels of their own before the launches from `start` on, unless one of those took them."""
        if not self.used:
            before = Emitted()
            emit(replace(c, emitted=before), self._root, self._out)
            c.emitted.launches[start:start] = before.launches

    def over(self, r: int, inner: int) -> tuple[str, list[Ref | np.generic]] | None:
        """Text without helpers, and arguments in place of the tensor x, for data that are walked as [outer, r, inner].

        None where loads cannot stand for themselves: the result is no real number, a tensor is broadcast within a row,
        or a costly part would be computed many times.
        """
        total = self._out.size
        if self._out.dtype not in _REAL or total == 0 or (self._c.cpu_class and not self._wide):
            return None
        if any(_costly(s) and s.size * 4 <= total for s in self._steps):
            return None
        walks: dict[str, _Walk] = {}
        for leaf in self._leaves.values():
            walk = self._walk(leaf, r * inner, inner)
            if walk is None:
                return None
            walks[leaf.name] = walk
        self.used = True
        return self._text(walks, inner)

    def _walk(self, leaf: Leaf, row: int, inner: int) -> _Walk | None:
        dims, (strides,) = collapse(self._out.shape, [leaf.ref])
        outer, along, across = [], 0, 0
        for i, stride in enumerate(strides):
            if not stride:
                continue
            step = math.prod(dims[i + 1 :])
            for low, high in ((1, inner), (inner, row), (row, self._out.size)):
                begin, end = max(step, low), min(step * dims[i], high)
                if begin >= end:
                    continue
                pace = begin // step * stride
                if begin % step or end % begin or (high <= row and (begin, end) != (low, high)):
                    return None
                if pace != 1 and high == (row if inner == 1 else inner):  # elements of a vector do not lie side by side
                    return None
                if low == row:
                    outer.append((begin // row, None if end == self._out.size else end // begin, pace))
                elif low == inner:
                    along = pace
                else:
                    across = pace
        return _Walk(outer, along, across)

    def _text(self, walks: dict[str, _Walk], inner: int) -> tuple[str, list[Ref | np.generic]]:
        params, opens, slices = Params(), [], []
        formals: list[str] = []
        passed: list[str] = []
        for leaf in self._leaves.values():
            stored, name = kernel_name(leaf.ref.dtype), leaf.name
            if leaf.value is not None:
                kind = register(leaf.ref.dtype, False)
                params.add(f"const {kind} {name}_one", leaf.value)
                formals.append(f"const {kind} {name}_one")
                passed.append(f"{name}_one")
                continue
            params.add(f"TENSOR(const {stored}, p{name})", leaf.ref)
            opens.append(f"OPEN(const {stored}, p{name});")
            slices.append(f"GLOBAL const {stored} *s{name} = p{name}{self._begin(name, walks[name], params)};")
            formals.append(f"GLOBAL const {stored} *p{name}")
            passed.append(f"s{name}")
            if walks[name].along and inner != 1:
                params.add(f"const i64 {name}_k", i64(walks[name].along))
                formals.append(f"const i64 {name}_k")
                passed.append(f"{name}_k")
        for name, value in self._attrs.items():
            kind = "double" if value.dtype == np.float64 else "float"
            params.add(f"const {kind} {name}", value)
            formals.append(f"const {kind} {name}")
            passed.append(name)
        functions = [
            self._function(wide, formals, walks, inner) for wide in ((False, True) if self._wide else (False,))
        ]
        macros = [
            "#define PROLOGUE 1",
            f"#define PROLOGUE_PARAMS {''.join(f'{p}, ' for p in params.text)}",
            f"#define PROLOGUE_OPEN {' '.join(opens)}",
            f"#define PROLOGUE_SLICE(o) {' '.join(slices)}",
            f"#define PROLOGUE_PASS {''.join(f', {p}' for p in passed)}",
        ]
        text = "\n".join([*macros, *functions, ""])
        return text, params.args

    @staticmethod
    def _begin(name: str, walk: _Walk, params: Params) -> str:
        terms = []
        for i, (step, count, stride) in enumerate(walk.outer):
            at = "(o)"
            for sign, number, needed in (
                ("/", step, step != 1),
                ("%", count, count is not None),
                ("*", stride, stride != 1),
            ):
                if needed:
                    param = f"{name}_{'dms'['/%*'.index(sign)]}{i}"
                    params.add(f"const i64 {param}", i64(number))
                    at = f"({at} {sign} {param})"
            terms.append(f" + {at}")
        return "".join(terms)

    def _function(self, vector: bool, formals: Sequence[str], walks: dict[str, _Walk], inner: int) -> str:
        self._vector = vector
        self._body = self._write()
        lines = ["const i32 count = 8;"] if vector else []
        for leaf in self._leaves.values():
            walk = walks[leaf.name]
            if leaf.value is not None:
                lines.append(self._splat(leaf, f"{leaf.name}_one"))
                continue
            along = ["k" if inner == 1 else f"k * {leaf.name}_k"] if walk.along else []
            at = " + ".join([*along, *(["c"] if walk.across else [])]) or "0"
            together = walk.along if inner == 1 else walk.across  # in the direction of a vector's lanes
            lines.append(self._splat(leaf, scalar_load(leaf, at)) if vector and not together else self._load(leaf, at))
        kind, name = register(self._out.dtype, vector), "prologue8" if vector else "prologue1"
        return "\n".join(
            [
                f"FN {kind} {name}({', '.join(['const i64 k', 'const i64 c', *formals])}) {{",
                *lines,
                *self._body,
                f"return t{len(self._steps) - 1};",
                "}",
            ]
        )
