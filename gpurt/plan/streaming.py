"""Weights that do not fit into a device's memory: written shortly before their reader runs, into the plan's memory.

Where weights and values together are over the limit, the largest weights that leave enough room stay on the device. The
limit is shared by all plans of the session (gpurt.plan.budget).
The others are copied at each run, on a queue of their own, one step ahead: while a step computes, the next one's
weights are on their way. A plan's memory holds them like any other value, from the step before to their reader.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gpurt import logs
from gpurt.memory.offsets import Lifetime, assign
from gpurt.plan.budget import Demand, Share
from gpurt.plan.steps import AwaitStep, CopyStep, DeviceStep, Draft, ReadStep, Slot, Step, ViewStep, WeightStep
from gpurt.provider import DeviceMemory

logger = logs.get(__name__)

SMALL: Final = 1 << 14
"""Bytes up to which a weight always stays: a copy of it would cost more than its room."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """What was decided for a plan on one device: the bytes that each run copies, those that stay, and the limit."""

    copied: int
    resident: int
    limit: int


def stream_weights(draft: Draft, space: int, memory: DeviceMemory, share: Share) -> Streamed | None:
    """Let a draft fit into its share of a device's memory by streaming weights; None if it fits as it is.

    Values have been merged in place before. The draft gains steps, so positions in it change.
    """
    limit = share.limit(space)
    if not limit:
        return None
    sizes = {key: max(array.nbytes, 1) for key, array in _constants(draft, space).items()}
    kept = {key for key, nbytes in sizes.items() if nbytes <= SMALL} | (_viewed(draft, space) & sizes.keys())
    fixed = sum(sizes[k] for k in kept)
    # What a turn of a loop yields lies in the plan's memory while the next turn has as much again.
    turns = 2 if share.inner and any(space in place.slots for _, place in draft.outputs) else 1
    for ahead in (True, False):  # without copies ahead of time there is more room
        least = fixed + turns * _Stream(draft, space, set(sizes) - kept, ahead).peak(memory)
        if least <= limit:
            break
    demand = Demand(least, sum(sizes.values()) - fixed)
    spare = share.stays(space, demand, limit)
    whole = sum(sizes.values()) + turns * _Stream(draft, space, set(), True).peak(memory)
    if whole <= (limit if spare == demand.weights else least + spare):
        return None
    for key in sorted(sizes.keys() - kept, key=lambda k: -sizes[k]):
        if sizes[key] <= spare:
            kept.add(key)
            spare -= sizes[key]
    chosen = _Stream(draft, space, set(sizes) - kept, ahead)
    chosen.install()
    for step in chosen.steps:
        if isinstance(step, WeightStep) and step.slot.space == space:
            draft.copies.append(
                {
                    "value": step.value,
                    "from": "cpu",
                    "to": memory.device,
                    "bytes": step.array.nbytes,
                    "cause": "over memory_limit",
                }
            )
    found = Streamed(chosen.copied, sum(sizes[k] for k in kept), limit)
    logger.info(
        "%s: memory_limit is %d bytes: each run copies %d bytes of weights, %d bytes stay",
        memory.device, limit, found.copied, found.resident,
    )  # fmt: skip
    return found


class _Stream:
    """A draft with some weights streamed, beside the draft as it was.

    Args:
        draft: the plan before memory is assigned.
        space: of the device.
        streamed: the weights, by id of the array.
        ahead: whether they are copied while the step before computes.
    """

    def __init__(self, draft: Draft, space: int, streamed: set[int], ahead: bool) -> None:
        self._draft, self._space = draft, space
        self.steps: list[Step] = []
        self.copied = 0
        before: dict[int, list[Step]] = {}  # what is put in front of a step
        changed: dict[int, Step] = {}
        loaded: list[tuple[Slot, WeightStep, int]] = []
        previous: int | None = None
        for number, step in enumerate(draft.steps):
            if not isinstance(step, DeviceStep) or step.space != space:
                continue
            fresh: dict[int, Slot] = {}
            for slot in step.slots:
                if slot.bound is not None and id(slot.bound) in streamed and id(slot.bound) not in fresh:
                    fresh[id(slot.bound)] = Slot(space, slot.nbytes)
            if fresh:
                arrays: dict[int, np.ndarray] = {id(s.bound): s.bound for s in step.slots if id(s.bound) in fresh}
                about = f"weights of {step.unit.nodes[0].name}"
                writes = [WeightStep(arrays[key], slot, about) for key, slot in fresh.items()]
                before.setdefault(previous if ahead and previous is not None else number, []).extend(writes)
                before.setdefault(number, []).append(AwaitStep(space))
                slots = [s if s.bound is None else fresh.get(id(s.bound), s) for s in step.slots]
                changed[number] = replace(step, slots=slots)
                loaded += [(w.slot, w, number) for w in writes]
                self.copied += sum(array.nbytes for array in arrays.values())
            previous = number
        moved: list[int] = []  # number of a step -> its number now
        for number, step in enumerate(draft.steps):
            self.steps.extend(before.get(number, ()))
            moved.append(len(self.steps))
            self.steps.append(changed.get(number, step))
        moved.append(len(self.steps))
        self._lives = {s: (moved[s.first], moved[s.last]) for s in draft.slots if s.last >= 0}
        position = {id(step): number for number, step in enumerate(self.steps)}
        for slot, write, reader in loaded:
            self._lives[slot] = (position[id(write)], moved[reader])
        self.slots = [*draft.slots, *(slot for slot, *_ in loaded)]

    def install(self) -> None:
        """Change the draft."""
        self._draft.steps[:] = self.steps
        self._draft.slots[:] = self.slots
        for slot, (first, last) in self._lives.items():
            slot.first, slot.last = first, last

    def peak(self, memory: DeviceMemory) -> int:
        """Bytes of the plan's memory."""
        slots = [s for s in self.slots if s.space == self._space and s.parent is None and not s.target]
        lifetimes = [Lifetime(s.nbytes, *self._lives[s]) for s in slots if s in self._lives]
        return assign(lifetimes, memory.arena.alignment, memory.arena.max_block).peak


def _constants(draft: Draft, space: int) -> dict[int, np.ndarray]:
    """The constants that steps on a device read, by id."""
    steps = (s for s in draft.steps if isinstance(s, DeviceStep) and s.space == space)
    roots = [slot.root()[0] for step in steps for slot in step.slots]
    roots += _copied(draft, space)
    return {id(root.bound): root.bound for root in roots if root.bound is not None}


def _copied(draft: Draft, space: int) -> list[Slot]:
    """The slots that are read by copies, or yielded."""
    slots = [s.source for s in draft.steps if isinstance(s, CopyStep)]
    slots += [s.slot for s in draft.steps if isinstance(s, ReadStep | ViewStep)]
    slots += [slot for _, place in draft.outputs for slot in place.slots.values()]
    return [slot.root()[0] for slot in slots if slot.space == space]


def _viewed(draft: Draft, space: int) -> set[int]:
    """Those that stay where they are, since a step reads a view of them or something else than a launch reads them."""
    steps = (s for s in draft.steps if isinstance(s, DeviceStep) and s.space == space)
    viewed = {id(s.root()[0].bound) for step in steps for s in step.slots if s.parent is not None and s.bound is None}
    return viewed | {id(root.bound) for root in _copied(draft, space)}
