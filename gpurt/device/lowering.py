"""What a row's function talks to: inputs and outputs with concrete shapes on one side, launches on the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import gpurt_kernels
from gpurt.device.driver import DeviceInfo
from gpurt.device.scalars import SizedScalar
from gpurt.device.table import OpTable
from gpurt.device.tuning.choices import HEURISTICS, Choices, Key, V
from gpurt.graph.view import NodeView, ValueView
from gpurt.infer import infer
from gpurt.provider import Operand, Refused
from gpurt.spec import SizedSpec, Spec, Unknown
from gpurt.symbolic import NeedsNumbers, Size, pinned

if TYPE_CHECKING:
    from gpurt.device.epilogue import Epilogue
    from gpurt.device.prologue import Prologue


@dataclass(frozen=True, slots=True, eq=False)
class Ref:
    """A tensor in device memory as a launch argument: which operand, from which element on, with which shape."""

    spec: Spec
    operand: Operand
    offset: int = 0  # elements

    @property
    def dtype(self) -> np.dtype:
        return self.spec.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def size(self) -> int:
        return self.spec.size

    def view(self, shape: Sequence[int]) -> Ref:
        """The same memory under another shape with as many elements."""
        return Ref(Spec(self.dtype, tuple(shape)), self.operand, self.offset)

    def at(self, offset: int, shape: Sequence[int]) -> Ref:
        """A dense part of the same memory that begins `offset` elements further on."""
        return Ref(Spec(self.dtype, tuple(shape)), self.operand, self.offset + offset)


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """One kernel launch before it is bound: program text, entry, arguments (Ref or NumPy scalar), geometry."""

    source: str
    entry: str
    args: tuple[Ref | np.generic | SizedScalar, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A vendor library's routine: called with device pointers of the refs and the stream (see Driver dialects)."""

    name: str
    fn: Callable[..., None]
    args: tuple[Ref | Any, ...]


@dataclass(slots=True)
class Emitted:
    """Everything that lowering a unit has produced."""

    launches: list[Launch | Call] = field(default_factory=list)
    aliases: dict[int, tuple[int, int]] = field(default_factory=dict)
    carried: dict[int, tuple[int, frozenset[int]]] = field(default_factory=dict)


@dataclass(slots=True)
class Lowering:
    """The context of one row's call.

    Attributes:
        node: the node, in canonical form.
        specs: input specs by position; None where an optional input is left out.
        outs: output specs by position, from the shape rules.
        info: facts about the device.
        table: rows of all operators, for those that are made of others.
        emitted: gains the launches.
        program: kernel text, dtypes and macros -> text of the whole program.
        derive: as Constants.derive: an array made of a constant one, once for its content and a tag.
        ins: inputs in device memory by position.
        results: outputs in device memory by position.
        depth: in how many other operators' lowerings this one is.
        epilogue: elementwise nodes that follow, for rows among epilogue.HEADS, which may take them over.
        prologue: elementwise nodes whose result is the first input, likewise for rows among prologue.FED; that input
            is stored beforehand if they do not take them over.
        choices: of parameters of kernels.
    """

    node: NodeView
    specs: Sequence[Spec | None]
    outs: Sequence[Spec]
    info: DeviceInfo
    table: OpTable
    emitted: Emitted
    program: Callable[[str, Mapping[str, np.dtype], Mapping[str, int | float | str]], str]
    derive: Callable[[np.ndarray, str, Callable[[np.ndarray], np.ndarray]], np.ndarray]
    ins: Sequence[Ref | None]
    results: list[Ref]
    depth: int = 0
    epilogue: Epilogue | None = None
    prologue: Prologue | None = None
    choices: Choices = HEURISTICS

    @property
    def cpu_class(self) -> bool:
        """Whether kernels are to be written for a CPU: fat work-items and float8, no local memory."""
        return self.info.kernel_class == "cpu"

    def has(self, position: int) -> bool:
        """Whether an input is present."""
        return position < len(self.ins) and self.ins[position] is not None

    def wants(self, position: int) -> bool:
        """Whether an output is wanted."""
        return position < len(self.node.outputs) and self.node.outputs[position] is not None

    def input(self, position: int) -> Ref:
        """A present input in device memory."""
        ref = self.ins[position]
        assert ref is not None, f"{self.node.op} reads input {position}, which is left out"
        return ref

    def output(self, position: int = 0) -> Ref:
        """An output in device memory."""
        return self.results[position]

    def const(self, position: int) -> np.ndarray | None:
        """Content of an input; None where it is left out. Raises Unknown if it is not known yet."""
        spec = self.specs[position] if position < len(self.specs) else None
        if spec is None:
            return None
        if spec.const is None:
            raise Unknown(f"{self.node.op} needs the content of input {position}")
        return spec.const

    def ints(self, position: int) -> list[int] | None:
        """Content of a small integer input as a flat list; None where it is left out."""
        spec = self.specs[position] if position < len(self.specs) else None
        if isinstance(spec, SizedSpec):
            return list(spec.sizes.reshape(-1))
        array = self.const(position)
        return None if array is None else [int(v) for v in np.ravel(array)]

    def number(self, position: int) -> Any:
        """Content of an input of one number: a Python number, or a Size."""
        spec = self.specs[position]
        if isinstance(spec, SizedSpec):
            return spec.sizes.reshape(())[()]
        return np.asarray(self.const(position)).reshape(()).item()

    def temp(self, dtype: np.dtype, shape: Sequence[int]) -> Ref:
        """Workspace that lives as long as the unit's launches."""
        spec = Spec(np.dtype(dtype), tuple(shape))
        return Ref(spec, Operand("temp", nbytes=spec.nbytes))

    def constant(self, array: np.ndarray) -> Ref:
        """Device memory with this content, stored once per content and shared by plans and sessions."""
        array = np.ascontiguousarray(array)
        if array.dtype.kind == "O":  # sizes that something made an array of
            raise NeedsNumbers(self.node.op)
        return Ref(Spec.of(array), Operand("const", array=array))

    def packed(self, position: int, tag: str, pack: Callable[[np.ndarray], np.ndarray]) -> Ref | None:
        """A constant input rearranged once (weights into panels); None if the input is not constant."""
        spec = self.specs[position]
        if spec is None or spec.const is None:
            return None
        return self.constant(self.derive(spec.const, tag, pack))

    def choose(self, family: str, sizes: Sequence[int], candidates: Sequence[V], default: V, kind: str = "") -> V:
        """A kernel's parameter, from what was measured on the device; see gpurt.device.tuning.

        Args:
            family: the kernels and the parameter: "gemm.tile".
            sizes: of the problem; symbolic ones get the default.
            candidates: what is right here: numbers, names or tuples of numbers; the plainest first.
            default: what a heuristic says.
            kind: what else the choice depends on, such as dtype and epilogue.
        """
        return self.choices.choose(Key(family, kind, tuple(sizes)), candidates, default)

    def launch(
        self,
        source: str,
        entry: str,
        args: Sequence[Ref | np.generic],
        grid: Sequence[int],
        block: Sequence[int] = (1, 1, 1),
        *,
        types: Mapping[str, np.dtype] | None = None,
        defines: Mapping[str, int | float | str] | None = None,
    ) -> None:
        """Emit a launch of a kernel.

        Args:
            source: a file of gpurt_kernels ("reduce.cl") or, when it contains a line break, the kernel text itself.
            entry: the kernel's name.
            args: tensors and NumPy scalars in the kernel's order; numbers that come from shapes as i32(n) and i64(n) of
                gpurt.device.scalars, so that a plan for other sizes can set them again.
            grid: number of groups in up to three dimensions; nothing is launched when one of them is 0.
            block: items of a group; the kernel's KFN must state the same.
            types: role -> dtype, for type_macros: {"T": x.dtype}.
            defines: further macros; sizes here make the program specific to a shape.
        """
        body = source if "\n" in source else gpurt_kernels.text(source)
        text = self.program(body, types or {}, defines or {})
        full_grid, (one, two, three) = _three(grid), pinned(_three(block))
        if math.prod(full_grid) == 0:
            return
        for limit, n in zip((2**31 - 1, 65535, 65535), full_grid, strict=True):
            if n > limit:
                raise Refused(f"{self.node.op}: a grid of {n} groups is over the limit {limit}")
        self.emitted.launches.append(Launch(text, entry, tuple(args), full_grid, (one, two, three)))

    def call(self, name: str, fn: Callable[..., None], *args: Any) -> None:
        """Emit a call of a vendor library's routine; Refs become device pointers, the stream comes last."""
        # The function may hold whatever it was made of, so no size may have been among that.
        if any(isinstance(n, Size) for s in (*self.specs, *self.outs) if s is not None for n in s.shape):
            raise NeedsNumbers(name)
        if any(isinstance(s, SizedSpec) for s in self.specs):
            raise NeedsNumbers(name)
        self.emitted.launches.append(Call(name, fn, args))

    def alias(self, output: int = 0, source: int = 0, offset: int = 0) -> None:
        """Let an output be the memory of an input from an element offset on; nothing is launched.

        Inside :meth:`emit` it becomes a copy, as the memory of the result is chosen by the caller.
        """
        if self.depth == 0:
            itemsize = self.outs[output].dtype.itemsize
            self.emitted.aliases[output] = (source, offset * itemsize)
        else:
            src = self.input(source)
            self.copy(self.output(output), src.at(offset, self.output(output).shape))

    def copy(self, dst: Ref, src: Ref) -> None:
        """Emit a plain copy of as many elements as dst has."""
        from gpurt.device.ops.copying import copy_elements

        copy_elements(self, dst, src)

    def carry(self, output: int = 0, source: int = 0) -> None:
        """Bring an input's content to an output, of which what follows changes a part.

        Where nobody reads the input later, the plan lets both be one memory, and the copy is left out. So what follows
        may read the input at the elements that it writes, and no others.
        """
        start = len(self.emitted.launches)
        self.copy(self.output(output), self.input(source))
        if self.depth == 0:
            self.emitted.carried[output] = (source, frozenset(range(start, len(self.emitted.launches))))

    def emit(
        self,
        op_type: str,
        inputs: Sequence[Ref | np.ndarray | None],
        attrs: Mapping[str, Any] | None = None,
        *,
        out: Ref | Sequence[Ref | None] | None = None,
        domain: str = "",
        outputs: int = 1,
    ) -> list[Ref]:
        """Lower another operator inside this one and return its outputs: in workspaces, unless `out` is given.

        Arrays among the inputs are constants.
        """
        refs = [self.constant(x) if isinstance(x, np.ndarray) else x for x in inputs]
        given = [out] if isinstance(out, Ref) else list(out or ())
        node = NodeView(
            op_type,
            tuple(None if r is None else ValueView("", r.dtype, r.shape) for r in refs),
            tuple(ValueView("") for _ in range(max(outputs, len(given)))),
            dict(attrs or {}),
            domain,
            self.node.name,
        )
        row = self.table.rows.get((domain, op_type))
        if row is None:
            raise Refused(f"{self.node.op} needs {node.op}, for which there is no kernel")
        specs = [None if r is None else r.spec for r in refs]
        outs = infer(node, specs)
        results = [
            given[i] if i < len(given) and given[i] is not None else self.temp(s.dtype, s.shape)
            for i, s in enumerate(outs)
        ]
        sub = Lowering(
            node, specs, outs, self.info, self.table, self.emitted, self.program, self.derive, refs,
            [r for r in results if r is not None], self.depth + 1, choices=self.choices,
        )  # fmt: skip
        row.lower(sub)
        return sub.results


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    filled = (*values, 1, 1, 1)[:3]
    one, two, three = (n if isinstance(n, Size) else int(n) for n in filled)
    return one, two, three
