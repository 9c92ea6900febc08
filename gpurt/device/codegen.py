"""Kernels for groups of elementwise nodes: broadcasting is resolved to strides, the nodes become the body of one loop.

The text depends on operators, dtypes and the pattern of broadcasting, never on sizes: those are arguments, and so are
attributes and operands that are one known number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np

from gpurt.device.helpers import helper_text
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.expressions import EXPRESSIONS, Expression, Site
from gpurt.device.ops.registers import BF16, BOOL, F16, F64, FLOAT8, NARROW_FLOATS, SUBBYTE, register
from gpurt.device.scalars import i64, u32
from gpurt.device.steps import Step, collapse, eight_wide
from gpurt.device.views import Strided, far, whole
from gpurt.dtypes import kernel_name
from gpurt.provider import Refused
from gpurt.symbolic import key

MOST_OPERANDS: Final = 48
_BLOCK: Final = 256
_PER_ITEM: Final = 4
_LEAST_CHUNK: Final = 1024
_MOST_CHUNK: Final = 16384


def emit(c: Lowering, root: Step, out: Ref) -> None:
    """Emit the launches that compute a step, and the steps it is made of, into a tensor."""
    if out.size == 0:
        return
    Kernel(c, _with_stored_parts(c, root), out).launch()


def _with_stored_parts(c: Lowering, root: Step) -> Step:
    """The root, with those inner steps stored in workspaces that broadcasting would compute many times over."""
    done: dict[int, tuple[Step | Ref, bool]] = {}

    def visit(step: Step) -> tuple[Step | Ref, bool]:
        if id(step) in done:
            return done[id(step)]
        costly = EXPRESSIONS[step.node.domain, step.node.op_type].costly
        operands: list[Ref | Step | None] = []
        for x in step.operands:
            if isinstance(x, Step):
                part, part_costly = visit(x)
                operands.append(part)
                costly = costly or part_costly
            else:
                operands.append(x)
        result: Step | Ref = Step(step.node, operands, step.dtype, step.shape)
        if costly and step is not root and step.size * 4 <= root.size:
            stored = c.temp(step.dtype, step.shape)
            Kernel(c, result, stored).launch()
            result, costly = stored, False
        done[id(step)] = result, costly
        return done[id(step)]

    result, _ = visit(root)
    assert isinstance(result, Step)
    return result


@dataclass(slots=True, eq=False)
class Leaf:
    """A tensor that a kernel reads, or a number that it is given."""

    name: str
    ref: Ref
    value: np.generic | None = None  # a known number: no memory is read
    strides: tuple[int, ...] = ()  # in elements, one for each of the kernel's dimensions

    @property
    def single(self) -> bool:
        """Whether all elements of the result see the same one."""
        return self.ref.size == 1


@dataclass(slots=True)
class Params:
    """A kernel's parameters and the arguments for them."""

    text: list[str] = field(default_factory=list)
    args: list[Ref | np.generic] = field(default_factory=list)

    def add(self, declaration: str, arg: Ref | np.generic) -> None:
        self.text.append(declaration)
        self.args.append(arg)


class Kernel:
    """One kernel while it is written."""

    _mark: ClassVar[str] = "x"  # begins the names of what is read

    def __init__(self, c: Lowering, root: Step | Ref, out: Ref) -> None:
        assert isinstance(root, Step)
        self._c = c
        self._out = out
        self._steps: list[Step] = []
        self._leaves: dict[int, Leaf] = {}
        self._attrs: dict[str, np.generic] = {}
        self._collect(root)
        wide = c.cpu_class and c.info.dialect == "opencl"
        self._vector = wide and all(eight_wide(s.node, s.dtypes, s.dtype) for s in self._steps)
        self._body = self._write()
        if len(self._leaves) > MOST_OPERANDS:
            raise Refused(f"{c.node.op} over {len(self._leaves)} tensors; a kernel takes {MOST_OPERANDS}")
        tensors = [leaf for leaf in self._leaves.values() if not leaf.single]
        self._dims, strides = collapse(out.shape, [leaf.ref for leaf in tensors])
        for leaf, walk in zip(tensors, strides, strict=True):
            leaf.strides = walk
        if self._vector and len(self._dims) > 1 and self._dims[-1] < 8:
            self._vector = False  # rows of fewer elements than a vector are quicker one by one
            self._body = self._write()

    def _collect(self, step: Step) -> None:
        if step in self._steps:
            return
        for x in step.operands:
            if isinstance(x, Step):
                self._collect(x)
        self._steps.append(step)

    def _write(self) -> list[str]:
        """Statements for all steps; finds out which tensors and attributes they read."""
        names: dict[int, str] = {}
        seen: dict[tuple[object, ...], Ref] = {}
        lines = []
        for k, step in enumerate(self._steps):
            refs: list[Ref | None] = []
            args: list[str | None] = []
            for x in step.operands:
                if isinstance(x, Ref):
                    # The same tensor may come as several Ref objects.
                    lies = tuple(map(key, (*x.shape, *whole(x).steps)))
                    x = seen.setdefault((id(x.operand), key(x.offset), x.dtype, lies), x)
                refs.append(x if isinstance(x, Ref) else None)
                args.append(None if x is None else names.get(id(x)) or f"{self._mark}{len(names)}")
                if isinstance(x, Ref):
                    names.setdefault(id(x), args[-1] or "")
            row = EXPRESSIONS[step.node.domain, step.node.op_type]
            site = Site(
                step.node, args, step.dtypes, step.dtype, self._vector,
                [None if r is None else r.spec.const for r in refs], self._attributes(k, step, row),
            )  # fmt: skip
            text = row.write(site)
            for position in sorted(site.used):
                ref = refs[position]
                if ref is not None:
                    self._leaves.setdefault(id(ref), _leaf(args[position] or "", ref))
            names[id(step)] = f"t{k}"
            lines.append(f"const {register(step.dtype, self._vector)} t{k} = {self._as_result(text, step.dtype)};")
        return lines

    def _attributes(self, k: int, step: Step, row: Expression) -> dict[str, str]:
        names = {}
        for name, default in row.params:
            wide = step.dtypes[0] == F64 or (step.dtypes[0] is not None and step.dtypes[0].kind != "f")
            names[name] = f"{name}_{self._mark}{k}"
            self._attrs[names[name]] = (np.float64 if wide else np.float32)(step.node.attr(name, default))
        return names

    def _as_result(self, text: str, dtype: np.dtype) -> str:
        kind = register(dtype, self._vector)
        if not self._vector:
            return f"({kind})({text})"
        return f"as_{kind}({text})" if dtype.kind in "iu" else text

    def launch(self) -> None:
        """Emit the launch."""
        c, out = self._c, self._out
        params = Params()
        opens, fixed = [], []
        for leaf in self._leaves.values():
            stored = kernel_name(leaf.ref.dtype)
            if leaf.value is not None:
                params.add(f"const {register(leaf.ref.dtype, False)} {leaf.name}_one", leaf.value)
                fixed.append(self._splat(leaf, f"{leaf.name}_one"))
                continue
            # Not restrict: the plan may let the result take the memory of an operand that is walked alike.
            params.add(f"TENSOR(const {stored}, p{leaf.name})", leaf.ref)
            opens.append(f"OPEN(const {stored}, p{leaf.name});")
            if leaf.single:
                fixed.append(self._splat(leaf, scalar_load(leaf, "0")))
        for name, value in self._attrs.items():
            params.add(f"const {'double' if value.dtype == F64 else 'float'} {name}", value)
        params.add(f"TENSOR({kernel_name(out.dtype)}, y)", out)
        opens.append(f"OPEN({kernel_name(out.dtype)}, y);")
        writer = self._rows if len(self._dims) > 1 else self._flat
        if not c.cpu_class:
            writer = self._items
        lines, grid, block = writer(params)
        entry = "ew_" + "_".join(s.node.op_type.lower() for s in self._steps)[:56].rstrip("_")
        kernel = "\n".join(
            [f"KFN({block}, 1, 1) {entry}({', '.join(params.text)}) {{", *opens, *fixed, *lines, "}", ""]
        )
        c.launch(helper_text(kernel) + kernel, entry, params.args, [grid], [block])

    def _splat(self, leaf: Leaf, text: str) -> str:
        """Declaration of a variable that holds one number, in every lane."""
        kind = register(leaf.ref.dtype, self._vector)
        if self._vector and leaf.ref.dtype == BOOL:
            text = f"-({text})"
        return f"const {kind} {leaf.name} = ({kind})({text});"

    def _load(self, leaf: Leaf, at: str) -> str:
        """Declaration of a variable with the element, or the `count` elements, at an index."""
        kind = register(leaf.ref.dtype, self._vector)
        if not self._vector:
            return f"const {kind} {leaf.name} = {scalar_load(leaf, at)};"
        pointer, dtype = f"p{leaf.name} + {at}", leaf.ref.dtype
        if dtype == F16:
            text = f"half_to_float8(load_u16((const GLOBAL u16 *)({pointer}), count))"
        elif dtype == BOOL:
            text = f"convert_int8(load_u8({pointer}, count)) != 0"
        elif dtype == BF16:
            text = f"bf16x8_to_float(load_u16({pointer}, count))"
        else:
            text = f"load_{kernel_name(dtype)}({pointer}, count)"
        return f"const {kind} {leaf.name} = {text};"

    def _store(self, at: str) -> str:
        value, dtype = f"t{len(self._steps) - 1}", self._out.dtype
        if not self._vector:
            if dtype == F16:
                return f"ST_HALF(y, {at}, {value});"
            if dtype == BF16:
                return f"y[{at}] = bf16_bits({value});"
            if dtype in FLOAT8:  # in range already: the step that made the value has rounded it
                return f"y[{at}] = {FLOAT8[dtype]}_bits({value}, 0);"
            if dtype in SUBBYTE:
                return f"y[{at}] = {value} & {(1 << SUBBYTE[dtype][1]) - 1};"
            return f"y[{at}] = {f'(u8)({value})' if dtype == BOOL else value};"
        if dtype == F16:
            return f"store_u16((GLOBAL u16 *)(y + {at}), half_from_float8({value}), count);"
        if dtype == BOOL:
            value = f"convert_uchar8(-({value}))"
        elif dtype == BF16:
            value = f"bf16x8_bits({value})"
        elif dtype in SUBBYTE:
            value = f"{value} & ({register(dtype, True)})({(1 << SUBBYTE[dtype][1]) - 1})"
        return f"store_{kernel_name(dtype)}(y + {at}, {value}, count);"

    def _inner(self, loads: Sequence[str], at: str) -> list[str]:
        """The loop over i from `begin` to `end`."""
        step = 8 if self._vector else 1
        count = ["const i32 count = end - i < 8 ? (i32)(end - i) : 8;"] if self._vector else []
        return [f"for (i64 i = begin; i < end; i += {step}) {{", *count, *loads, *self._body, self._store(at), "}"]

    def _chunk(self, n: int) -> int:
        """Elements for one work-item of the CPU class: enough items for all cores, none of them tiny."""
        share = -(-n // (4 * max(self._c.info.compute_units, 1)))
        return min(max(-(-share // 64) * 64, _LEAST_CHUNK), _MOST_CHUNK)

    def _flat(self, params: Params) -> tuple[list[str], int, int]:
        """CPU class, everything dense: one loop."""
        (n,) = self._dims
        chunk = self._chunk(n)
        params.add("const i64 n", i64(n))
        params.add("const i64 chunk", i64(chunk))
        loads = [self._load(leaf, "i") for leaf in self._leaves.values() if not leaf.single]
        lines = [
            "const i64 begin = INDEX(0) * chunk;",
            "const i64 end = begin + chunk < n ? begin + chunk : n;",
            *self._inner(loads, "i"),
        ]
        return lines, -(-n // chunk), 1

    def _rows(self, params: Params) -> tuple[list[str], int, int]:
        """CPU class, broadcast: an item walks some rows, or a part of one; coordinates are counted up row by row."""
        *outer, inner = self._dims
        rows = math.prod(outer)
        chunk = self._chunk(rows * inner)
        part = min(chunk, -(-inner // 8) * 8)
        per_item = max(chunk // inner, 1) if part >= inner else 1
        for name, value in (("rows", rows), ("inner", inner), ("part", part), ("per_item", per_item)):
            params.add(f"const i64 {name}", i64(value))
        walked = [leaf for leaf in self._leaves.values() if not leaf.single]
        top = len(outer) - 1
        for d in range(1, len(outer)):
            params.add(f"const i64 n{d}", i64(outer[d]))
        for leaf in walked:
            for d in range(len(outer)):
                params.add(f"const i64 {leaf.name}_s{d}", i64(leaf.strides[d]))
        lines = [
            "const i64 parts = CEIL_DIV(inner, part);",
            "i64 row = INDEX(0) / parts * per_item;",
            "const i64 begin = INDEX(0) % parts * part;",
            "const i64 end = begin + part < inner ? begin + part : inner;",
            "const i64 last = row + per_item < rows ? row + per_item : rows;",
            "y += row * inner;",
            "i64 rest = row;",
        ]
        for d in range(top, 0, -1):
            lines += [f"i64 c{d} = rest % n{d};", f"rest /= n{d};"]
        for leaf in walked:
            terms = [f"rest * {leaf.name}_s0", *(f"c{d} * {leaf.name}_s{d}" for d in range(1, len(outer)))]
            lines.append(f"p{leaf.name} += {' + '.join(terms)};")
        lines.append("for (; row < last; row++) {")
        loads = []
        for leaf in walked:
            if leaf.strides[-1] == 0:
                lines.append(self._splat(leaf, scalar_load(leaf, "0")))
            else:
                loads.append(self._load(leaf, "i"))
        lines += [*self._inner(loads, "i"), "y += inner;"]
        lines += [f"p{leaf.name} += {leaf.name}_s{top};" for leaf in walked]
        for d in range(top, 0, -1):
            # The dimension is through: back to its begin, one on in the dimension above.
            lines.append(f"if (++c{d} == n{d}) {{ c{d} = 0;")
            lines += [f"p{x.name} += {x.name}_s{d - 1} - n{d} * {x.name}_s{d};" for x in walked]
        lines += ["}" * top, "}"]
        parts = -(-inner // part)
        return lines, parts * -(-rows // per_item), 1

    def _items(self, params: Params) -> tuple[list[str], int, int]:
        """GPU class: an item computes a few elements that lie a group's width apart, so that accesses coalesce."""
        n = math.prod(self._dims)
        block = min(_BLOCK, self._c.info.max_group)
        wide = n >= 2**31 - _PER_ITEM * block or any(far(leaf.ref) for leaf in self._leaves.values())
        index, scalar = ("i64", i64) if wide else ("u32", u32)
        params.add(f"const {index} n", scalar(n))
        walked = [leaf for leaf in self._leaves.values() if not leaf.single]
        loads = []
        if len(self._dims) > 1:
            top = len(self._dims) - 1
            for d in range(1, top + 1):
                params.add(f"const {index} n{d}", scalar(self._dims[d]))
            loads.append(f"{index} rest = i;")
            for d in range(top, 0, -1):
                loads += [f"const {index} c{d} = rest % n{d};", f"rest /= n{d};"]
            for leaf in walked:
                terms = []
                for d in range(top + 1):
                    if leaf.strides[d] == 0:
                        continue
                    coordinate = f"c{d}" if d else "rest"
                    if leaf.strides[d] != 1:
                        params.add(f"const {index} {leaf.name}_s{d}", scalar(leaf.strides[d]))
                        coordinate += f" * {leaf.name}_s{d}"
                    terms.append(coordinate)
                dense = leaf.ref.size == n and not isinstance(leaf.ref, Strided)
                loads.append(self._load(leaf, "i" if dense else f"({' + '.join(terms)})"))
        else:
            loads = [self._load(leaf, "i") for leaf in walked]
        first = f"({index})GROUP(0) * {_PER_ITEM * block} + ({index})ITEM(0)"
        lines = [
            f"for (i32 k = 0; k < {_PER_ITEM}; k++) {{",
            f"const {index} i = {first} + k * {block};",
            "if (i < n) {",
            *loads,
            *self._body,
            self._store("i"),
            "} }",
        ]
        return lines, -(-n // (_PER_ITEM * block)), block


def _leaf(name: str, ref: Ref) -> Leaf:
    const = ref.spec.const
    if ref.size != 1 or const is None or const.size != 1:
        return Leaf(name, ref)
    value = const.reshape(())[()]
    held = np.int32 if ref.dtype == BOOL else ref.dtype.type
    if ref.dtype == F16 or ref.dtype in NARROW_FLOATS:
        held = np.float32
    elif ref.dtype in SUBBYTE:
        held = SUBBYTE[ref.dtype][0].type
    return Leaf(name, ref, held(value))


def scalar_load(leaf: Leaf, at: str) -> str:
    if leaf.ref.dtype == F16:
        return f"LD_HALF(p{leaf.name}, {at})"
    if leaf.ref.dtype in NARROW_FLOATS:
        return f"{FLOAT8.get(leaf.ref.dtype, 'bf16')}_to_float(p{leaf.name}[{at}])"
    return f"(p{leaf.name}[{at}] != 0)" if leaf.ref.dtype == BOOL else f"p{leaf.name}[{at}]"
