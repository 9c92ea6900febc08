"""The order of a plan's steps as far as it matters: what comes after what, on several threads at once.

A lane is what one thread does, in the order of the plan. All steps of a device stay on one lane, so that its queue gets
them as a sequential run would give them; steps of the host may be on any. A step waits for those of other lanes whose
values it reads. As nothing waits for a later step of the plan, lanes cannot wait for one another in a circle.

Memory of a device is shared between values only where every order that the lanes allow keeps them apart: a value that
the host sees in place stays until the device's lane has waited for whoever looks at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpurt.plan.steps import (
    AwaitStep,
    DeviceStep,
    Draft,
    FollowStep,
    HoldStep,
    HostStep,
    ReadStep,
    Slot,
    Step,
    StoreStep,
    SyncStep,
    ViewStep,
    WriteStep,
)


@dataclass(slots=True)
class Segment:
    """Steps of a lane with nothing to wait for between them.

    Attributes:
        waits: signals that must have been given before the first step.
        steps: numbers of steps of the draft.
        signals: those that are given after the last one.
    """

    waits: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Lanes:
    """The lanes of a draft; lane 0 is the thread that calls the run.

    Attributes:
        count: how many there are.
        spaces: the lane of each device's steps; HostStep.lane is that of the host's.
        seconds: estimated time of a run, and of one on a single lane.
    """

    count: int
    spaces: Mapping[int, int]
    seconds: tuple[float, float] = (0.0, 0.0)

    def of(self, step: Step) -> int:
        """The lane of a step."""
        return step.lane if isinstance(step, HostStep) else self.spaces[space_of(step)]


def space_of(step: Step) -> int:
    """The device whose queue a step is about; 0 for steps of the host alone."""
    if isinstance(step, HostStep):
        return 0
    if isinstance(step, (DeviceStep, SyncStep, AwaitStep, HoldStep, FollowStep)):
        return step.space
    return step.slot.space


def registers_read(step: Step) -> list[int]:
    """Registers whose content a step reads."""
    if isinstance(step, HostStep):
        return [r for r in step.ins if r >= 0]
    return [step.register] if isinstance(step, (WriteStep, StoreStep)) else []


def dependencies(steps: Sequence[Step]) -> list[set[int]]:
    """For each step the earlier ones that it comes after: on the queue of its device, and by the values it reads.

    What is read from a device is complete after the next step that waits for it.
    """
    found: list[set[int]] = []
    made: dict[int, int] = {}
    pending: dict[int, list[int]] = {}
    latest: dict[int, int] = {}
    for number, step in enumerate(steps):
        after = {made[r] for r in registers_read(step) if r in made}
        space = space_of(step)
        if isinstance(step, HostStep):
            made.update(dict.fromkeys(step.outs, number))
        else:
            if space in latest:
                after.add(latest[space])
            latest[space] = number
        if isinstance(step, (ReadStep, ViewStep)):
            made[step.register] = number
            pending.setdefault(space, []).append(step.register)
        elif isinstance(step, SyncStep):
            made.update(dict.fromkeys(pending.pop(space, ()), number))
        found.append(after)
    return found


class Order:
    """What is certainly done before what, and what must be waited for so that it is."""

    def __init__(self, steps: Sequence[Step], lanes: Lanes) -> None:
        self.lane = [lanes.of(step) for step in steps]
        self.waits: list[list[int]] = []
        """For each step those of other lanes that its thread has to wait for; the rest is implied."""
        self._position: list[int] = []
        self._clock: list[tuple[int, ...]] = []  # how many steps of each lane are done when a step is
        now = [(0,) * lanes.count for _ in range(lanes.count)]
        length = [0] * lanes.count
        for lane, after in zip(self.lane, dependencies(steps), strict=True):
            clock = list(now[lane])
            waits = []
            for other in sorted(after, reverse=True):
                if clock[self.lane[other]] <= self._position[other]:
                    if self.lane[other] != lane:
                        waits.append(other)
                    clock = [max(a, b) for a, b in zip(clock, self._clock[other], strict=True)]
            self.waits.append(waits)
            self._position.append(length[lane])
            length[lane] += 1
            clock[lane] = length[lane]
            now[lane] = tuple(clock)
            self._clock.append(now[lane])

    def before(self, first: int, second: int) -> bool:
        """Whether a step is done when a later one begins, or is that step."""
        return self._clock[second][self.lane[first]] > self._position[first]


def segments(steps: Sequence[Step], lanes: Lanes) -> tuple[list[list[Segment]], int]:
    """What each lane does, and the number of signals between them."""
    order = Order(steps, lanes)
    signals: dict[int, list[int]] = {}
    waits: list[list[int]] = []
    count = 0
    for others in order.waits:
        waits.append(list(range(count, count + len(others))))
        for other in others:
            signals.setdefault(other, []).append(count)
            count += 1
    found: list[list[Segment]] = [[Segment()] for _ in range(lanes.count)]
    for number, lane in enumerate(order.lane):
        mine = found[lane]
        if waits[number] or mine[-1].signals:
            mine.append(Segment(waits[number]))
        mine[-1].steps.append(number)
        mine[-1].signals += signals.get(number, ())
    return [[s for s in lane if s.steps] for lane in found], count


def extend_lifetimes(draft: Draft, lanes: Lanes) -> None:
    """Let memory that the host sees in place last until its device's lane comes after all who look at it."""
    order = Order(draft.steps, lanes)
    seen: dict[int, frozenset[Slot]] = {}  # by register: memory that its array may lie in
    looks: dict[Slot, list[int]] = {}
    for number, step in enumerate(draft.steps):
        if isinstance(step, ViewStep):
            seen[step.register] = frozenset((step.slot.root()[0],))
        if not isinstance(step, (HostStep, StoreStep)):
            continue  # what a queue reads from the host lasts for the whole plan, see Builder
        memory = frozenset(r for register in registers_read(step) for r in seen.get(register, ()))
        for root in memory:
            if order.lane[number] != lanes.spaces[root.space]:
                looks.setdefault(root, []).append(number)
        if isinstance(step, HostStep) and memory:
            seen.update(dict.fromkeys(step.outs, memory))
    by_space: dict[int, list[int]] = {}
    for number, step in enumerate(draft.steps):
        by_space.setdefault(space_of(step), []).append(number)
    for root, numbers in looks.items():
        later = (n for n in by_space[root.space] if all(order.before(k, n) for k in numbers))
        root.last = max(root.last, next(later, len(draft.steps)))


def last_reads(draft: Draft, lanes: Lanes) -> dict[int, list[int]]:
    """As gpurt.plan.ops.last_reads: where a host step may let go of registers that others have read by then."""
    order = Order(draft.steps, lanes)
    readers: dict[int, list[int]] = {}
    hosts: list[int] = []
    for number, step in enumerate(draft.steps):
        for register in registers_read(step):
            readers.setdefault(register, []).append(number)
        if isinstance(step, HostStep):
            hosts.append(number)
    for _, place in draft.outputs:
        if place.register is not None:
            readers.pop(place.register, None)
    found: dict[int, list[int]] = {}
    for register, numbers in readers.items():
        if not isinstance(draft.steps[numbers[-1]], HostStep):
            continue
        later = (h for h in hosts if h >= numbers[-1] and all(order.before(n, h) for n in numbers))
        last = next(later, None)
        if last is not None:
            found.setdefault(last, []).append(register)
    return found
