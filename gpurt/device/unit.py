"""Units of the device layer: a node, or a fused group, that is planned for concrete shapes and bound to memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np

from gpurt.device.driver import DeviceInfo, Driver, Launcher, TensorArg
from gpurt.device.lowering import Call, Emitted, Launch, Lowering, Ref
from gpurt.device.persistent.part import Arg
from gpurt.device.scalars import SizedScalar
from gpurt.device.source import program_text
from gpurt.device.table import OpTable
from gpurt.device.tuning.choices import Choices
from gpurt.device.weights import Constants
from gpurt.graph.view import NodeView
from gpurt.infer import infer
from gpurt.provider import BufferRef, Operand, Refused, UnitPlan
from gpurt.spec import Spec
from gpurt.symbolic import Size, plain


class Host(Protocol):
    """What units need of the provider they belong to."""

    @property
    def driver(self) -> Driver: ...

    @property
    def info(self) -> DeviceInfo: ...

    @property
    def table(self) -> OpTable: ...

    @property
    def constants(self) -> Constants: ...

    @property
    def choices(self) -> Choices: ...

    def kernel(self, launch: Launch, name: str) -> Callable[[Sequence[Arg], tuple[int, int, int]], Launcher]:
        """What binds a launch to arguments and groups."""


def lowering_for(
    host: Host,
    node: NodeView,
    specs: Sequence[Spec | None],
    outs: Sequence[Spec],
    emitted: Emitted,
) -> Lowering:
    """A Lowering whose inputs and outputs are the unit's operands."""
    return Lowering(
        node=node,
        specs=specs,
        outs=outs,
        info=host.info,
        table=host.table,
        emitted=emitted,
        program=partial(program_text, host.info),
        derive=host.constants.derive,
        ins=[None if s is None else Ref(s, Operand("in", i)) for i, s in enumerate(specs)],
        results=[Ref(s, Operand("out", i)) for i, s in enumerate(outs)],
        choices=host.choices,
    )


class KernelUnit:
    """One node on a kernel provider."""

    symbolic = True

    def __init__(self, host: Host, node: NodeView) -> None:
        self._host = host
        self.nodes: Sequence[NodeView] = (node,)
        self.inputs = [None if v is None else v.name for v in node.inputs]
        self.outputs = [None if v is None else v.name for v in node.outputs]
        row = host.table.rows[node.domain, node.op_type]
        self.host_inputs = frozenset(i for i in row.host if i < len(node.inputs) and node.inputs[i] is not None)
        self._lower = row.lower

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """Shapes from the rules, launches from the row. Raises Refused or Unknown."""
        node = self.nodes[0]
        try:
            outs = infer(node, inputs)
        except ValueError as e:
            raise Refused(str(e)) from e
        emitted = Emitted()
        self._lower(lowering_for(self._host, node, inputs, outs, emitted))
        return finish(self._host, emitted, outs[: len(self.outputs)], node.op_type)


def finish(
    host: Host, emitted: Emitted, outs: Sequence[Spec], name: str, inplace: Mapping[int, tuple[int, ...]] | None = None
) -> UnitPlan:
    """Build the programs that were emitted and collect what they touch."""
    operands: list[Operand] = []
    index: dict[tuple[str, int], int] = {}

    def number(operand: Operand) -> int:
        key = (operand.kind, operand.index if operand.kind in ("in", "out") else id(operand))
        if key not in index:
            index[key] = len(operands)
            operands.append(operand)
        return index[key]

    items: list[_Item] = []
    for item in emitted.launches:
        kernel = host.kernel(item, name) if isinstance(item, Launch) else None
        items.append((item, kernel, [number(a.operand) if isinstance(a, Ref) else None for a in item.args]))

    sizes = [x for item, _, _ in items for x in _sizes_of(item)]
    return UnitPlan(
        outputs=outs,
        operands=operands,
        aliases=emitted.aliases,
        inplace={**{o: (source,) for o, (source, _) in emitted.carried.items()}, **(inplace or {})},
        carried=emitted.carried,
        bind=lambda refs: _Bound(items, refs, sizes),
        kernels=[item.entry if isinstance(item, Launch) else item.name for item, _, _ in items],
        sizes=sizes,
    )


def _sizes_of(item: Launch | Call) -> list[Size]:
    """The sizes that a launch depends on: scalars, offsets of tensors, groups."""
    found = [a.size if isinstance(a, SizedScalar) else a.offset if isinstance(a, Ref) else None for a in item.args]
    return [x for x in (*found, *(item.grid if isinstance(item, Launch) else ())) if isinstance(x, Size)]


_Item = tuple[Launch | Call, "Callable[[Sequence[Arg], tuple[int, int, int]], Launcher] | None", "list[int | None]"]
"""What is launched, what binds it, and the operand that each argument is."""


class _Bound:
    """Launches over actual memory."""

    def __init__(
        self,
        items: Sequence[_Item],
        refs: Sequence[BufferRef],
        sizes: Sequence[Size],
    ) -> None:
        self._refs = list(refs)
        # What is set again when sizes change: for each size a function of its value.
        self._setters: list[Callable[[int], None]] = []
        self._values = [s.value for s in sizes]
        self.steps: list[Callable[[Any], None]] = []
        self._offsets: dict[tuple[int, int], int] = {}  # of tensors that begin where a size says
        self._where: dict[int, list[tuple[Launcher | _BoundCall, int, Ref]]] = {}
        for item, kernel, numbers in items:
            args = [
                _tensor(refs[n], a)
                if n is not None and isinstance(a, Ref)
                else a.kind(a.size.value)
                if isinstance(a, SizedScalar)
                else a
                for n, a in zip(numbers, item.args, strict=True)
            ]
            step: Launcher | _BoundCall
            if isinstance(item, Launch):
                assert kernel is not None, "every launch has a kernel"
                x, y, z = (plain(n) for n in item.grid)
                step = kernel(cast("list[Arg]", args), (x, y, z))
                self._collect(step, item, numbers)
            else:
                step = _BoundCall(item.fn, args)
            self.steps.append(step)
            for position, (n, a) in enumerate(zip(numbers, item.args, strict=True)):
                if n is not None and isinstance(a, Ref):
                    self._where.setdefault(n, []).append((step, position, a))

    def _collect(self, step: Launcher, item: Launch, numbers: Sequence[int | None]) -> None:
        """Setters in the order of _sizes_of."""
        for position, (n, a) in enumerate(zip(numbers, item.args, strict=True)):
            if isinstance(a, SizedScalar):
                self._setters.append(partial(_set_scalar, step, position, a.kind))
            elif n is not None and isinstance(a, Ref) and isinstance(a.offset, Size):
                self._setters.append(self._mover(step, position, n, a))
        grid = [plain(n) for n in item.grid]
        for axis, groups in enumerate(item.grid):
            if isinstance(groups, Size):
                self._setters.append(partial(_set_grid, step, grid, axis))

    def _mover(self, step: Launcher, position: int, operand: int, arg: Ref) -> Callable[[int], None]:
        self._offsets[id(step), position] = plain(arg.offset)

        def move(offset: int) -> None:
            self._offsets[id(step), position] = offset
            step.set(position, _tensor(self._refs[operand], arg, offset))

        return move

    def resize(self, values: Sequence[int]) -> None:
        """Set what depends on sizes again where they are others than before."""
        old = self._values
        for i, value in enumerate(values):
            if value != old[i]:
                self._setters[i](value)
        self._values = list(values)

    def rebind(self, operand: int, ref: BufferRef) -> None:
        """Point an operand at other memory in every launch that uses it."""
        self._refs[operand] = ref
        for step, position, arg in self._where.get(operand, ()):
            step.set(position, _tensor(ref, arg, self._offsets.get((id(step), position))))


@dataclass(slots=True)
class _BoundCall:
    fn: Callable[..., None]
    args: list[Any]

    def __call__(self, stream: Any) -> Any:
        return self.fn(*self.args, stream)

    def set(self, position: int, arg: TensorArg) -> None:
        self.args[position] = arg


def _set_scalar(step: Launcher, position: int, kind: Callable[[int], np.generic], value: int) -> None:
    step.set(position, kind(value))


def _set_grid(step: Launcher, grid: list[int], axis: int, groups: int) -> None:
    grid[axis] = groups
    step.resize((grid[0], grid[1], grid[2]))


def _tensor(ref: BufferRef, arg: Ref, offset: int | None = None) -> TensorArg:
    itemsize = np.dtype(arg.dtype).itemsize
    shift = (plain(arg.offset) if offset is None else offset) * itemsize
    return TensorArg(BufferRef(ref.buffer, ref.offset + shift, ref.nbytes - shift), itemsize)
