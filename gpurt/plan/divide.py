"""Which launches of a device are on which of its queues: estimated times decide, as for the lanes of threads.

Kernels are taken to fill the device but for the time that any launch takes: what a branch gains beside another one is
that time, and the waits of its chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gpurt import logs
from gpurt.plan.branches import needs
from gpurt.plan.costs import LAUNCH, Cost, Machine, cost
from gpurt.plan.lanes import space_of
from gpurt.plan.steps import DeviceStep, Step, SyncStep, WriteStep

logger = logs.get(__name__)

FOLLOW: Final = 1e-5  # seconds by which a queue begins later that waits for another one
GAIN: Final = 0.9  # of the time on one queue: what several must stay below


def divide(steps: Sequence[Step], space: int, machine: Machine) -> None:
    """Set the queues of a device's steps, if several make runs faster; copies to it that come later have one more."""
    mine = [i for i, s in enumerate(steps) if isinstance(s, DeviceStep) and s.space == space]
    if len(mine) < 3:
        return
    after = needs(steps, space)
    costs = [cost(step, machine) for step in steps]
    launch = machine.rates[space].launch
    trials = [_Trial(steps, costs, after, space, launch, n) for n in range(1, machine.queues[space] + 1)]
    best = min(trials, key=lambda t: t.seconds)
    if best.seconds > GAIN * trials[0].seconds:
        return
    logger.debug("%d queues: estimated %.3g s, on one %.3g s", best.count, best.seconds, trials[0].seconds)
    for i, step in enumerate(steps[mine[0] :], mine[0]):
        if isinstance(step, DeviceStep) and step.space == space:
            step.queue = best.queues[i]
        elif isinstance(step, WriteStep) and step.slot.space == space:
            step.queue = best.count


class _Trial:
    """A run as it might go with so many queues."""

    def __init__(
        self,
        steps: Sequence[Step],
        costs: Sequence[Cost],
        after: Sequence[set[int]],
        space: int,
        launch: float,
        count: int,
    ) -> None:
        self.count = count
        self.queues: dict[int, int] = {}
        ends = [0.0] * count
        host, busy = 0.0, 0.0
        done: dict[int, float] = {}
        for number, (step, its, others) in enumerate(zip(steps, costs, after, strict=True)):
            host += its.host
            if space_of(step) != space:
                continue
            if isinstance(step, SyncStep):
                host = max(host, ends[0])

            def ready(queue: int, others: set[int] = others) -> float:
                known = (done[o] + (0.0 if self.queues[o] == queue else FOLLOW) for o in others)
                return max([ends[queue], *known])

            queue = min(range(count), key=ready) if isinstance(step, DeviceStep) else 0
            host += 2 * LAUNCH * len({self.queues[o] for o in others} - {queue})
            end = max(ready(queue), host) + its.device
            self.queues[number], done[number], ends[queue] = queue, end, end
            if isinstance(step, DeviceStep):
                busy += max(its.device - launch * max(len(step.plan.kernels), 1), 0.0)
        self.seconds = max(host, busy, *ends)
