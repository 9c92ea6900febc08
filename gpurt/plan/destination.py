"""Where the outputs of a run are wanted: on the host or on a device, in new memory or in the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt.plan.values import Run, aligned_empty
from gpurt.provider import BufferRef, DeviceMemory
from gpurt.spec import Spec
from gpurt.tensor.storage import ALIGNMENT, Storage

LEAVE = -1
"""The space of an output that nobody asked for."""


class Target(NamedTuple):
    """What the planner has to know of a destination; it is part of a plan's key, so it is hashed at each run.

    Attributes:
        space: memory space; 0 is the host, LEAVE wherever the value happens to be.
        direct: whether it may be written while the model runs. Otherwise the value is copied there at the end.
        wrapped: whether, on the host, devices that share the host's memory may write there.
        past: the fed value whose memory it is, where it is exactly that and nothing else that was fed.
    """

    space: int
    direct: bool = True
    wrapped: bool = False
    past: str = ""


@dataclass(slots=True, eq=False)
class Destination:
    """One output of one run. New memory is made where the caller brings none.

    Attributes:
        target: for the planner.
        spec: dtype and shape of the caller's memory; None where it is new.
        array: memory on the host.
        storage: memory on a device.
    """

    target: Target
    spec: Spec | None = None
    array: np.ndarray | None = None
    storage: Storage | None = None
    _wrapped: BufferRef | None = None

    def check(self, name: str, spec: Spec) -> None:
        """Raise InvalidArgument unless a value fits into the caller's memory."""
        if self.spec is None or (self.spec.dtype == spec.dtype and self.spec.shape == spec.shape):
            return
        raise InvalidArgument(
            f"the memory bound to output {name!r} is {_text(self.spec)}, the value is {_text(spec)}",
            remedy="Bind memory of that type and shape, or none",
        )

    def place(self, name: str, spec: Spec, space: int, run: Run) -> BufferRef:
        """The memory that the value is to be written to, in a space. Raises InvalidArgument or OutOfMemory."""
        self.check(name, spec)
        memory = run.memory(space)
        if self.target.space == 0:
            if self.array is None:
                self.array = aligned_empty(spec)
            if self._wrapped is None:
                self._wrapped = memory.wrap(self.array)
            return self._wrapped
        if self.storage is None:
            self.storage = Storage.new(memory, spec.nbytes, run.make_room)
            run.usage.allocated(space, 1)
        return self.storage.ref


def wrappable(array: np.ndarray, memories: Mapping[int, DeviceMemory]) -> bool:
    """Whether a device that computes in the host's memory can write into an array."""
    dense = array.flags.c_contiguous and array.size > 0 and array.ctypes.data % ALIGNMENT == 0
    return dense and any(m.shares_host for m in memories.values())


def _text(spec: Spec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"
