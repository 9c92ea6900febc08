"""A plan before memory is assigned: steps over registers of the host and slots of memory spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gpurt.provider import DeviceUnit, HostUnit, UnitPlan
from gpurt.spec import Spec

if TYPE_CHECKING:
    from gpurt.plan.lanes import Lanes


class Slot:
    """A range of memory in one space; `root` is the slot it is a part of."""

    __slots__ = ("bound", "first", "last", "name", "nbytes", "parent", "shift", "space", "target")

    def __init__(self, space: int, nbytes: int, *, name: str = "", bound: Any = None) -> None:
        self.space = space
        self.nbytes = nbytes
        self.name = name  # of the value that brings its own memory into the plan; "" for memory the plan assigns
        self.bound = bound  # memory of a constant
        self.target = ""  # the graph output whose destination is this slot's memory
        self.parent: Slot | None = None
        self.shift = 0
        self.first = 1 << 60
        self.last = -1

    def root(self) -> tuple[Slot, int]:
        """The slot that owns the memory, and the offset in it."""
        slot, shift = self, 0
        while slot.parent is not None:
            shift += slot.shift
            slot = slot.parent
        return slot, shift

    def use(self, step: int) -> None:
        """Extend the lifetime to a step."""
        slot, _ = self.root()
        slot.first = min(slot.first, step)
        slot.last = max(slot.last, step)


@dataclass(slots=True)
class HostStep:
    """Call a host unit: registers in, registers out."""

    unit: HostUnit
    ins: Sequence[int]
    outs: Sequence[int]
    into: frozenset[int] = frozenset()  # positions in outs whose registers may begin with the caller's memory
    specs: tuple[Sequence[Spec | None], Sequence[Spec] | None] = ((), None)  # of ins; of outs where they are known
    lane: int = 0


@dataclass(slots=True)
class DeviceStep:
    """Launch a unit's plan over slots, in the order of its operands, but for the launches of `skip`."""

    space: int
    plan: UnitPlan
    slots: Sequence[Slot]
    unit: DeviceUnit
    inputs: Sequence[Spec | None]
    skip: frozenset[int] = frozenset()
    queue: int = 0  # of the space's, on devices where several are at work at once


@dataclass(slots=True)
class WriteStep:
    """Copy a host register into a slot; on the space's queue for copies if it is `beside` the launches."""

    register: int
    slot: Slot
    value: str = ""
    beside: bool = False
    queue: int = 0  # as DeviceStep's


@dataclass(slots=True)
class ReadStep:
    """Copy a slot into a new array in a register; complete after the next SyncStep of the space."""

    slot: Slot
    register: int
    spec: Spec
    value: str = ""


@dataclass(slots=True)
class ViewStep:
    """See a slot of a device that shares the host's memory as an array; right after the next SyncStep of the space."""

    slot: Slot
    register: int
    spec: Spec
    value: str = ""


@dataclass(slots=True)
class StoreStep:
    """Copy a host register into a slot that the host can write, which nothing that is enqueued uses."""

    register: int
    slot: Slot
    value: str = ""


@dataclass(slots=True)
class CopyStep:
    """Copy a value's bytes from a slot into another one of the same space; a template's slots may be larger."""

    source: Slot
    slot: Slot
    nbytes: Any


@dataclass(slots=True)
class WeightStep:
    """Copy a constant into a slot on the space's queue for copies, once what is enqueued on it by now is done."""

    array: np.ndarray
    slot: Slot
    value: str = "a weight"


@dataclass(slots=True)
class AwaitStep:
    """Let what is enqueued on a space from now on wait for its copies so far; the host does not wait."""

    space: int


@dataclass(slots=True)
class HoldStep:
    """Let a space's copies that are enqueued from now on wait for its launches so far; the host does not wait."""

    space: int


@dataclass(slots=True)
class FollowStep:
    """Let one queue of a space wait for what is on another one by now; the host does not wait."""

    space: int
    queue: int
    leader: int


@dataclass(slots=True)
class SyncStep:
    """Wait for the queue of a space."""

    space: int


Step = (
    HostStep
    | DeviceStep
    | WriteStep
    | ReadStep
    | ViewStep
    | StoreStep
    | CopyStep
    | WeightStep
    | AwaitStep
    | HoldStep
    | FollowStep
    | SyncStep
)


@dataclass(slots=True)
class Place:
    """Where a value of the plan is: a register of the host, slots in spaces, or known content."""

    spec: Spec | None
    register: int | None = None
    slots: dict[int, Slot] = field(default_factory=dict)
    pending: int | None = None  # space whose queue must be waited for before the host reads the register
    entry: str = ""  # name of the held value it came from
    home: int = 0  # space it was produced in
    copied: frozenset[int] = frozenset()  # spaces it was copied to, in the words of explain()
    views: frozenset[Slot] = frozenset()  # memory that the register's array may lie in


@dataclass(slots=True)
class Draft:
    """A plan before memory is assigned."""

    end: int
    steps: list[Step]
    slots: list[Slot]
    registers: int
    preset: list[tuple[int, Any]]
    entries: list[tuple[str, int]]
    outputs: list[tuple[str, Place]]
    copies: list[dict[str, Any]]
    targets: dict[str, Slot]  # graph outputs that are written to memory from outside the plan
    lanes: Lanes | None = None  # of a plan whose steps several threads run

    def written(self) -> set[str]:
        """Values that the host has and the plan copies to a device."""
        return {s.value for s in self.steps if isinstance(s, WriteStep | StoreStep)}
