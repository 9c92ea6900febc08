"""What the steps of a plan are estimated to take, by the rates that also place nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from gpurt.infer import infer
from gpurt.partitioner.cost import work
from gpurt.plan.lanes import space_of
from gpurt.plan.steps import CopyStep, DeviceStep, HostStep, ReadStep, Step, StoreStep, SyncStep, WeightStep, WriteStep
from gpurt.provider import DeviceUnit, HostUnit, Rates
from gpurt.spec import SizedSpec, Spec, Unknown
from gpurt.symbolic import plain

LAUNCH: Final = 4e-6  # seconds of the host for a launch


@dataclass(frozen=True, slots=True)
class Machine:
    """What a schedule is made for.

    Attributes:
        rates: by memory space, the host's first.
        cores: of the host.
        crowded: spaces whose devices compute on all cores of the host; 0 where BLAS does.
        queues: by memory space, how many a device has for kernels that may run at once.
        most: lanes at most; 0 for one for each device, and for the host as many as cores.
    """

    rates: Sequence[Rates]
    cores: int
    crowded: frozenset[int]
    queues: Sequence[int]
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


def cost(step: Step, machine: Machine) -> Cost:
    """What a step is estimated to take."""
    if isinstance(step, HostStep):
        rates = machine.rates[0]
        seconds, calls, products = unit_seconds(step.unit, *step.specs, rates)
        return Cost(seconds, python=calls, cores=products and 0 in machine.crowded)
    space = space_of(step)
    rates = machine.rates[space]
    crowded = space in machine.crowded
    if isinstance(step, DeviceStep):
        seconds, _, _ = unit_seconds(step.unit, step.inputs, step.plan.outputs, rates)
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
) -> tuple[float, float, bool]:
    """Estimated time of a unit, how much of it passes however small its values are, and whether most are products.

    The second is when NumPy holds Python's lock. Values between nodes of one unit are taken to stay where they are
    made. Where shapes are not known it is a launch.
    """
    known = {n: _plain(s) for n, s in zip(unit.inputs, ins, strict=False) if n is not None and s is not None}
    ends = {n: _plain(s) for n, s in zip(unit.outputs, outs or (), strict=False) if n is not None}
    seconds, calls, products = 0.0, 0.0, 0.0
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
        calls += replace(job, amount=0.0, nbytes=0.0).seconds(rates)
        if job.kind in ("gemm", "conv"):
            products += took
    if len(unit.nodes) > 1:
        edges = [s for s in (*(known.get(n) for n in unit.inputs if n), *ends.values()) if s is not None]
        seconds += sum(s.nbytes for s in edges) / rates.data
    return max(seconds, rates.launch), max(calls, rates.launch), products > seconds / 2


def _plain(spec: Spec) -> Spec:
    """A spec with the numbers at hand in place of symbolic sizes, whose content is left aside."""
    const = None if isinstance(spec, SizedSpec) else spec.const
    return Spec(spec.dtype, tuple(plain(n) for n in spec.shape), const)
