"""Units: what a provider compiles nodes to, and how those of a device are planned and bound to memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gpurt.graph.view import NodeView
from gpurt.spec import Spec
from gpurt.symbolic import Size


class Refused(Exception):
    """Raised by DeviceUnit.plan when the unit cannot run with these shapes; the reason is kept for explain()."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class BufferRef:
    """A range of device memory: the driver's buffer, and offset and length in bytes.

    Whoever keeps the reference keeps `owner`, if there is one, and with it the memory.
    """

    buffer: Any
    offset: int
    nbytes: int
    owner: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """What a unit's plan touches: an input or output by position, a workspace by size, or a constant by content."""

    kind: str  # "in", "out", "temp" or "const"
    index: int = 0
    nbytes: int = 0
    array: np.ndarray | None = None


Step = Callable[[Any], Any]
"""A bound launch: called with the stream it is to run on; it must not block. What it returns is for DeviceTimer."""


class Bound(Protocol):
    """A unit's plan over actual memory; it belongs to one run at a time."""

    @property
    def steps(self) -> Sequence[Step]:
        """What to call, in order, with the stream."""

    def rebind(self, operand: int, ref: BufferRef) -> None:
        """Point one operand (position in UnitPlan.operands) at other memory."""

    def resize(self, values: Sequence[int]) -> None:
        """Optional: set what depends on sizes again; one number for each of UnitPlan.sizes."""


@dataclass(slots=True)
class UnitPlan:
    """A unit for concrete shapes.

    Attributes:
        outputs: specs of the unit's outputs.
        operands: what bind wants memory for, in this order. Inputs that no kernel reads do not appear.
        aliases: output position -> (input position, byte offset): the output is the input's memory.
        inplace: output position -> input positions whose memory it may take if nobody reads them later.
        carried: output position -> (input position, numbers of steps that only copy that input there): they are left
            out where the output takes the input's memory.
        bind: memory for the operands -> bound steps.
        kernels: names of what is launched, for explain and traces.
        sizes: symbolic sizes (gpurt.symbolic.Size) that its launches depend on; then what bind returns has resize.
    """

    outputs: Sequence[Spec]
    operands: Sequence[Operand] = ()
    aliases: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    inplace: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    bind: Callable[[Sequence[BufferRef]], Bound] | None = None
    kernels: Sequence[str] = ()
    sizes: Sequence[Size] = ()
    carried: Mapping[int, tuple[int, frozenset[int]]] = field(default_factory=dict)


class Unit(Protocol):
    """What compile returns: one or several nodes that run as one."""

    @property
    def nodes(self) -> Sequence[NodeView]:
        """In topological order."""

    @property
    def inputs(self) -> Sequence[str | None]:
        """Names of the values read from outside; None where an optional input is left out."""

    @property
    def outputs(self) -> Sequence[str | None]:
        """Names of the values yielded; None where an optional output is not wanted."""


class HostUnit(Unit, Protocol):
    """A unit over host values: NumPy arrays, lists for sequences, None for absent optionals."""

    def call(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Compute the outputs. Inputs are never changed; an output may be a view of an input."""


@runtime_checkable
class ContinuingUnit(Protocol):
    """Optional for a HostUnit: outputs that continue an input, a cache, and can be written to given memory.

    Attributes:
        continues: output position -> position of the input that it continues.
    """

    continues: Mapping[int, int]

    def call_into(self, inputs: Sequence[Any], arrays: Sequence[Any]) -> Sequence[Any]:
        """As call. Arrays, by output position, are None or memory of the caller's for that output.

        Where one has the output's dtype and shape it is written and returned. It may be the memory of the input that
        the output continues, and then holds what it held but for what is new; an error leaves it as it was.
        """


class DeviceUnit(Unit, Protocol):
    """A unit over device memory."""

    @property
    def host_inputs(self) -> frozenset[int]:
        """Positions of inputs whose content must be known when the unit is planned (axes, pads, sizes)."""

    symbolic: bool
    """Optional: plan takes specs whose shapes have symbolic sizes (gpurt.symbolic.Size) and keeps no size but in
    UnitPlan's own attributes. A unit that does not say so is given plain numbers, and its plan serves these alone."""

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """Plan for these inputs.

        Raises:
            Refused: not with these shapes; the node goes to the next provider.
            gpurt.spec.Unknown: an output's shape depends on content that is not known yet.
        """
