"""Branches of a plan on several queues of one device, for devices on which independent kernels run beside one another.

Queue 0 is the device's own: what is read is on it, the others begin after what is there before the plan, and it ends
after them. Between queues stand steps that let one follow another, no more than the values and the memory ask for.
Memory is shared by values of two branches only where one is certainly done with before the other is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpurt.memory.offsets import Conflicts
from gpurt.plan.lanes import space_of
from gpurt.plan.steps import CopyStep, DeviceStep, Draft, FollowStep, ReadStep, Slot, Step, SyncStep, WriteStep

Clock = tuple[int, ...]
"""For each queue, how many of its steps are certainly done."""


def branching(steps: Sequence[Step]) -> frozenset[int]:
    """The devices whose launches, or copies to them, are on several queues."""
    return frozenset(space_of(s) for s in steps if isinstance(s, (DeviceStep, WriteStep)) and s.queue)


def touches(step: Step, space: int) -> Iterator[tuple[Slot, bool]]:
    """The memory that a step on a device's queues uses, and whether it writes there; constants apart."""
    if isinstance(step, DeviceStep) and step.space == space:
        for operand, slot in zip(step.plan.operands, step.slots, strict=True):
            root = slot.root()[0]
            if root.bound is None:
                yield root, operand.kind != "in"
    elif isinstance(step, CopyStep) and step.slot.space == space:
        yield step.source.root()[0], False
        yield step.slot.root()[0], True
    elif isinstance(step, (ReadStep, WriteStep)) and step.slot.space == space:
        yield step.slot.root()[0], isinstance(step, WriteStep)


def needs(steps: Sequence[Step], space: int) -> list[set[int]]:
    """For each step the earlier ones of the device that it comes after, by what both do to one memory."""
    found: list[set[int]] = []
    written: dict[Slot, int] = {}
    read: dict[Slot, list[int]] = {}
    for number, step in enumerate(steps):
        after: set[int] = set()
        uses = list(touches(step, space))
        for root, writes in uses:
            if root in written:
                after.add(written[root])
            if writes:
                after.update(read.get(root, ()))
        for root, writes in uses:
            if writes:
                written[root] = number
                read[root] = []
            else:
                read.setdefault(root, []).append(number)
        after.discard(number)
        found.append(after)
    return found


class Queues:
    """What follows what on the queues of one device, and what is certainly done when.

    Attributes:
        follows: before the step of that number: which queue begins to wait for which.
    """

    def __init__(self, steps: Sequence[Step], space: int) -> None:
        self._steps = steps
        self._space = space
        self._queue = [self._of(step) for step in steps]
        self.count = 1 + max((q for q in self._queue if q is not None), default=0)
        others = sorted({q for q in self._queue if q})
        self.follows: dict[int, list[tuple[int, int]]] = {0: [(q, 0) for q in others]}
        self._place()
        self.begin: list[Clock] = []
        """Of each step: what is done when it begins."""
        self.position: list[int] = []
        """Of each step: how many are before it on its queue."""
        now = self._clocks()
        for queue in range(1, self.count):
            if now[0][queue] < now[queue][queue]:
                self.follows.setdefault(len(steps), []).append((0, queue))

    def _of(self, step: Step) -> int | None:
        """The queue of a step; None for steps of other devices and of the host."""
        if isinstance(step, DeviceStep):
            return step.queue if step.space == self._space else None
        if isinstance(step, SyncStep):
            return 0 if step.space == self._space else None
        if not any(touches(step, self._space)):
            return None
        return step.queue if isinstance(step, WriteStep) else 0

    def of(self, number: int) -> int:
        """The queue of a step that is on one."""
        queue = self._queue[number]
        assert queue is not None, "asked of steps that use the device's memory"
        return queue

    def _place(self) -> None:
        """Find where queues have to follow others.

        A queue waits for all that is on another one by then. So it is told to as soon as the step that it needs is
        enqueued and before the next one is, if there is one in between: only its own steps may then wait too early.
        """
        after = needs(self._steps, self._space)
        later: list[int] = [len(self._steps)] * len(self._steps)  # for each step, the next one on its queue
        last: dict[int, int] = {}
        for number, queue in enumerate(self._queue):
            if queue is not None:
                if queue in last:
                    later[last[queue]] = number
                last[queue] = number
        done = [dict.fromkeys(range(self.count), -1) for _ in range(self.count)]  # last step known done, by queue
        at: dict[int, dict[int, int]] = {}  # what a queue knew after a step
        for number, queue in enumerate(self._queue):
            if queue is None:
                continue
            known = done[queue]
            for other in sorted(after[number], reverse=True):
                leader = self.of(other)
                if leader == queue or known[leader] >= other:
                    continue
                self.follows.setdefault(min(later[other], number), []).append((queue, leader))
                known = {k: max(n, at[other][k]) for k, n in known.items()}
            known[queue] = number
            done[queue] = known
            at[number] = dict(known)

    def _clocks(self) -> list[list[int]]:
        now = [[0] * self.count for _ in range(self.count)]
        for number, queue in enumerate(self._queue):
            for follower, leader in self.follows.get(number, ()):
                now[follower] = [max(a, b) for a, b in zip(now[follower], now[leader], strict=True)]
            self.begin.append(tuple(now[queue or 0]))
            self.position.append(now[queue or 0][queue or 0])
            if queue is None:
                continue
            now[queue][queue] += 1
            if isinstance(self._steps[number], SyncStep):  # the host waits, and with it what it enqueues later
                now = [[max(a, b) for a, b in zip(mine, now[0], strict=True)] for mine in now]
        return now


def conflicts(draft: Draft, space: int, slots: Sequence[Slot]) -> Conflicts:
    """For each slot of a device those that it cannot share memory with."""
    queues = Queues(draft.steps, space)
    users: dict[Slot, list[int]] = {slot: [] for slot in slots}
    for number, step in enumerate(draft.steps):
        for root, _ in touches(step, space):
            if root in users:
                users[root].append(number)
    spans: list[tuple[Clock, Clock | None] | None] = []  # None as end: there to the end of the plan
    for slot in slots:
        mine = users[slot]
        if not mine:
            spans.append(None)
            continue
        begin = tuple(min(c) for c in zip(*(queues.begin[n] for n in mine), strict=True))
        end = [0] * queues.count
        for n in mine:
            end[queues.of(n)] = max(end[queues.of(n)], queues.position[n] + 1)
        spans.append((begin, None if slot.last >= len(draft.steps) else tuple(end)))

    def before(i: int, k: int) -> bool:
        one, two = spans[i], spans[k]
        if one is None or two is None or one[1] is None:
            return False
        return all(e <= b for e, b in zip(one[1], two[0], strict=True))

    found: list[set[int]] = [set() for _ in slots]
    for i, slot in enumerate(slots):
        for k in range(i):
            other = slots[k]
            apart = slot.first > other.last or slot.last < other.first
            if not (apart and (before(i, k) or before(k, i))):
                found[i].add(k)
                found[k].add(i)
    return [frozenset(f) for f in found]


def join(draft: Draft, spaces: frozenset[int]) -> None:
    """Add the steps that let queues follow one another, once memory is assigned."""
    at: dict[int, list[FollowStep]] = {}
    for space in sorted(spaces):
        for number, pairs in Queues(draft.steps, space).follows.items():
            at.setdefault(number, []).extend(FollowStep(space, *pair) for pair in dict.fromkeys(pairs))
    steps: list[Step] = []
    for number, step in enumerate(draft.steps):
        steps += [*at.get(number, ()), step]
    draft.steps[:] = [*steps, *at.get(len(draft.steps), ())]
