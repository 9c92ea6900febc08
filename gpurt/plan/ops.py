"""What a plan's steps do when they are replayed, but for launches: ops, called with the run and its registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gpurt.plan.replay import Op
from gpurt.plan.steps import CopyStep, HostStep, ReadStep, StoreStep, ViewStep, WriteStep
from gpurt.plan.values import Held, Run, aligned_empty
from gpurt.provider import BufferRef, ContinuingUnit, DeviceMemory
from gpurt.spec import Spec

Where = Callable[[Run, Mapping[str, Held]], BufferRef]
"""Finds a step's memory when it is replayed: some of it comes from outside the plan."""


def call(step: HostStep) -> Op:
    """Call a host unit."""
    compute, ins, outs, into = step.unit.call, step.ins, step.outs, step.into
    call_into = step.unit.call_into if isinstance(step.unit, ContinuingUnit) else None

    def op(_: Run, registers: list[Any]) -> None:
        inputs = [None if i < 0 else registers[i] for i in ins]
        if into and call_into is not None:
            results = call_into(inputs, [registers[r] if i in into else None for i, r in enumerate(outs)])
        else:
            results = compute(inputs)
        for register, value in zip(outs, results, strict=False):
            registers[register] = value

    return op


def write(step: WriteStep, ref: Where) -> Op:
    """Put a copy from the host on the queue."""
    register, space = step.register, step.slot.space

    def op(run: Run, registers: list[Any]) -> None:
        array = np.ascontiguousarray(registers[register])
        run.keep((array, run.memory(space).write(ref(run, {}), array, run.stream(space))))

    return op


def copy(step: CopyStep, source: Where, ref: Where) -> Op:
    """Put a copy within the device on the queue."""
    space, nbytes = step.slot.space, step.slot.nbytes

    def op(run: Run, _: list[Any]) -> None:
        run.memory(space).copy(ref(run, {}), source(run, {}), nbytes, run.stream(space))

    return op


def read(step: ReadStep, ref: Where) -> Op:
    """Put a copy to the host on the queue: into the caller's array if the register has one, else a new one."""
    register, spec, space = step.register, step.spec, step.slot.space

    def op(run: Run, registers: list[Any]) -> None:
        array = aligned_empty(spec) if registers[register] is None else registers[register]
        run.keep(run.memory(space).read(array, ref(run, {}), run.stream(space)))
        registers[register] = array

    return op


def store(step: StoreStep, memory: DeviceMemory, ref: BufferRef) -> Op:
    """Write from the host into memory that it shares with the device."""
    register, target = step.register, memory.view(ref)

    def op(_: Run, registers: list[Any]) -> None:
        array = np.ascontiguousarray(registers[register])
        target[: array.nbytes] = array.reshape(-1).view(np.uint8)

    return op


def view(step: ViewStep, ref: Where, mapped: dict[int, np.ndarray]) -> Op:
    """Show the host memory that it shares with the device, read-only."""
    register, spec, space = step.register, step.spec, step.slot.space

    def op(run: Run, registers: list[Any]) -> None:
        whole = run.memory(space).view(ref(run, {}))
        base = root_of(whole)
        mapped[id(base)] = base
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
    root = root_of(value)
    if root.flags.owndata and id(root) not in mapped:
        return value
    copy = aligned_empty(Spec(value.dtype, value.shape))
    copy[...] = value
    return copy


def root_of(array: np.ndarray) -> np.ndarray:
    """The array that a view is of, at the end of all views."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def synchronize(space: int) -> Op:
    """Wait for the queue of a space."""

    def op(run: Run, _: list[Any]) -> None:
        run.synchronize(space)

    return op
