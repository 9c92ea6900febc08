"""Where a plan's values are: registers of the host and slots of devices, and the steps that bring them there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpurt.plan.steps import Place, ReadStep, Slot, Step, StoreStep, SyncStep, ViewStep, WriteStep
from gpurt.spec import SizedSpec
from gpurt.symbolic import plain


class Places:
    """The part of a Builder that is about copies.

    Args:
        devices: names of the spaces, for notes of copies.
        shared: spaces whose devices compute in the host's memory.
        slotted: entry values copied into slots of the plan, instead of memory of their own.

    Attributes:
        _busy: spaces whose queue may still work for this plan.
        _lasting: slots whose memory is in use until the run's end.
        _spoilt: whether an output is written to a fed value's memory on a device.
    """

    def __init__(self, devices: Sequence[str], shared: frozenset[int], slotted: frozenset[str]) -> None:
        self._devices, self._shared, self._slotted = devices, shared, slotted
        self._steps: list[Step] = []
        self._slots: list[Slot] = []
        self._places: dict[str, Place] = {}
        self._registers = 0
        self._preset: list[tuple[int, Any]] = []
        self._entries: list[tuple[str, int]] = []
        self._copies: list[dict[str, Any]] = []
        self._lasting: set[Slot] = set()
        self._busy: set[int] = set()
        self._spoilt = False

    def _register(self) -> int:
        self._registers += 1
        return self._registers - 1

    def _on_host(self, name: str, cause: str) -> int:
        """Register that holds a value; emits the read, or takes the held or constant value in.

        Without a cause the host is only on the way to another device.
        """
        place = self._places[name]
        if place.register is None:
            place.register = self._register()
            if place.entry:
                self._entries.append((place.entry, place.register))
            elif place.slots and (isinstance(place.spec, SizedSpec) or place.spec is None or place.spec.const is None):
                space, slot = next(iter(place.slots.items()))
                assert place.spec is not None, "a device value has a shape"
                slot.use(len(self._steps))
                # A view would be looked at too late if its memory is a fed value's that an output is written to.
                if space in self._shared and not (self._spoilt and slot.root()[0].name):
                    self._steps.append(ViewStep(slot, place.register, place.spec, name))
                    place.views = frozenset((slot,))
                else:
                    self._steps.append(ReadStep(slot, place.register, place.spec, name))
                place.pending = space
            else:
                assert place.spec is not None, f"{name} is nowhere"
                content = place.spec if isinstance(place.spec, SizedSpec) else place.spec.const
                self._preset.append((place.register, content))
        if cause and place.slots:
            self._copy(name, 0, cause)
        return place.register

    def _on_device(self, name: str, space: int, cause: str) -> Slot:
        """Slot that holds a value in a space; emits the copy if it is elsewhere."""
        place = self._places[name]
        slot = place.slots.get(space)
        if slot is not None:
            return slot
        spec = place.spec
        assert spec is not None, f"{name} has no shape"
        if not isinstance(spec, SizedSpec) and spec.const is not None:
            slot = Slot(space, spec.nbytes, bound=spec.const)
        elif place.entry and place.entry not in self._slotted:
            slot = Slot(space, spec.nbytes, name=place.entry)
        else:
            register = self._on_host(name, "")
            if place.pending is not None:
                self._sync(place.pending)
            slot = Slot(space, spec.nbytes)
            self._slots.append(slot)
            for used in (slot, *place.views):
                used.use(len(self._steps))
            if space in self._shared and space not in self._busy:
                self._steps.append(StoreStep(register, slot, name))
            else:
                self._steps.append(WriteStep(register, slot, name))
                self._busy.add(space)
                self._lasting |= place.views  # the queue reads them some time before the run ends
            self._copy(name, space, cause)
        place.slots[space] = slot
        return slot

    def _sync(self, space: int) -> None:
        self._steps.append(SyncStep(space))
        self._busy.discard(space)
        for place in self._places.values():
            if place.pending == space:
                place.pending = None

    def _copy(self, name: str, target: int, cause: str) -> None:
        """Note a copy from where a value was produced, once for each target."""
        place = self._places[name]
        if target == place.home or target in place.copied or place.spec is None:
            return
        if {place.home, target} <= {0, *self._shared}:
            return  # one memory
        place.copied |= {target}
        source, to = self._devices[place.home], self._devices[target]
        self._copies.append(
            {"value": name, "from": source, "to": to, "bytes": plain(place.spec.nbytes), "cause": cause}
        )
