"""A plan with its memory assigned, and the states that replay it: one run at a time has a state, then it is pooled."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpurt.errors import OutOfMemory
from gpurt.memory.offsets import Lifetime, assign, lower_bound, rounded
from gpurt.plan.sizes import Sizing
from gpurt.plan.steps import DeviceStep, Draft, HostStep, ReadStep, Slot, StoreStep, ViewStep, WriteStep
from gpurt.plan.usage import Usage
from gpurt.plan.values import DeviceTensor, Held, Lease, Run, aligned_empty
from gpurt.provider import Bound, BufferRef, DeviceMemory
from gpurt.spec import SizedSpec, Spec

Op = Callable[[Run, list[Any]], None]


class Plan:
    """Immutable: steps, slots with offsets, blocks by space."""

    def __init__(self, draft: Draft, memories: Sequence[DeviceMemory | None], sizing: Sizing | None = None) -> None:
        self.end = draft.end
        self.copies = draft.copies
        self._draft = draft
        self._memories = memories
        self._sizing = sizing
        if sizing is None:  # else it was done while sizes could still leave guards
            merge_in_place(draft)
        self._places: dict[Slot, tuple[int, int]] = {}
        self.blocks: dict[int, Sequence[int]] = {}
        self.lower_bounds: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.yields: dict[int, int] = {}
        for space, memory in enumerate(memories):
            if memory is None:
                continue
            slots = [s for s in draft.slots if s.space == space and s.parent is None and s.last >= 0]
            lifetimes = [Lifetime(s.nbytes, s.first, s.last) for s in slots]
            layout = assign(lifetimes, memory.arena.alignment, memory.arena.max_block)
            self._places.update(zip(slots, layout.places, strict=True))
            self.blocks[space] = layout.blocks
            self.lower_bounds[space] = lower_bound(lifetimes, memory.arena.alignment)
            self.sizes[space] = layout.peak
            roots = {p.slots[space].root()[0] for _, p in draft.outputs if space in p.slots}
            self.yields[space] = sum(rounded(r.nbytes, memory.arena.alignment) for r in roots if r in self._places)
        self._pool: list[PlanState] = []
        self._retired = False
        self._lock = threading.Lock()

    def execute(self, run: Run, env: dict[str, Held], symbols: tuple[int, ...] = ()) -> None:
        """Replay over the held values of env; what later steps need is put back into it.

        A template's plan is given the values of its symbols.
        """
        with self._lock:
            state = self._pool.pop() if self._pool else None
        if state is None:
            state = self._state(run, env)
        usage = run.usage
        usage.begin(self.sizes, self.lower_bounds)
        lease = Lease(lambda: run.after(lambda: self._give_back(state, usage)))
        try:
            state.resize(symbols)
            state.execute(run, env, lease)
        finally:
            usage.yielded(self.yields)

    def trim(self) -> None:
        """Give the memory of states that no run has back to the arenas."""
        with self._lock:
            idle, self._pool = self._pool, []
        for state in idle:
            state.close()

    def retire(self) -> None:
        """Keep no memory from now on: what runs still have is given back when they end."""
        self._retired = True
        self.trim()

    def _state(self, run: Run, env: Mapping[str, Held]) -> PlanState:
        """A new state; where memory is short, idle states of all plans make room first."""
        try:
            return PlanState(self._draft, self._places, self.blocks, self._memories, run, env, self._sizing)
        except OutOfMemory:
            run.relieve()
        return PlanState(self._draft, self._places, self.blocks, self._memories, run, env, self._sizing)

    def _give_back(self, state: PlanState, usage: Usage) -> None:
        usage.end(self.sizes, self.yields)
        with self._lock:
            self._pool.append(state)
        if self._retired:
            self.trim()


def merge_in_place(draft: Draft) -> None:
    """Let outputs take the memory of inputs that nobody reads later, where the unit allows it."""
    for number, step in enumerate(draft.steps):
        if not isinstance(step, DeviceStep):
            continue
        by_key = {(o.kind, o.index): s for o, s in zip(step.plan.operands, step.slots, strict=True)}
        for out, candidates in step.plan.inplace.items():
            target = by_key.get(("out", out))
            if target is None or target.parent is not None:
                continue
            for position in candidates:
                source = by_key.get(("in", position))
                root, shift = source.root() if source is not None else (target, 0)
                if root is target or root.name or root.bound is not None or root.last != number:
                    continue
                shared = (s for s in step.slots if s is not source and s.root()[0] is root)
                if any(s.root()[1] or s.nbytes != root.nbytes for s in shared):
                    continue  # another operand is a part of the same memory: it is read after this is written
                if shift == 0 and root.nbytes == target.nbytes and root.first < number:
                    target.parent, target.shift = root, 0
                    root.last = max(root.last, target.last)
                    break


class PlanState:
    """Blocks of memory with the plan's kernels bound to them."""

    def __init__(
        self,
        draft: Draft,
        places: Mapping[Slot, tuple[int, int]],
        blocks: Mapping[int, Sequence[int]],
        memories: Sequence[DeviceMemory | None],
        run: Run,
        env: Mapping[str, Held],
        sizing: Sizing | None = None,
    ) -> None:
        self._draft = draft
        self._sizing = sizing
        self._symbols: tuple[int, ...] = ()
        self._values: Sequence[int] = ()
        self._preset = draft.preset
        self._resizable: list[tuple[Bound, list[int]]] = []
        self._places = places
        self._memories = memories
        self._blocks: dict[int, list[BufferRef]] = {}
        self._frees: list[weakref.finalize[Any, Any]] = []
        self._ops: list[Op] = []
        self._mapped: dict[int, np.ndarray] = {}  # arrays, by id, that show device memory to the host
        # Values that bring their own memory: where they are bound, to be set again when the memory is another.
        self._foreign: dict[tuple[str, int], list[tuple[Bound, int, int, int]]] = {}
        self._current: dict[tuple[str, int], BufferRef] = {}
        try:
            self._take(blocks, run)
            self._ops = self._bind(run, env)
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
        self._ops = []
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
            base = self._memory(root.space).constant(root.bound)
        elif root.name:
            key = (root.name, root.space)
            if key not in self._current:
                self._current[key] = env[root.name].on_device(root.space, run)
            base = self._current[key]
        else:
            block, offset = self._places[root]
            owner = self._blocks[root.space][block]
            base = BufferRef(owner.buffer, owner.offset + offset, root.nbytes)
        return BufferRef(base.buffer, base.offset + shift, slot.nbytes)

    def _note_foreign(self, slot: Slot) -> list[tuple[Bound, int, int, int]]:
        """Where a slot's memory must be set again if a held value brings it; a list of its own if the plan does."""
        root, _ = slot.root()
        return self._foreign.setdefault((root.name, root.space), []) if root.name else []

    def _bind(self, run: Run, env: Mapping[str, Held]) -> list[Op]:
        ops: list[Op] = []
        batch: list[Callable[[Any], None]] = []
        batch_space = -1

        def flush() -> None:
            nonlocal batch
            if batch:
                ops.append(_launch_all(batch, batch_space))
                batch = []

        for step in self._draft.steps:
            if isinstance(step, DeviceStep):
                if step.space != batch_space:
                    flush()
                    batch_space = step.space
                assert step.plan.bind is not None, "a plan with operands has something to bind"
                bound = step.plan.bind([self._ref(s, run, env) for s in step.slots])
                batch.extend(bound.steps)
                if step.plan.sizes and self._sizing is not None:
                    self._resizable.append((bound, self._sizing.where(step.plan.sizes)))
                for operand, slot in enumerate(step.slots):
                    self._note_foreign(slot).append((bound, operand, slot.root()[1], slot.nbytes))
                continue
            flush()
            if isinstance(step, HostStep):
                ops.append(_call(step))
            elif isinstance(step, StoreStep):
                ops.append(_store(step, self._memory(step.slot.space), self._ref(step.slot, run, env)))
            elif isinstance(step, ViewStep):
                self._note_foreign(step.slot)
                ops.append(_view(step, partial(self._ref, step.slot), self._mapped, self._spec))
            elif isinstance(step, WriteStep):
                ops.append(_write(step, self._memory(step.slot.space), self._ref(step.slot, run, env)))
            elif isinstance(step, ReadStep):
                self._note_foreign(step.slot)
                ops.append(_read(step, partial(self._ref, step.slot), self._spec))
            else:
                ops.append(_synchronize(step.space))
        flush()
        return ops

    def resize(self, symbols: tuple[int, ...]) -> None:
        """Set what depends on a template's symbols."""
        sizing = self._sizing
        if sizing is None or symbols == self._symbols:
            return
        values = self._values = sizing.expressions.values(symbols)
        self._symbols = symbols
        for bound, where in self._resizable:
            bound.resize([values[i] for i in where])
        self._preset = [
            (r, sizing.content(v, values) if isinstance(v, SizedSpec) else v) for r, v in self._draft.preset
        ]

    def _spec(self, spec: Spec) -> Spec:
        return spec if self._sizing is None else self._sizing.spec(spec, self._values)

    def execute(self, run: Run, env: dict[str, Held], lease: Lease) -> None:
        """Run all steps, then put the plan's outputs into env."""
        for (name, space), places in self._foreign.items():
            ref = env[name].on_device(space, run)
            if ref != self._current.get((name, space)):
                self._current[name, space] = ref
                for bound, operand, shift, nbytes in places:
                    bound.rebind(operand, BufferRef(ref.buffer, ref.offset + shift, nbytes))
        registers: list[Any] = [None] * self._draft.registers
        for register, value in self._preset:
            registers[register] = value
        for name, register in self._draft.entries:
            registers[register] = env[name].on_host(run)
        for op in self._ops:
            op(run, registers)
        for name, place in self._draft.outputs:
            if place.entry and place.entry in env:
                env[name] = env[place.entry]
                continue
            held = Held(spec=None if place.spec is None else self._spec(place.spec))
            if place.register is not None:
                value = registers[place.register]
                held = Held(_own(value, self._mapped) if self._mapped else value)
            for space, slot in place.slots.items():
                root, shift = slot.root()
                if root.name and root.name in env:
                    held.tensors[space] = DeviceTensor(self._ref(slot, run, env), env[root.name].tensors[space].lease)
                else:
                    held.tensors[space] = DeviceTensor(self._ref(slot, run, env), lease)
            env[name] = held
        run.keep(registers)


def _launch_all(steps: Sequence[Callable[[Any], None]], space: int) -> Op:
    def op(run: Run, _: list[Any]) -> None:
        stream = run.stream(space)
        for step in steps:
            step(stream)

    return op


def _call(step: HostStep) -> Op:
    call, ins, outs = step.unit.call, step.ins, step.outs

    def op(_: Run, registers: list[Any]) -> None:
        results = call([None if i < 0 else registers[i] for i in ins])
        for register, value in zip(outs, results, strict=False):
            registers[register] = value

    return op


def _write(step: WriteStep, memory: DeviceMemory, ref: BufferRef) -> Op:
    register, space = step.register, step.slot.space

    def op(run: Run, registers: list[Any]) -> None:
        array = np.ascontiguousarray(registers[register])
        run.keep((array, memory.write(ref, array, run.stream(space))))

    return op


def _read(step: ReadStep, ref: Callable[[Run, Mapping[str, Held]], BufferRef], concrete: Callable[[Spec], Spec]) -> Op:
    register, space = step.register, step.slot.space

    def op(run: Run, registers: list[Any]) -> None:
        spec = concrete(step.spec)
        array = aligned_empty(spec)
        run.keep(run.memory(space).read(array, ref(run, {}), run.stream(space)))
        registers[register] = array

    return op


def _store(step: StoreStep, memory: DeviceMemory, ref: BufferRef) -> Op:
    register, target = step.register, memory.view(ref)

    def op(_: Run, registers: list[Any]) -> None:
        array = np.ascontiguousarray(registers[register])
        target[: array.nbytes] = array.reshape(-1).view(np.uint8)

    return op


def _view(
    step: ViewStep,
    ref: Callable[[Run, Mapping[str, Held]], BufferRef],
    mapped: dict[int, np.ndarray],
    concrete: Callable[[Spec], Spec],
) -> Op:
    register, space = step.register, step.slot.space

    def op(run: Run, registers: list[Any]) -> None:
        spec = concrete(step.spec)
        whole = run.memory(space).view(ref(run, {}))
        base = _root(whole)
        mapped[id(base)] = base
        seen = whole[: spec.nbytes].view(spec.dtype).reshape(spec.shape)
        seen.flags.writeable = False
        registers[register] = seen

    return op


def _own(value: Any, mapped: Mapping[int, np.ndarray]) -> Any:
    """A value that does not lie in a plan's blocks: arrays over mapped memory, or over who knows what, are copied."""
    if isinstance(value, list):
        return [_own(v, mapped) for v in value]
    if not isinstance(value, np.ndarray) or value.dtype.kind == "O":
        return value
    root = _root(value)
    if root.flags.owndata and id(root) not in mapped:
        return value
    copy = aligned_empty(Spec(value.dtype, value.shape))
    copy[...] = value
    return copy


def _root(array: np.ndarray) -> np.ndarray:
    """The array that a view is of, at the end of all views."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _synchronize(space: int) -> Op:
    def op(run: Run, _: list[Any]) -> None:
        run.synchronize(space)

    return op
