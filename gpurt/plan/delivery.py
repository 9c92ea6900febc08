"""Whether an output's last kernel can write straight to where the output is wanted."""

from __future__ import annotations

from collections.abc import Sequence

from gpurt.plan.steps import DeviceStep, Slot, Step


def movable(slot: Slot | None, steps: Sequence[Step]) -> Slot | None:
    """The slot whose memory may come from outside so that a value is written there; None if it must be copied.

    It has to be the whole of memory that a kernel of this plan writes: no constant, no fed value, no part of another
    value, and no other output's memory.
    """
    if slot is None:
        return None
    root, shift = slot.root()
    plain = root.bound is None and not root.name and not root.target
    if not plain or shift or root.nbytes != slot.nbytes or root.first >= len(steps):
        return None
    return root if isinstance(steps[root.first], DeviceStep) else None


def append(root: Slot, past: Slot | None, steps: Sequence[Step]) -> DeviceStep | None:
    """The step that may write a value into the memory of a fed one, `past`, in place; None if it would spoil it.

    The step's unit must allow it, and nobody may read the past later.
    """
    step = steps[root.first]
    if past is None or past.last != root.first or not isinstance(step, DeviceStep):
        return None
    by_key = {(o.kind, o.index): s for o, s in zip(step.plan.operands, step.slots, strict=True)}
    for out, candidates in step.plan.inplace.items():
        if by_key.get(("out", out)) is not root:
            continue
        sources = [p for p in candidates if by_key.get(("in", p)) is past]
        readers = [s for s in step.slots if s.root()[0] is past]
        if sources and len(readers) == 1:
            step.skip = carried(step, out, sources[0])
            return step
    return None


def carried(step: DeviceStep, out: int, source: int) -> frozenset[int]:
    """The launches that only bring an input's content to an output: none where both are one memory."""
    position, launches = step.plan.carried.get(out, (-1, frozenset()))
    return launches if position == source else frozenset()
