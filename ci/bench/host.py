# ruff: noqa: SLF001 - what is measured is inside
"""Host time of a replay: microseconds a step of gpurt's own Python, apart from what the driver takes to enqueue.

usage: host.py [--provider opencl] [--runs 30] [MODEL.onnx ...]

A model is replayed with launches, copies and waits that do nothing, and with host units that give back what they gave
before: what remains is the way through the steps. The least time of all runs counts, since noise only adds. Then the
launches are enqueued one after the other; the queue is waited for outside of the time.

Columns: launches and other steps of a run, microseconds a step in the replay, microseconds of a run around the replay
(feeds checked, plan looked up, outputs handed over), and the driver's microseconds a launch. The exit status is 1 if a
replay takes over 5 microseconds a step.
"""

from __future__ import annotations

import math
import pathlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Final, cast

import click
import models as made
from rich.console import Console
from rich.table import Table

import gpurt
from gpurt.plan import ops
from gpurt.plan.replay import BoundStep, Op, plain
from gpurt.plan.state import PlanState
from gpurt.plan.steps import DeviceStep, HostStep, Step
from gpurt.provider import DeviceMemory

MOST: Final = 5.0
"""Microseconds a step that a replay may take."""


@dataclass(slots=True)
class Row:
    """What was measured: counts of a run, and microseconds."""

    launches: int
    others: int
    step: float
    around: float
    launch: float


class _Idle:
    """A device's memory whose queues do nothing."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    def write(self, *_: Any) -> None: ...

    def read(self, *_: Any) -> None: ...

    def copy(self, *_: Any) -> None: ...

    def follow(self, *_: Any) -> None: ...

    def synchronize(self, _: Any) -> None: ...


class _Again:
    """A host unit that computes once."""

    def __init__(self, unit: Any) -> None:
        self._unit = unit
        self._given: Sequence[Any] | None = None

    def call(self, inputs: Sequence[Any]) -> Sequence[Any]:
        if self._given is None:
            self._given = self._unit.call(inputs)
        return self._given


class _Clock:
    """Time between the first and the last op of replays, and the steps in them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.launches = self.others = 0
        self._start = 0.0

    def around(self, steps: Sequence[BoundStep], inner: Sequence[Op]) -> list[Op]:
        """The ops of a replay with the clock around them."""
        launches = sum(len(bound) for step, bound in steps if isinstance(step, DeviceStep))  # type: ignore[arg-type]
        others = sum(not isinstance(step, DeviceStep) for step, _ in steps)

        def begin(*_: Any) -> None:
            self._start = perf_counter()

        def end(*_: Any) -> None:
            self.seconds += perf_counter() - self._start
            self.launches += launches
            self.others += others

        return [begin, *inner, end]


def measure(path: pathlib.Path, provider: str, runs: int) -> Row:
    """Replay a model; see the module."""
    options = gpurt.SessionOptions(partitioning="greedy")
    session = gpurt.InferenceSession(path, options, providers=[provider, "cpu"])
    feeds = made.feeds(path)
    for _ in range(3):
        session.run(None, feeds)
    site = session._site
    states = [s for r in site._runners.values() for plan in r.plans() for s in plan._pool]
    driver = _enqueued(states, site.memories, runs)
    clock = _Clock()
    for state in states:
        state._steps = [_silent(step, bound) for step, bound in state._steps]
        state._ops = clock.around(state._steps, plain(state._steps, state._memories))
    session.run(None, feeds)  # host units compute
    site.memories[:] = [None if m is None else cast("DeviceMemory", _Idle(m)) for m in site.memories]
    least = around = math.inf
    for _ in range(runs):
        clock.seconds, clock.launches, clock.others = 0.0, 0, 0
        start = perf_counter()
        session.run(None, feeds)
        whole = perf_counter() - start
        least, around = min(least, clock.seconds), min(around, whole - clock.seconds)
    steps = max(clock.launches + clock.others, 1)
    return Row(clock.launches, clock.others, 1e6 * least / steps, 1e6 * around, 1e6 * driver)


def _silent(step: Step, bound: Any) -> BoundStep:
    """A bound step that leaves the device alone."""
    if isinstance(step, DeviceStep):
        return step, [_nothing] * len(bound)
    if isinstance(step, HostStep):
        return step, ops.call(replace(step, unit=_Again(step.unit), into=frozenset()))
    return step, bound


def _nothing(_: Any) -> None:
    """In the place of a launch."""


def _enqueued(states: Sequence[PlanState], memories: Sequence[DeviceMemory | None], runs: int) -> float:
    """Seconds of a launch to enqueue; the least of the means of all rounds."""
    least, count = 0.0, 0
    for space, memory in enumerate(memories):
        launches: list[Any] = []
        for state in states:
            for step, bound in state._steps:
                if isinstance(step, DeviceStep) and step.space == space:
                    launches += bound  # type: ignore[arg-type]
        if memory is None or not launches:
            continue
        stream, best = memory.stream(), math.inf
        for _ in range(runs):
            start = perf_counter()
            for launch in launches:
                launch(stream)
            best = min(best, perf_counter() - start)
            memory.synchronize(stream)
        least, count = least + best, count + len(launches)
    return least / max(count, 1)


@click.command(help=__doc__)
@click.argument("models", nargs=-1, type=click.Path(exists=True, path_type=pathlib.Path))
@click.option("--provider", default="opencl", show_default=True)
@click.option("--runs", default=30, show_default=True)
def main(models: tuple[pathlib.Path, ...], provider: str, runs: int) -> None:
    """See the module."""
    table = Table("model", "launches", "other steps", "us a step", "us around", "driver's us a launch")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for path in models or made.generated(pathlib.Path(folder)):
            row = measure(path, provider, runs)
            worst = max(worst, row.step)
            counts = (str(row.launches), str(row.others))
            table.add_row(path.name, *counts, f"{row.step:.2f}", f"{row.around:.0f}", f"{row.launch:.2f}")
    Console().print(table)
    raise SystemExit(worst > MOST)


if __name__ == "__main__":
    main()
