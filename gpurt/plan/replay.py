"""Ways to replay bound steps: plain, with nothing between the launches; and watched, which can be ended at any step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Final, cast

from gpurt.plan.steps import DeviceStep, Step
from gpurt.plan.values import Run
from gpurt.provider import DeviceMemory
from gpurt.provider import Step as Launch

Op = Callable[[Run, list[Any]], None]
"""A part of a replay: called with the run and its registers."""

BoundStep = tuple[Step, Op | Sequence[Launch]]
"""A step with its launches if it is a DeviceStep, else with its op."""

Variant = Callable[[Sequence[BoundStep]], Sequence[Op]]
"""Makes the ops of a replay from bound steps."""

AHEAD: Final = 16
"""A watched run is at most twice as many launches ahead of the device, so that ending it does not mean waiting."""


def plain(steps: Sequence[BoundStep], memories: Sequence[DeviceMemory | None]) -> Sequence[Op]:
    """Consecutive launches on one device are a single loop over them, or over fewer that do the same."""
    ops: list[Op] = []
    for where, group in groupby(steps, lambda s: (s[0].space, s[0].queue) if isinstance(s[0], DeviceStep) else None):
        if where is None:
            ops.extend(cast("Op", op) for _, op in group)
        else:
            memory = memories[where[0]]
            assert memory is not None, "the host launches nothing"
            launches = [launch for _, bound in group for launch in cast("Sequence[Launch]", bound)]
            ops.append(_launch_all(memory.merged(launches), *where))
    return ops


def watched(steps: Sequence[BoundStep]) -> Sequence[Op]:
    """RunOptions.terminate is looked at before every launch and every other step."""
    ops: list[Op] = [_check]
    for step, bound in steps:
        if isinstance(step, DeviceStep):
            ops.append(_launch_watched(cast("Sequence[Launch]", bound), step.space, step.queue))
        else:
            ops += [_check, cast("Op", bound)]
    return ops


def _launch_all(launches: Sequence[Launch], space: int, queue: int) -> Op:
    def op(run: Run, _: list[Any]) -> None:
        stream = run.stream(space, queue)
        for launch in launches:
            launch(stream)

    return op


def _launch_watched(launches: Sequence[Launch], space: int, queue: int) -> Op:
    def op(run: Run, _: list[Any]) -> None:
        stream = run.stream(space, queue)
        for launch in launches:
            run.check()
            launch(stream)
            run.pace(space, queue, AHEAD)

    return op


def _check(run: Run, _: list[Any]) -> None:
    run.check()
