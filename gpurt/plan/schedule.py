"""Which lane each step of a plan runs on: estimated times decide, and few lanes are better than many that gain nothing.

A run is simulated, step by step in the order of the plan: threads, queues of devices, and the cores that devices which
are CPUs and BLAS's own threads share. Each step of the host goes to the lane on which it would be done first (list
scheduling; Graham, "Bounds on Multiprocessing Timing Anomalies", 1969), where another lane's value comes late by what
it takes to wake a thread. The best of a few ways to divide devices and the host among lanes is kept if it is worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gpurt import logs
from gpurt.plan.costs import Cost, Machine, cost
from gpurt.plan.destination import Target
from gpurt.plan.divide import divide
from gpurt.plan.lanes import Lanes, dependencies, extend_lifetimes, space_of
from gpurt.plan.parallel import Threads
from gpurt.plan.steps import Draft, HostStep, Step, SyncStep

logger = logs.get(__name__)

HANDOFF: Final = 60e-6  # seconds until a thread goes on that waited for another one
START: Final = 8e-5  # seconds for each thread besides the caller's that a run needs
GAIN: Final = 0.9  # of the time on one lane: what several must stay below


def schedule(steps: Sequence[Step], machine: Machine) -> Lanes | None:
    """The lanes of a plan's steps, with HostStep.lane set; None where one thread is as good."""
    spaces = sorted({space_of(s) for s in steps if not isinstance(s, HostStep)})
    if len(spaces) < 2 and not any(isinstance(s, HostStep) for s in steps):
        return None  # one queue
    costs = [cost(step, machine) for step in steps]
    after = dependencies(steps)
    most = machine.most or machine.cores + len(spaces)
    hosts = min(machine.cores, most)
    alone = _Trial(steps, costs, after, dict.fromkeys(spaces, 0), 1)
    trials = []
    if hosts > 1:
        trials.append(_Trial(steps, costs, after, dict.fromkeys(spaces, 0), hosts))
    if spaces and most > 1:
        beside = {space: 1 + i % (most - 1) for i, space in enumerate(spaces)}
        for first in sorted({1, max(1, min(machine.cores, most - len(set(beside.values()))))}):
            own = {space: lane - 1 + first for space, lane in beside.items()}
            trials.append(_Trial(steps, costs, after, own, first))
    best = min(trials, key=lambda t: t.seconds, default=alone)
    if len(best.used) < 2 or best.seconds > GAIN * alone.seconds:
        return None
    number = {lane: i for i, lane in enumerate(best.used)}
    for i, lane in best.lanes.items():
        step = steps[i]
        assert isinstance(step, HostStep), "only the host's steps are free to go anywhere"
        step.lane = number[lane]
    own = {space: number[lane] for space, lane in best.spaces.items()}
    return Lanes(len(best.used), own, (best.seconds, alone.seconds))


class Parallel:
    """Divides the plans of a session among lanes, and has the threads for them.

    Args:
        machine: gives what the plans are made for, when the first one is.
        most: threads besides the one that calls the run.
    """

    def __init__(self, machine: Callable[[], Machine], most: int) -> None:
        self._machine = machine
        self._found: Machine | None = None
        self.threads = Threads(most)

    def arrange(self, draft: Draft, targets: Mapping[str, Target] | None) -> None:
        """Give a draft lanes, and its launches queues, if that makes runs faster; before values share any memory."""
        if any(t.past or not t.direct for t in (targets or {}).values()):
            return  # an output is a fed value's memory: who reads that value comes first, by the order of the plan
        if self._found is None:
            self._found = self._machine()
        lanes = schedule(draft.steps, self._found)
        for space, queues in enumerate(self._found.queues):
            if queues > 1:
                divide(draft.steps, space, self._found)
        if lanes is not None:
            draft.lanes = lanes
            extend_lifetimes(draft, lanes)
            logger.debug("%d lanes: estimated %.3g s, on one %.3g s", lanes.count, *lanes.seconds)


class _Trial:
    """A run as it might go: `spaces` says on which lane each device's steps are, the host has the first `hosts`."""

    def __init__(
        self,
        steps: Sequence[Step],
        costs: Sequence[Cost],
        after: Sequence[set[int]],
        spaces: Mapping[int, int],
        hosts: int,
    ) -> None:
        self.spaces = spaces
        self.lanes: dict[int, int] = {}  # by number of a host step
        threads = [0.0] * (1 + max([hosts - 1, *spaces.values()]))
        queues = dict.fromkeys(spaces, 0.0)
        cores, python = 0.0, 0.0
        done: list[tuple[float, int]] = []  # of each step: when, on which lane
        for number, (step, its, others) in enumerate(zip(steps, costs, after, strict=True)):
            space = space_of(step)

            def start(lane: int, others: set[int] = others) -> float:
                known = (done[i] for i in others)
                return max([threads[lane], *(t if at == lane else t + HANDOFF for t, at in known)])

            python += its.python
            if isinstance(step, HostStep):
                lane = min(range(hosts), key=start)
                begin = max(start(lane), cores) if its.cores else start(lane)
                end = begin + its.host
                if its.cores:
                    cores = end
                self.lanes[number] = lane
            else:
                lane = spaces[space]
                end = start(lane) + its.host
                if isinstance(step, SyncStep):
                    end = max(end, queues[space])
                if its.device:
                    begin = max(queues[space], end, cores if its.cores else 0.0)
                    queues[space] = begin + its.device
                    if its.cores:
                        cores = queues[space]
            threads[lane] = end
            done.append((end, lane))
        self.used = sorted({0, *self.lanes.values(), *spaces.values()})
        self.seconds = max([python, *threads, *queues.values()]) + START * (len(self.used) - 1)
