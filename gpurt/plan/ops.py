"""The ops of plain replays: what one step that is no launch does, over a run and its registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpurt.plan import lanes
from gpurt.plan.replay import Op
from gpurt.plan.steps import CopyStep, Draft, FollowStep, HostStep, ReadStep, StoreStep, ViewStep, WeightStep, WriteStep
from gpurt.plan.values import Held, Run, aligned_empty
from gpurt.provider import BufferRef, ContinuingUnit, DeviceMemory
from gpurt.spec import Spec


def last_reads(draft: Draft) -> dict[int, list[int]]:
    """The registers that a host step is the last to read, by the step's number; outputs of the plan are not among them.

    Letting go of their values at once keeps memory small, and what is used again is still in the processor's cache.
    """
    if draft.lanes is not None:
        return lanes.last_reads(draft, draft.lanes)
    last: dict[int, int] = {}
    for number, step in enumerate(draft.steps):
        if isinstance(step, HostStep):
            last.update((r, number) for r in step.ins if r >= 0)
        elif isinstance(step, WriteStep | StoreStep):
            last[step.register] = number
    for _, place in draft.outputs:
        if place.register is not None:
            last.pop(place.register, None)
    found: dict[int, list[int]] = {}
    for register, number in last.items():
        found.setdefault(number, []).append(register)
    return found


def call(step: HostStep, done: Sequence[int] = ()) -> Op:
    """Call a host unit, then let go of the values in the registers that are done with."""
    compute, ins, outs, into = step.unit.call, step.ins, step.outs, step.into
    compute_into = step.unit.call_into if isinstance(step.unit, ContinuingUnit) else None

    def op(_: Run, registers: list[Any]) -> None:
        inputs = [None if i < 0 else registers[i] for i in ins]
        if into and compute_into is not None:
            results = compute_into(inputs, [registers[r] if i in into else None for i, r in enumerate(outs)])
        else:
            results = compute(inputs)
        for register, value in zip(outs, results, strict=False):
            registers[register] = value
        for register in done:
            registers[register] = None

    return op


def write(step: WriteStep, ref: Callable[[Run, Mapping[str, Held]], BufferRef]) -> Op:
    """Copy a host register to a device."""
    register, space, beside, number = step.register, step.slot.space, step.beside, step.queue

    def op(run: Run, registers: list[Any]) -> None:
        array = np.ascontiguousarray(registers[register])
        queue = run.copies(space) if beside else run.stream(space, number)
        run.keep((array, run.memory(space).write(ref(run, {}), array, queue)))

    return op


def copy(
    step: CopyStep,
    source: Callable[[Run, Mapping[str, Held]], BufferRef],
    ref: Callable[[Run, Mapping[str, Held]], BufferRef],
    number: Callable[[Any], int],
) -> Op:
    """Copy within a device."""
    space, nbytes = step.slot.space, step.nbytes

    def op(run: Run, _: list[Any]) -> None:
        run.memory(space).copy(ref(run, {}), source(run, {}), number(nbytes), run.stream(space))

    return op


def read(step: ReadStep, ref: Callable[[Run, Mapping[str, Held]], BufferRef], concrete: Callable[[Spec], Spec]) -> Op:
    """Copy a device's memory to the host; complete after the next synchronize."""
    register, space = step.register, step.slot.space

    def op(run: Run, registers: list[Any]) -> None:
        array = aligned_empty(concrete(step.spec)) if registers[register] is None else registers[register]
        run.keep(run.memory(space).read(array, ref(run, {}), run.stream(space)))
        registers[register] = array

    return op


def store(step: StoreStep, memory: DeviceMemory, ref: BufferRef) -> Op:
    """Copy a host register into memory that the host and a device share."""
    register, target = step.register, memory.view(ref)

    def op(_: Run, registers: list[Any]) -> None:
        array = np.ascontiguousarray(registers[register])
        target[: array.nbytes] = array.reshape(-1).view(np.uint8)

    return op


def view(
    step: ViewStep,
    ref: Callable[[Run, Mapping[str, Held]], BufferRef],
    mapped: dict[int, np.ndarray],
    concrete: Callable[[Spec], Spec],
) -> Op:
    """See memory that the host and a device share as an array."""
    register, space = step.register, step.slot.space

    def op(run: Run, registers: list[Any]) -> None:
        whole = run.memory(space).view(ref(run, {}))
        base = _root(whole)
        mapped[id(base)] = base
        spec = concrete(step.spec)
        seen = whole[: spec.nbytes].view(spec.dtype).reshape(spec.shape)
        seen.flags.writeable = False
        registers[register] = seen

    return op


def own(value: Any, mapped: Mapping[int, np.ndarray]) -> Any:
    """A value that does not lie in a plan's blocks: arrays over mapped memory, or over who knows what, are copied."""
    if isinstance(value, list):
        return [own(v, mapped) for v in value]
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


def load(step: WeightStep, ref: BufferRef) -> Op:
    """Copy a constant on the queue for copies, into memory that steps before this one have used."""
    array, space = np.ascontiguousarray(step.array), step.slot.space

    def op(run: Run, _: list[Any]) -> None:
        memory, copies, work = run.memory(space), run.copies(space), run.stream(space)
        if copies is not work:
            memory.follow(copies, work)
        run.keep(memory.write(ref, array, copies))

    return op


def await_copies(space: int) -> Op:
    """What is enqueued from now on comes after the copies that are."""

    def op(run: Run, _: list[Any]) -> None:
        copies, work = run.copies(space), run.stream(space)
        if copies is not work:
            run.memory(space).follow(work, copies)

    return op


def hold_copies(space: int) -> Op:
    """Copies that are enqueued from now on come after the launches that are."""

    def op(run: Run, _: list[Any]) -> None:
        copies, work = run.copies(space), run.stream(space)
        if copies is not work:
            run.memory(space).follow(copies, work)

    return op


def follow(step: FollowStep) -> Op:
    """What is enqueued on one queue of a space from now on comes after what is on another one."""
    space, queue, leader = step.space, step.queue, step.leader

    def op(run: Run, _: list[Any]) -> None:
        first, second = run.stream(space, leader), run.stream(space, queue)
        if first is not second:
            run.memory(space).follow(second, first)

    return op


def synchronize(space: int) -> Op:
    """Wait for the queue of a space."""

    def op(run: Run, _: list[Any]) -> None:
        run.synchronize(space)

    return op
