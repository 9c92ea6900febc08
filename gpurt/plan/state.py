"""The state of a plan: blocks of memory with the plan's kernels bound to them, replayed by one run at a time."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpurt.plan import ops
from gpurt.plan.destination import Destination
from gpurt.plan.parallel import BoundLanes
from gpurt.plan.replay import BoundStep, Op, Variant, plain
from gpurt.plan.sizes import Sizing
from gpurt.plan.steps import (
    AwaitStep,
    CopyStep,
    DeviceStep,
    Draft,
    FollowStep,
    HoldStep,
    HostStep,
    ReadStep,
    Slot,
    StoreStep,
    ViewStep,
    WeightStep,
    WriteStep,
)
from gpurt.plan.values import DeviceTensor, Held, Lease, Run
from gpurt.provider import Bound, BufferRef, DeviceMemory
from gpurt.spec import SizedSpec, Spec
from gpurt.tensor.storage import same_place

Constants = dict[tuple[int, int], BufferRef]
"""Constants that a plan holds on its devices, by space and id of the array, which the plan's slots keep."""

Foreign = tuple[str, int, bool]
"""Memory from outside a plan: whose, in which space, whether it is an output's."""


class PlanState:
    """Blocks of memory with the plan's kernels bound to them."""

    def __init__(
        self,
        draft: Draft,
        places: Mapping[Slot, tuple[int, int]],
        blocks: Mapping[int, Sequence[int]],
        memories: Sequence[DeviceMemory | None],
        constants: Constants,
        run: Run,
        env: Mapping[str, Held],
        destinations: Mapping[str, Destination],
        sizing: Sizing | None = None,
        symbols: tuple[int, ...] = (),
    ) -> None:
        self._draft = draft
        self._sizing = sizing
        self._symbols: tuple[int, ...] = ()
        # Of all sizes of a template: for the run at hand, since binding makes memory for outputs; later those set last.
        self._values: list[Sequence[int]] = [() if sizing is None else sizing.expressions.values(symbols)]
        self._preset = draft.preset
        self._resizable: list[tuple[Bound, list[int]]] = []
        self._concrete = partial(_concrete, sizing, self._values)
        self._number = partial(_number, sizing, self._values)
        self._places = places
        self._memories = memories
        self._constants = constants
        self._blocks: dict[int, list[BufferRef]] = {}
        self._frees: list[weakref.finalize[Any, Any]] = []
        self._steps: Sequence[BoundStep] = []
        self._ops: Sequence[Op] = []
        self._variants: dict[Variant, Sequence[Op]] = {}
        self._lanes: BoundLanes | None = None
        self._specs = {name: place.spec for name, place in draft.outputs}
        self._mapped: dict[int, np.ndarray] = {}  # arrays, by id, that show device memory to the host
        # Memory from outside: where it is bound, to be set again when the memory is another.
        self._foreign: dict[Foreign, list[tuple[Bound, int, int, int]]] = {}
        self._current: dict[Foreign, BufferRef] = {}
        try:
            for name, slot in draft.targets.items():
                self._foreign[name, slot.space, True] = []
                self._current[name, slot.space, True] = self._outside((name, slot.space, True), run, env, destinations)
            # Constants first: beside them the arena takes no more than is needed where a limit is near.
            for step in draft.steps:
                for slot in step.slots if isinstance(step, DeviceStep) else ():
                    if slot.bound is not None:
                        self._ref(slot, run, env)
            self._take(blocks, run)
            self._steps = self._bind(run, env)
            if draft.lanes is not None:
                self._lanes = BoundLanes(draft.lanes, self._steps, memories)
            self._ops = plain(self._steps, memories) if self._lanes is None else self._lanes.ops
        except BaseException:
            self.close()
            raise
        self._yielded: dict[Slot, BufferRef] = {}  # where outputs are that lie in no memory from outside
        for _, place in draft.outputs:
            for slot in place.slots.values():
                self._note_foreign(slot)
                root, _ = slot.root()
                if root.bound is None and not root.name and not root.target:
                    self._yielded[slot] = self._ref(slot, run, env)

    def _take(self, blocks: Mapping[int, Sequence[int]], run: Run) -> None:
        for space, sizes in blocks.items():
            arena = self._memory(space).arena
            taken = self._blocks[space] = []
            for nbytes in sizes:
                ref = arena.alloc(nbytes)
                self._frees.append(weakref.finalize(self, arena.free, ref))
                taken.append(ref)
            run.usage.allocated(space, len(sizes))

    def close(self) -> None:
        """Give the blocks back, after the kernels that are bound to them."""
        self._steps, self._ops, self._lanes = [], [], None
        self._variants.clear()
        self._resizable.clear()
        self._foreign.clear()
        self._current.clear()
        for free in self._frees:
            free()

    def _memory(self, space: int) -> DeviceMemory:
        memory = self._memories[space]
        assert memory is not None, "the host has no device memory"
        return memory

    def _ref(self, slot: Slot, run: Run, env: Mapping[str, Held]) -> BufferRef:
        root, shift = slot.root()
        if root.bound is not None:
            place = (root.space, id(root.bound))
            if place not in self._constants:
                self._constants[place] = self._memory(root.space).constant(root.bound)
            base = self._constants[place]
        elif root.name or root.target:
            key = (root.target or root.name, root.space, bool(root.target))
            if key not in self._current:
                self._current[key] = self._outside(key, run, env, {})
            base = self._current[key]
        else:
            block, offset = self._places[root]
            owner = self._blocks[root.space][block]
            base = BufferRef(owner.buffer, owner.offset + offset, root.nbytes)
        return BufferRef(base.buffer, base.offset + shift, slot.nbytes)

    def _note_foreign(self, slot: Slot) -> list[tuple[Bound, int, int, int]]:
        """Where a slot's memory must be set again if a held value brings it; a list of its own if the plan does."""
        root, _ = slot.root()
        if not root.name and not root.target:
            return []
        return self._foreign.setdefault((root.target or root.name, root.space, bool(root.target)), [])

    def _outside(
        self, key: Foreign, run: Run, env: Mapping[str, Held], destinations: Mapping[str, Destination]
    ) -> BufferRef:
        """The memory that a fed value or a destination brings in this run."""
        name, space, output = key
        if not output:
            return env[name].on_device(space, run)
        spec = self._specs[name]
        assert spec is not None, "only outputs whose shape is known are written from within the plan"
        return destinations[name].place(name, self._concrete(spec), space, run)

    def _bind(self, run: Run, env: Mapping[str, Held]) -> Sequence[BoundStep]:
        # A proxy: a state that knew itself would be freed only when the garbage collector comes by.
        ref = partial(PlanState._ref, weakref.proxy(self))
        steps: list[BoundStep] = []
        done = ops.last_reads(self._draft)
        for number, step in enumerate(self._draft.steps):
            if isinstance(step, DeviceStep):
                assert step.plan.bind is not None, "a plan with operands has something to bind"
                bound = step.plan.bind([self._ref(s, run, env) for s in step.slots])
                steps.append((step, [s for i, s in enumerate(bound.steps) if i not in step.skip]))
                if step.plan.sizes and self._sizing is not None:
                    self._resizable.append((bound, self._sizing.where(step.plan.sizes)))
                for operand, slot in enumerate(step.slots):
                    self._note_foreign(slot).append((bound, operand, slot.root()[1], slot.nbytes))
            elif isinstance(step, HostStep):
                steps.append((step, ops.call(step, done.get(number, ()))))
            elif isinstance(step, StoreStep):
                steps.append((step, ops.store(step, self._memory(step.slot.space), self._ref(step.slot, run, env))))
            elif isinstance(step, ViewStep):
                self._note_foreign(step.slot)
                steps.append((step, ops.view(step, partial(ref, step.slot), self._mapped, self._concrete)))
            elif isinstance(step, WriteStep):
                self._note_foreign(step.slot)
                steps.append((step, ops.write(step, partial(ref, step.slot))))
            elif isinstance(step, CopyStep):
                self._note_foreign(step.source)
                self._note_foreign(step.slot)
                steps.append((step, ops.copy(step, partial(ref, step.source), partial(ref, step.slot), self._number)))
            elif isinstance(step, ReadStep):
                self._note_foreign(step.slot)
                steps.append((step, ops.read(step, partial(ref, step.slot), self._concrete)))
            elif isinstance(step, WeightStep):
                steps.append((step, ops.load(step, self._ref(step.slot, run, env))))
            elif isinstance(step, AwaitStep):
                steps.append((step, ops.await_copies(step.space)))
            elif isinstance(step, HoldStep):
                steps.append((step, ops.hold_copies(step.space)))
            elif isinstance(step, FollowStep):
                steps.append((step, ops.follow(step)))
            else:
                steps.append((step, ops.synchronize(step.space)))
        return steps

    def _variant(self, variant: Variant) -> Sequence[Op]:
        """The same bound steps, replayed in another way; made when it is first asked for."""
        if variant not in self._variants:
            self._variants[variant] = variant(self._steps)
        return self._variants[variant]

    def resize(self, symbols: tuple[int, ...]) -> None:
        """Set what depends on a template's symbols."""
        sizing = self._sizing
        if sizing is None or symbols == self._symbols:
            return
        values = self._values[0] = sizing.expressions.values(symbols)
        self._symbols = symbols
        for bound, where in self._resizable:
            bound.resize([values[i] for i in where])
        self._preset = [
            (r, sizing.content(v, values) if isinstance(v, SizedSpec) else v) for r, v in self._draft.preset
        ]

    def execute(self, run: Run, env: dict[str, Held], destinations: Mapping[str, Destination], lease: Lease) -> None:
        """Run all steps, then put the plan's outputs into env."""
        for key, places in self._foreign.items():
            ref = self._outside(key, run, env, destinations)
            if not same_place(ref, self._current.get(key)):
                self._current[key] = ref
                for bound, operand, shift, nbytes in places:
                    bound.rebind(operand, BufferRef(ref.buffer, ref.offset + shift, nbytes))
        registers: list[Any] = [None] * self._draft.registers
        for register, value in self._preset:
            registers[register] = value
        for name, register in self._draft.entries:
            registers[register] = env[name].on_host(run)
        if destinations:
            self._receive(destinations, registers)
        if self._lanes is None or not self._lanes.replay(run, registers):
            for op in self._ops if run.variant is None else self._variant(run.variant):
                op(run, registers)
        for name, place in self._draft.outputs:
            if place.entry and place.entry in env:
                env[name] = env[place.entry]
                continue
            held = Held(spec=None if place.spec is None else self._concrete(place.spec))
            if name in self._draft.targets:
                destination = destinations[name]
                if destination.array is not None:
                    held = Held(destination.array)
                elif destination.storage is not None:
                    space = destination.target.space
                    held.tensors[space] = DeviceTensor(destination.storage.ref, destination.storage)
            if place.register is not None:
                value = registers[place.register]
                held = Held(ops.own(value, self._mapped) if self._mapped else value)
            for space, slot in place.slots.items():
                mine = self._yielded.get(slot)
                if mine is not None:
                    held.tensors[space] = DeviceTensor(mine, lease)
                    continue
                root, _ = slot.root()
                if root.name and root.name in env:
                    held.tensors[space] = DeviceTensor(self._ref(slot, run, env), env[root.name].tensors[space].lease)
                else:
                    held.tensors[space] = DeviceTensor(self._ref(slot, run, env), lease)
            env[name] = held
        run.keep(registers)

    def _receive(self, destinations: Mapping[str, Destination], registers: list[Any]) -> None:
        """Let reads from devices go straight to the caller's arrays."""
        reads = {s.register for s in self._draft.steps if isinstance(s, ReadStep)}
        made = {s.outs[i] for s in self._draft.steps if isinstance(s, HostStep) for i in s.into}
        for name, place in self._draft.outputs:
            destination = destinations.get(name)
            if destination is None:
                continue
            if place.spec is not None:
                destination.check(name, self._concrete(place.spec))
            array, register = destination.array, place.register
            if array is None or register is None or registers[register] is not None:
                continue
            if register in made or (register in reads and destination.target.direct):
                registers[register] = array


def _concrete(sizing: Sizing | None, values: Sequence[Sequence[int]], spec: Spec) -> Spec:
    """A spec with the numbers of this run."""
    return spec if sizing is None else sizing.spec(spec, values[0])


def _number(sizing: Sizing | None, values: Sequence[Sequence[int]], n: Any) -> int:
    """A size of this run."""
    return int(n) if sizing is None else sizing.number(n, values[0])
