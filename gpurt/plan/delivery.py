"""The end of a plan: outputs are brought to where they are wanted, best by the kernel that makes them.

A destination may be a fed value's memory. Then whatever reads that value comes before what is written there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gpurt.plan.destination import LEAVE, Target
from gpurt.plan.places import Places
from gpurt.plan.sizes import known_content
from gpurt.plan.steps import CopyStep, DeviceStep, HostStep, Place, Slot, Step, StoreStep, WriteStep
from gpurt.provider import ContinuingUnit


class Delivery(Places):
    """The part of a Builder that is about outputs.

    Attributes:
        _moved: outputs that are written to memory from outside, and the slots that stand for it.
    """

    def __init__(self, devices: Sequence[str], shared: frozenset[int], slotted: frozenset[str]) -> None:
        super().__init__(devices, shared, slotted)
        self._moved: dict[str, Slot] = {}

    def _deliver_all(
        self, names: Iterable[str], targets: Mapping[str, Target] | None, *, final: bool
    ) -> list[tuple[str, Place]]:
        """What the plan yields, with places; emits the steps that bring the graph's outputs to their targets."""
        wanted = {
            name: targets.get(name, Target(0)) if final and targets is not None else Target(LEAVE) for name in names
        }
        outputs: list[tuple[str, Place]] = []
        late: list[CopyStep | WriteStep] = []
        for name in sorted(wanted, key=lambda n: self._turn(n, wanted[n])):
            place, target = self._places[name], wanted[name]
            slot = self._deliver(name, target, late)
            if slot is not None:
                self._moved[name] = slot
                place = Place(place.spec)
            elif target.space == 0:
                self._on_host(name, "graph output")
            elif known_content(place.spec) and place.register is None:
                self._on_host(name, "")
            if place.entry != name or final:  # what was held before stays held
                outputs.append((name, place))
        self._steps += late
        for name, place in outputs:
            target = wanted[name]
            if target.space == 0 and (target.direct or target.past):
                others = [p for n, p in outputs if n != name]
                continue_into(place, self._places.get(target.past), others, self._steps)
        return outputs

    def _turn(self, name: str, target: Target) -> int:
        """Outputs in fed memory last, and of those the ones that are fed values themselves first."""
        if target.space <= 0 or target.direct:
            return 0
        place = self._places[name]
        slot = place.slots.get(target.space)
        return 1 if place.entry or (slot is not None and slot.root()[0].name) else 2

    def _deliver(self, name: str, target: Target, late: list[CopyStep | WriteStep]) -> Slot | None:
        """The slot that stands for an output's destination; None where a register of the host does, or nothing."""
        place = self._places[name]
        if target.space > 0:
            space = target.space
        elif target.wrapped and place.register is None and not place.entry:
            space = next((s for s in place.slots if s in self._shared), 0)
        else:
            return None
        if target.space > 0 and place.entry and place.entry not in self._slotted:
            self._on_device(name, space, "graph output")
        slot = place.slots.get(space)
        root = movable(slot, self._steps)
        if root is not None and not target.direct:
            past = self._places.get(target.past)
            before = None if past is None else past.slots.get(space)
            root = root if append(root, before, self._steps) is not None else None
        if root is not None:
            root.target = name
            self._lasting.add(root)
            return root
        if target.space <= 0 or place.spec is None:
            return None
        end = Slot(space, place.spec.nbytes)
        end.target = name
        if slot is not None:
            if self._spoilt and slot.root()[0].name:
                slot = self._staged(slot)
            self._lasting.add(slot)
            late.append(CopyStep(slot, end, end.nbytes))
        else:
            register = self._on_host(name, "")
            if place.pending is not None:
                self._sync(place.pending)
            self._lasting |= place.views
            late.append(WriteStep(register, end, name))
            self._copy(name, space, "graph output")
        self._busy.add(space)
        return end

    def _staged(self, slot: Slot) -> Slot:
        """A fed value's content in memory of the plan, as it is now."""
        stage = Slot(slot.space, slot.nbytes)
        self._slots.append(stage)
        for used in (slot, stage):
            used.use(len(self._steps))
        self._steps.append(CopyStep(slot, stage, slot.nbytes))
        return stage


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


def continue_into(place: Place, past: Place | None, others: Iterable[Place], steps: Sequence[Step]) -> None:
    """Let the host's unit that makes a cache write it to the caller's memory, if it can.

    Args:
        place: of the output.
        past: of the fed value that lies in the same memory, if one does: it is spoilt, so nobody else may read it.
        others: places of the graph's other outputs.
        steps: all steps of the plan.
    """
    step = next((s for s in steps if isinstance(s, HostStep) and place.register in s.outs), None)
    if step is None or place.register is None or not isinstance(step.unit, ContinuingUnit):
        return
    position = step.outs.index(place.register)
    source = step.unit.continues.get(position)
    if source is None:
        return
    if past is not None:
        register = past.register
        readers = sum(s.ins.count(register) for s in steps if isinstance(s, HostStep) and register is not None)
        written = any(s.register == register for s in steps if isinstance(s, (WriteStep, StoreStep)))
        handed_on = any(o.register == register or o.entry == past.entry for o in others)
        if step.ins[source] != register or readers != 1 or written or handed_on or past.slots:
            return
    step.into |= {position}
