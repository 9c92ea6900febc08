"""Which lane each step of a plan runs on: estimated times decide, and few lanes are better than many that gain nothing.

A run is simulated, step by step in the order of the plan: threads, queues of devices, and the cores that devices which
are CPUs and BLAS's own threads share. Each step of the host goes to the lane on which it would be done first (list
scheduling; Graham, "Bounds on Multiprocessing Timing Anomalies", 1969), where another lane's value comes late by what
it takes to wake a thread. The best of a few ways to divide devices and the host among lanes is kept if it is worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gpurt import logs
from gpurt.infer import infer
from gpurt.partitioner.cost import work
from gpurt.plan.destination import Target
from gpurt.plan.lanes import Lanes, dependencies, extend_lifetimes, space_of
from gpurt.plan.parallel import Threads
from gpurt.plan.steps import (
    CopyStep,
    DeviceStep,
    Draft,
    HostStep,
    ReadStep,
    Step,
    StoreStep,
    SyncStep,
    WeightStep,
    WriteStep,
)
from gpurt.provider import DeviceUnit, HostUnit, Rates
from gpurt.spec import Spec, Unknown
from gpurt.symbolic import plain

logger = logs.get(__name__)

HANDOFF: Final = 60e-6  # seconds until a thread goes on that waited for another one
START: Final = 8e-5  # seconds for each thread besides the caller's that a run needs
LAUNCH: Final = 4e-6  # seconds of the host for a launch
GAIN: Final = 0.9  # of the time on one lane: what several must stay below


@dataclass(frozen=True, slots=True)
class Machine:
    """What a schedule is made for.

    Attributes:
        rates: by memory space, the host's first.
        cores: of the host.
        crowded: spaces whose devices compute on all cores of the host; 0 where BLAS does.
        most: lanes at most; 0 for one for each device, and for the host as many as cores.
    """

    rates: Sequence[Rates]
    cores: int
    crowded: frozenset[int]
    most: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a step: seconds of the thread that runs it, and of the device.

    Attributes:
        host, device: seconds.
        python: the part of `host` in which no other thread can run Python.
        cores: whether it needs all cores.
    """

    host: float
    device: float = 0.0
    python: float = 0.0
    cores: bool = False


def schedule(steps: Sequence[Step], machine: Machine) -> Lanes | None:
    """The lanes of a plan's steps, with HostStep.lane set; None where one thread is as good."""
    costs = [cost(step, machine) for step in steps]
    after = dependencies(steps)
    spaces = sorted({space_of(s) for s in steps if not isinstance(s, HostStep)})
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
        """Give a draft lanes if that makes runs faster; before any memory is shared between its values."""
        if any(t.past or not t.direct for t in (targets or {}).values()):
            return  # an output is a fed value's memory: who reads that value comes first, by the order of the plan
        if self._found is None:
            self._found = self._machine()
        lanes = schedule(draft.steps, self._found)
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
        for number, (step, cost, others) in enumerate(zip(steps, costs, after, strict=True)):
            space = space_of(step)

            def start(lane: int, others: set[int] = others) -> float:
                known = (done[i] for i in others)
                return max([threads[lane], *(t if at == lane else t + HANDOFF for t, at in known)])

            python += cost.python
            if isinstance(step, HostStep):
                lane = min(range(hosts), key=start)
                begin = max(start(lane), cores) if cost.cores else start(lane)
                end = begin + cost.host
                if cost.cores:
                    cores = end
                self.lanes[number] = lane
            else:
                lane = spaces[space]
                end = start(lane) + cost.host
                if isinstance(step, SyncStep):
                    end = max(end, queues[space])
                if cost.device:
                    begin = max(queues[space], end, cores if cost.cores else 0.0)
                    queues[space] = begin + cost.device
                    if cost.cores:
                        cores = queues[space]
            threads[lane] = end
            done.append((end, lane))
        self.used = sorted({0, *self.lanes.values(), *spaces.values()})
        self.seconds = max([python, *threads, *queues.values()]) + START * (len(self.used) - 1)


def cost(step: Step, machine: Machine) -> Cost:
    """What a step is estimated to take."""
    if isinstance(step, HostStep):
        rates = machine.rates[0]
        seconds, products = unit_seconds(step.unit, *step.specs, rates)
        return Cost(seconds, python=rates.launch, cores=products and 0 in machine.crowded)
    space = space_of(step)
    rates = machine.rates[space]
    crowded = space in machine.crowded
    if isinstance(step, DeviceStep):
        seconds, _ = unit_seconds(step.unit, step.inputs, step.plan.outputs, rates)
        host = LAUNCH * max(len(step.plan.kernels), 1)
        return Cost(host, seconds, host, crowded)
    if isinstance(step, (WriteStep, WeightStep)):
        return Cost(LAUNCH, plain(step.slot.nbytes) / rates.write, LAUNCH)
    if isinstance(step, ReadStep):
        return Cost(LAUNCH, plain(step.slot.nbytes) / rates.read, LAUNCH)
    if isinstance(step, CopyStep):
        return Cost(LAUNCH, 2 * plain(step.slot.nbytes) / rates.data, LAUNCH)
    if isinstance(step, StoreStep):
        return Cost(2 * plain(step.slot.nbytes) / machine.rates[0].data)
    return Cost(rates.sync if isinstance(step, SyncStep) else LAUNCH)


def unit_seconds(
    unit: HostUnit | DeviceUnit, ins: Sequence[Spec | None], outs: Sequence[Spec] | None, rates: Rates
) -> tuple[float, bool]:
    """Estimated time of a unit, and whether most of it are matrix products; a launch where shapes are not known.

    Values between nodes of one unit are taken to stay where they are made.
    """
    known = {n: _plain(s) for n, s in zip(unit.inputs, ins, strict=False) if n is not None and s is not None}
    ends = {n: _plain(s) for n, s in zip(unit.outputs, outs or (), strict=False) if n is not None}
    seconds, products = 0.0, 0.0
    for node in unit.nodes:
        specs = [None if v is None else known.get(v.name) for v in node.inputs]
        made: Sequence[Spec] = ()
        if len(unit.nodes) == 1 and outs is not None:
            made = [_plain(s) for s in outs]
        elif all(s is not None or v is None for s, v in zip(specs, node.inputs, strict=True)):
            try:
                made = infer(node, specs)
            except (Unknown, ValueError):
                made = ()
        known.update((v.name, s) for v, s in zip(node.outputs, made, strict=False) if v is not None)
        if not made:
            continue
        job = work(node, specs, made)
        if len(unit.nodes) > 1 and job.kind == "data":
            continue  # what it reads and writes is counted below, as far as it leaves the unit
        took = job.seconds(rates)
        seconds += took
        if job.kind in ("gemm", "conv"):
            products += took
    if len(unit.nodes) > 1:
        edges = [s for s in (*(known.get(n) for n in unit.inputs if n), *ends.values()) if s is not None]
        seconds += sum(s.nbytes for s in edges) / rates.data
    return max(seconds, rates.launch), products > seconds / 2


def _plain(spec: Spec) -> Spec:
    """A spec with the numbers at hand in place of symbolic sizes."""
    return Spec(spec.dtype, tuple(plain(n) for n in spec.shape))
