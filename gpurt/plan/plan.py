"""A plan with its memory assigned, and the states that replay it: one run at a time has a state, then it is pooled."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpurt.errors import OutOfMemory
from gpurt.memory.offsets import Lifetime, assign, lower_bound, rounded
from gpurt.plan import ops
from gpurt.plan.delivery import carried
from gpurt.plan.destination import Destination
from gpurt.plan.replay import BoundStep, Op, Variant, plain
from gpurt.plan.steps import CopyStep, DeviceStep, Draft, HostStep, ReadStep, Slot, StoreStep, ViewStep, WriteStep
from gpurt.plan.values import DeviceTensor, Held, Lease, Run
from gpurt.provider import Bound, BufferRef, DeviceMemory
from gpurt.tensor.storage import same_place

Foreign = tuple[str, int, bool]
"""Memory from outside a plan: whose, in which space, whether it is an output's."""

Constants = dict[tuple[int, int], BufferRef]
"""Constants that a plan holds on its devices, by space and id of the array, which the plan's slots keep."""


class Plan:
    """Immutable: steps, slots with offsets, blocks by space."""

    def __init__(self, draft: Draft, memories: Sequence[DeviceMemory | None]) -> None:
        self.end = draft.end
        self.copies = draft.copies
        self._draft = draft
        self._memories = memories
        self._merge_in_place()
        self._places: dict[Slot, tuple[int, int]] = {}
        self.blocks: dict[int, Sequence[int]] = {}
        self.lower_bounds: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.yields: dict[int, int] = {}
        for space, memory in enumerate(memories):
            if memory is None:
                continue
            slots = [s for s in draft.slots if s.space == space and s.parent is None and s.last >= 0 and not s.target]
            lifetimes = [Lifetime(s.nbytes, s.first, s.last) for s in slots]
            layout = assign(lifetimes, memory.arena.alignment, memory.arena.max_block)
            self._places.update(zip(slots, layout.places, strict=True))
            self.blocks[space] = layout.blocks
            self.lower_bounds[space] = lower_bound(lifetimes, memory.arena.alignment)
            self.sizes[space] = layout.peak
            roots = {p.slots[space].root()[0] for _, p in draft.outputs if space in p.slots}
            self.yields[space] = sum(rounded(r.nbytes, memory.arena.alignment) for r in roots if r in self._places)
        self._stores = {s.slot.space for s in draft.steps if isinstance(s, StoreStep)}
        self.used = 0  # when it was last asked for, in ticks of the cache that keeps it
        self.nbytes = sum(self.sizes.values())
        self._states = 0
        self._constants: Constants = {}
        self._inherited: list[Constants] = []
        self._pool: list[PlanState] = []
        self._retired = False
        # The last reader of what a plan yielded may be the garbage collector's, in the midst of a call on this plan.
        self._lock = threading.RLock()

    def _merge_in_place(self) -> None:
        """Let outputs take the memory of inputs that nobody reads later, where the unit allows it."""
        for number, step in enumerate(self._draft.steps):
            if not isinstance(step, DeviceStep):
                continue
            by_key = {(o.kind, o.index): s for o, s in zip(step.plan.operands, step.slots, strict=True)}
            for out, candidates in step.plan.inplace.items():
                target = by_key.get(("out", out))
                if target is None or target.parent is not None or target.target:
                    continue
                for position in candidates:
                    source = by_key.get(("in", position))
                    root, shift = source.root() if source is not None else (target, 0)
                    if root is target or root.name or root.bound is not None or root.last != number:
                        continue
                    shared = (s for s in step.slots if s is not source and s.root()[0] is root)
                    if any(s.root()[1] or s.nbytes != root.nbytes for s in shared):
                        continue  # another operand is a part of the same memory: it is read after this is written
                    skip = carried(step, out, position)
                    if skip and sum(s.root()[0] is root for s in step.slots) > 1:
                        continue  # the input is read in other places than those that are written
                    if shift == 0 and root.nbytes == target.nbytes and root.first < number:
                        target.parent, target.shift = root, 0
                        root.last = max(root.last, target.last)
                        step.skip |= skip
                        break

    def execute(self, run: Run, env: dict[str, Held], destinations: Mapping[str, Destination]) -> None:
        """Replay over the held values of env; what later steps need is put back into it.

        Raises InvalidArgument, before anything is launched, if an output does not fit into its destination.
        """
        state = self._used_before(run)
        if state is None:
            with self._lock:
                state = self._pool.pop() if self._pool else None
        if state is None:
            state = self._state(run, env, destinations)
        run.usage.begin(self.sizes, self.lower_bounds)
        lease = run.lease(lambda: self._give_back(state, run))
        try:
            state.execute(run, env, destinations, lease)
        finally:
            run.usage.yielded(self.yields)

    def held(self) -> int:
        """Bytes of device memory that its states hold."""
        return self._states * self.nbytes

    def trim(self, keep: int = 0) -> None:
        """Give the memory of states that no run has back to the arenas, but for the first `keep` of them."""
        with self._lock:
            self._pool, idle = self._pool[:keep], self._pool[keep:]
            self._states -= len(idle)
        for state in idle:
            state.close()

    def inherit(self, other: Plan) -> None:
        """Keep the constants of a plan that is let go until this one has those that it uses, too."""
        self._inherited.append(other._constants)

    def retire(self) -> None:
        """Keep no memory from now on: what runs still have is given back when they end."""
        self._retired = True
        self.trim()

    def _state(self, run: Run, env: Mapping[str, Held], destinations: Mapping[str, Destination]) -> PlanState:
        """A new state; where memory is short, idle states of all plans make room first."""
        known = (self._draft, self._places, self.blocks, self._memories, self._constants, run, env, destinations)
        with run.span("Session", "bind", {}):
            try:
                state = PlanState(*known)
            except OutOfMemory:
                run.make_room()
                state = PlanState(*known)
        self._inherited.clear()
        with self._lock:
            self._states += 1
        run.grew = True
        return state

    def _used_before(self, run: Run) -> PlanState | None:
        """A state that this run has had, for its next turn: what it enqueues now comes after all that used it."""
        idle = run.idle.get(self)
        if not idle:
            return None
        for space in self._stores:
            run.synchronize(space)  # the host is about to write where kernels of the last turn may still read
        state: PlanState = idle.pop()
        return state

    def _give_back(self, state: PlanState, run: Run) -> None:
        run.usage.end(self.sizes, self.yields)
        if run.finished:
            self.pool(state)
        else:
            run.idle.setdefault(self, []).append(state)

    def pool(self, state: PlanState) -> None:
        """Take a state back whose queues are empty."""
        with self._lock:
            self._pool.append(state)
        if self._retired:
            self.trim()


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
    ) -> None:
        self._draft = draft
        self._places = places
        self._memories = memories
        self._constants = constants
        self._blocks: dict[int, list[BufferRef]] = {}
        self._frees: list[weakref.finalize[Any, Any]] = []
        self._steps: Sequence[BoundStep] = []
        self._ops: Sequence[Op] = []
        self._variants: dict[Variant, Sequence[Op]] = {}
        self._specs = {name: place.spec for name, place in draft.outputs}
        self._mapped: dict[int, np.ndarray] = {}  # arrays, by id, that show device memory to the host
        # Memory from outside: where it is bound, to be set again when the memory is another.
        self._foreign: dict[Foreign, list[tuple[Bound, int, int, int]]] = {}
        self._current: dict[Foreign, BufferRef] = {}
        try:
            for name, slot in draft.targets.items():
                self._foreign[name, slot.space, True] = []
                self._current[name, slot.space, True] = self._outside((name, slot.space, True), run, env, destinations)
            self._take(blocks, run)
            self._steps = self._bind(run, env)
            self._ops = plain(self._steps)
        except BaseException:
            self.close()
            raise
        for _, place in draft.outputs:
            for slot in place.slots.values():
                self._note_foreign(slot)

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
        self._steps, self._ops = [], []
        self._variants.clear()
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
        return destinations[name].place(name, spec, space, self._memory(space), run)

    def _bind(self, run: Run, env: Mapping[str, Held]) -> Sequence[BoundStep]:
        # A proxy: a state that knew itself would be freed only when the garbage collector comes by.
        ref = partial(PlanState._ref, weakref.proxy(self))
        steps: list[BoundStep] = []
        for step in self._draft.steps:
            if isinstance(step, DeviceStep):
                assert step.plan.bind is not None, "a plan with operands has something to bind"
                bound = step.plan.bind([self._ref(s, run, env) for s in step.slots])
                steps.append((step, [s for i, s in enumerate(bound.steps) if i not in step.skip]))
                for operand, slot in enumerate(step.slots):
                    self._note_foreign(slot).append((bound, operand, slot.root()[1], slot.nbytes))
            elif isinstance(step, HostStep):
                steps.append((step, ops.call(step)))
            elif isinstance(step, StoreStep):
                steps.append((step, ops.store(step, self._memory(step.slot.space), self._ref(step.slot, run, env))))
            elif isinstance(step, ViewStep):
                self._note_foreign(step.slot)
                steps.append((step, ops.view(step, partial(ref, step.slot), self._mapped)))
            elif isinstance(step, WriteStep):
                self._note_foreign(step.slot)
                steps.append((step, ops.write(step, partial(ref, step.slot))))
            elif isinstance(step, CopyStep):
                self._note_foreign(step.source)
                self._note_foreign(step.slot)
                steps.append((step, ops.copy(step, partial(ref, step.source), partial(ref, step.slot))))
            elif isinstance(step, ReadStep):
                self._note_foreign(step.slot)
                steps.append((step, ops.read(step, partial(ref, step.slot))))
            else:
                steps.append((step, ops.synchronize(step.space)))
        return steps

    def _variant(self, variant: Variant) -> Sequence[Op]:
        """The same bound steps, replayed in another way; made when it is first asked for."""
        if variant not in self._variants:
            self._variants[variant] = variant(self._steps)
        return self._variants[variant]

    def execute(self, run: Run, env: dict[str, Held], destinations: Mapping[str, Destination], lease: Lease) -> None:
        """Run all steps, then put the plan's outputs into env."""
        for key, places in self._foreign.items():
            ref = self._outside(key, run, env, destinations)
            if not same_place(ref, self._current.get(key)):
                self._current[key] = ref
                for bound, operand, shift, nbytes in places:
                    bound.rebind(operand, BufferRef(ref.buffer, ref.offset + shift, nbytes))
        registers: list[Any] = [None] * self._draft.registers
        for register, value in self._draft.preset:
            registers[register] = value
        for name, register in self._draft.entries:
            registers[register] = env[name].on_host(run)
        if destinations:
            self._receive(destinations, registers)
        for op in self._ops if run.variant is None else self._variant(run.variant):
            op(run, registers)
        for name, place in self._draft.outputs:
            if place.entry and place.entry in env:
                env[name] = env[place.entry]
                continue
            held = Held(spec=place.spec)
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
                root, shift = slot.root()
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
                destination.check(name, place.spec)
            array, register = destination.array, place.register
            if array is None or register is None or registers[register] is not None:
                continue
            if register in made or (register in reads and destination.target.direct):
                registers[register] = array
