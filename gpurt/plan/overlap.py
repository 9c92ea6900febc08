"""Copies of host values to a device that run beside its launches, on the device's queue for copies.

A copy waits for the last launch that uses the memory it writes, and the first launch that reads it waits for the copy;
between these two the device computes meanwhile. Where nothing is at work that a copy could overlap with, it stays on
the queue of the launches, which needs no waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpurt.plan.steps import (
    AwaitStep,
    CopyStep,
    DeviceStep,
    Draft,
    HoldStep,
    ReadStep,
    Slot,
    Step,
    SyncStep,
    ViewStep,
    WriteStep,
)
from gpurt.provider import DeviceMemory

Range = tuple[int, int, int]
"""Memory of a plan in one space: block, begin and end in bytes."""


def overlap(
    draft: Draft, places: Mapping[Slot, tuple[int, int]], memories: Sequence[DeviceMemory | None]
) -> frozenset[int]:
    """Move copies to the queues for copies where that lets them overlap; the spaces that have such copies.

    Memory is assigned already: the draft gains steps and keeps its slots.
    """
    before: dict[int, list[Step]] = {}
    after: dict[int, list[Step]] = {}
    found = frozenset(s for s, m in enumerate(memories) if m is not None and _order(draft, places, s, before, after))
    if found:
        steps: list[Step] = []
        for i, step in enumerate(draft.steps):
            steps += [*before.get(i, ()), step, *after.get(i, ())]
        draft.steps[:] = [*steps, *before.get(len(draft.steps), ())]
    return found


def _order(
    draft: Draft,
    places: Mapping[Slot, tuple[int, int]],
    space: int,
    before: dict[int, list[Step]],
    after: dict[int, list[Step]],
) -> bool:
    """Add the waits of one space, by the step before or after which they come; whether any copy was moved."""
    if not any(isinstance(s, WriteStep) and s.slot.space == space for s in draft.steps):
        return False
    end = len(draft.steps)
    touched: list[list[Range]] = []  # by each step on the queue of the launches
    synced: list[int] = []  # for each step the last one before it that waits for that queue
    last = 0
    for i, step in enumerate(draft.steps):
        synced.append(last)
        if isinstance(step, SyncStep) and step.space == space:
            last = i
        touched.append([_range(r, places) for r in _roots(step, space) if r in places])
    moved = False
    held = -1
    for i, step in enumerate(draft.steps):
        if not isinstance(step, WriteStep) or step.slot.space != space or step.slot.root()[0] not in places:
            continue
        where = _range(step.slot.root()[0], places)
        reader = next((k for k in range(i + 1, end) if _meet(touched[k], where)), end)
        step.beside = any(isinstance(s, DeviceStep) and s.space == space for s in draft.steps[synced[i] : reader])
        if not step.beside:
            continue
        moved = True
        touched[i] = []  # both queues are in order: what it writes is ordered with the launches by the waits below
        user = next((j for j in range(i - 1, max(held, synced[i]) - 1, -1) if j >= 0 and _meet(touched[j], where)), -1)
        if user > held:
            after.setdefault(user, []).append(HoldStep(space))
            held = user
        before.setdefault(reader, []).append(AwaitStep(space))
    return moved


def _roots(step: Step, space: int) -> list[Slot]:
    if isinstance(step, DeviceStep):
        slots: Sequence[Any] = step.slots
    elif isinstance(step, CopyStep):
        slots = (step.source, step.slot)
    elif isinstance(step, ReadStep | WriteStep | ViewStep):  # a view is looked at after the next wait for the queue
        slots = (step.slot,)
    else:
        return []
    return [slot.root()[0] for slot in slots if slot.space == space]


def _range(root: Slot, places: Mapping[Slot, tuple[int, int]]) -> Range:
    block, offset = places[root]
    return block, offset, offset + root.nbytes


def _meet(ranges: Sequence[Range], where: Range) -> bool:
    block, begin, end = where
    return any(b == block and s < end and begin < e for b, s, e in ranges)
