"""Elementwise nodes behind a product, reduction or normalisation, computed on results while they are in registers.

The text is two functions, for one element and for eight, which kernels call before they store; macros carry their
parameters through the kernel. What they read beside the element itself is addressed by the position of the result: the
same element of a dense tensor, or one for each channel or column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from gpurt.device.codegen import Kernel, Leaf, Params, emit, scalar_load
from gpurt.device.helpers import helper_text
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.registers import register
from gpurt.device.scalars import i64
from gpurt.device.steps import Step, collapse, eight_wide
from gpurt.device.table import Lower
from gpurt.dtypes import kernel_name

FLOAT32: Final = np.dtype(np.float32)

HEADS: Final[set[Lower]] = set()
"""The lowerings that take Lowering.epilogue: they give it to gemm() or chains()."""


class Epilogue(Kernel):
    """What follows a product or reduction, as text for its kernel.

    Args:
        c: the unit's context.
        root: the last step; its shape and dtype are the result's.
        out: where the result goes.
        head: stands for what it follows among the operands of the steps.
    """

    def __init__(self, c: Lowering, root: Step, out: Ref, head: Ref) -> None:
        self._c, self._out, self.head, self._root = c, out, head, root
        self._steps, self._leaves, self._attrs = [], {}, {}
        self._collect(root)
        for step in self._steps:  # one program, whichever side of a sum the product is on
            if step.node.op_type in ("Add", "Mul") and len(step.operands) == 2 and step.operands[1] is head:
                step.operands = step.operands[::-1]
        self._vector = False
        self._body = self._write()
        self._wide = c.cpu_class and c.info.dialect == "opencl"
        self._wide = self._wide and all(eight_wide(s.node, s.dtypes, s.dtype) for s in self._steps)
        self.used = False

    def fits(self, columns: int) -> bool:
        """Whether vectors of a row with so many columns can be finished: nothing else changes within one."""
        if self.head.dtype != FLOAT32 or self._out.dtype != FLOAT32 or self.head.shape != self._out.shape:
            return False
        if self._c.cpu_class and not self._wide:
            return False
        return all(
            step % columns == 0 or (step == stride == 1 and count % columns == 0)
            for leaf in self._others()
            for step, count, stride in self._walk(leaf)
        )

    @property
    def begin(self) -> int:
        """Where the result begins in its memory, in elements."""
        return self._out.offset

    def placeless(self) -> bool:
        """Whether nothing depends on where an element of the result is: it may then be stored anywhere."""
        return not any(self._walk(leaf) for leaf in self._others())

    def store_apart(self) -> None:
        """Emit the steps as a kernel of its own, for a product that was stored without them."""
        emit(self._c, self._root, self._out)

    def text(self) -> tuple[str, list[Ref | np.generic]]:
        """Functions and macros, and the arguments for EPILOGUE_PARAMS but its first, the position of the result."""
        text, args = self.functions()
        return helper_text(text) + text, args

    def functions(self) -> tuple[str, list[Ref | np.generic]]:
        """As text(), without the helper functions that are called."""
        self.used = True
        params, opens, loads = Params(), [], {}
        for leaf in self._others():
            stored = kernel_name(leaf.ref.dtype)
            if leaf.value is not None:
                params.add(f"const {register(leaf.ref.dtype, False)} {leaf.name}_one", leaf.value)
                loads[leaf.name] = "", f"{leaf.name}_one"
                continue
            params.add(f"TENSOR(const {stored}, p{leaf.name})", leaf.ref)
            opens.append(f"OPEN(const {stored}, p{leaf.name});")
            loads[leaf.name] = self._address(leaf, params), ""
        for name, value in self._attrs.items():
            params.add(f"const {'double' if value.dtype == np.float64 else 'float'} {name}", value)
        formals, passed = _formals(params.text)
        functions = [self._function(False, formals, loads)]
        if self._wide:
            functions.append(self._function(True, formals, loads))
        macros = [
            "#define EPILOGUE 1",
            f"#define EPILOGUE_PARAMS {', '.join(['const i64 e_first', *params.text])},",
            f"#define EPILOGUE_OPEN {' '.join(opens)}",
            f"#define EPILOGUE_PASS {''.join(f', {p}' for p in passed)}",
            f"#define EPILOGUE_FORMALS {''.join(f', {f}' for f in formals)}",
        ]
        text = "\n".join([*macros, *functions, ""])
        return text, params.args

    def _others(self) -> list[Leaf]:
        return [leaf for leaf in self._leaves.values() if leaf.ref is not self.head]

    def _walk(self, leaf: Leaf) -> list[tuple[int, int, int]]:
        """Terms (step, count, stride): element e of the result sees the one at the sum of e / step % count * stride."""
        dims, (strides,) = collapse(self._out.shape, [leaf.ref])
        return [(math.prod(dims[i + 1 :]), dims[i], stride) for i, stride in enumerate(strides) if stride]

    def _address(self, leaf: Leaf, params: Params) -> str:
        terms = []
        for i, (step, count, stride) in enumerate(self._walk(leaf)):
            at = "e"
            for sign, number, needed in (
                ("/", step, step != 1),
                ("%", count, step * count != self._out.size),
                ("*", stride, stride != 1),
            ):
                if needed:
                    name = f"{leaf.name}_{'dms'['/%*'.index(sign)]}{i}"
                    params.add(f"const i64 {name}", i64(number))
                    at = f"({at} {sign} {name})"
            terms.append(at)
        return " + ".join(terms) or "0"

    def _function(self, vector: bool, formals: Sequence[str], loads: dict[str, tuple[str, str]]) -> str:
        self._vector = vector
        self._body = self._write()
        head = next((leaf.name for leaf in self._leaves.values() if leaf.ref is self.head), "unused")
        kind = register(FLOAT32, vector)
        lines = []
        for leaf in self._others():
            at, value = loads[leaf.name]
            dense = not vector or any(step == 1 for step, *_ in self._walk(leaf))
            if value:
                lines.append(self._splat(leaf, value))
            elif leaf.single or not dense:
                lines.append(self._splat(leaf, scalar_load(leaf, at)))
            else:
                lines.append(self._load(leaf, at))
        name = "epilogue8" if vector else "epilogue1"
        count = ["const i32 count = 8;"] if vector else []
        return "\n".join(
            [
                f"FN {kind} {name}({', '.join([f'const {kind} {head}', 'const i64 e', *formals])}) {{",
                *count,
                *lines,
                *self._body,
                f"return t{len(self._steps) - 1};",
                "}",
            ]
        )


def _formals(params: Sequence[str]) -> tuple[list[str], list[str]]:
    """A kernel's parameters as a function's, and what the kernel passes for them."""
    formals, passed = [], []
    for text in params:
        if text.startswith("TENSOR("):
            kind, name = text[len("TENSOR(") : -1].split(", ")
            formals.append(f"GLOBAL {kind} *{name}")
        else:
            formals.append(text)
            name = text.rsplit(" ", 1)[1]
        passed.append(name)
    return formals, passed
