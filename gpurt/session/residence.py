"""Which memory a run's inputs are used in, and which its outputs are written to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gpurt import logs
from gpurt.errors import InvalidArgument
from gpurt.loader import GraphInput
from gpurt.plan.destination import LEAVE, Destination, Target, wrappable
from gpurt.plan.values import DeviceTensor, Held, Run
from gpurt.provider import DeviceMemory
from gpurt.session.feeds import Elsewhere, check_fit
from gpurt.session.site import Site
from gpurt.spec import Spec
from gpurt.tensor import Tensor
from gpurt.tensor.foreign import to_host
from gpurt.tensor.storage import Storage, borrowed

logger = logs.get(__name__)


class Residence:
    """What a session knows of the caller's memory.

    Attributes:
        copies: for explain(): inputs, by name, that came from memory no provider of the session can use.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self.copies: dict[str, dict[str, Any]] = {}

    def memories(self) -> dict[int, DeviceMemory]:
        """The session's device memories by number of their space."""
        return {space: m for space, m in enumerate(self._site.memories) if m is not None}

    def space(self, device: str) -> int:
        """The memory space of a device by name: ``"cpu"``, ``"opencl"``, ``"opencl:0"``.

        Raises InvalidArgument where the session does not use it.
        """
        full = device if ":" in device else f"{device}:0"
        for space, name in enumerate(self._site.devices):
            if device == name or (space and full == name) or (not space and full == "cpu:0"):
                return space
        raise InvalidArgument(
            f"the session does not use the device {device!r}",
            remedy=f"Use one of {', '.join(self._site.devices)}, or name it in providers",
        )

    def reached(self, storage: Storage) -> int:
        """The space whose kernels can use some memory; 0 if there is none."""
        for space, memory in self.memories().items():
            if storage.memory is memory:
                return space
            if storage.memory.device == memory.device and memory.reaches(storage.ref):
                return space
        return 0

    def held(self, info: GraphInput, value: Any, run: Run) -> Held:
        """A checked feed as the run holds it: on its device where a provider of the session can use it there."""
        if isinstance(value, Tensor) and value.storage is not None:
            space = self.reached(value.storage)
            if space:
                return _on(space, Spec(value.dtype, value.shape), value.storage.align(run.stream(space), run.make_room))
            if not value.storage.memory.shares_host:
                self._report(info.name, value.device, value.nbytes)
            return Held(value.seen())
        if isinstance(value, Elsewhere):
            found = self.taken(value, run)
            if found is not None:
                space, tensor, _ = found
                check_fit(f"input {info.name!r}", info, tensor.dtype, tensor.shape)
                assert tensor.storage is not None, "what was taken is on a device"
                return _on(space, Spec(tensor.dtype, tensor.shape), tensor.storage)
            array = np.asarray(to_host(value.value), order="C")
            check_fit(f"input {info.name!r}", info, array.dtype, array.shape)
            self._report(info.name, value.device, array.nbytes)
            return Held(array)
        return Held(value)

    def taken(self, value: Elsewhere, run: Run) -> tuple[int, Tensor, bool] | None:
        """Another library's array in a space of the session, and whether it had to be copied there; None: elsewhere."""
        for space, memory in self.memories().items():
            found = memory.take(value.value, run.stream(space))
            if found is not None:
                storage = borrowed(memory, found)
                usable = storage.align(run.stream(space), run.make_room)
                tensor = Tensor(found.dtype, found.shape, storage=usable)
                return space, tensor, found.copied or usable is not storage
        return None

    def _report(self, name: str, device: str, nbytes: int) -> None:
        if name not in self.copies:
            logger.info("input %s is read from %s through the host: %d bytes a run", name, device, nbytes)
        cause = "fed from memory that no provider of the session can use"
        self.copies[name] = {"value": name, "from": device, "to": "cpu", "bytes": nbytes, "cause": cause}

    def destination(self, space: int, tensor: Tensor | None, env: Mapping[str, Held]) -> Destination:
        """Where an output goes: to new memory of a space, or into the caller's tensor, which may be one that is fed."""
        if tensor is None:
            return Destination(Target(space))
        spec = Spec(tensor.dtype, tensor.shape)
        if tensor.storage is None:
            array = tensor.numpy()
            fed = {n: h.host for n, h in env.items() if isinstance(h.host, np.ndarray)}
            near = {n: a for n, a in fed.items() if np.may_share_memory(array, a)}
            past = next((n for n, a in near.items() if len(near) == 1 and _same(array, a)), "")
            wrapped = not near and wrappable(array, self.memories())
            return Destination(Target(0, not near, wrapped, past), spec, array=array)
        storage = tensor.storage
        leases = {n: h.tensors[space].lease for n, h in env.items() if space in h.tensors}
        close = {n: s for n, s in leases.items() if isinstance(s, Storage) and s.overlaps(storage)}
        past = next((n for n, s in close.items() if len(close) == 1 and s.same(storage)), "")
        return Destination(Target(space, storage.aligned and not close, past=past), spec, storage=storage)

    def complete_all(
        self, held: Mapping[str, Held], destinations: Mapping[str, Destination], run: Run
    ) -> dict[str, Any]:
        """All outputs where they were wanted; see complete. What is not asked for is left out."""
        wanted = {n: d for n, d in destinations.items() if d.target.space != LEAVE}
        if not all(d.target.direct for d in wanted.values()):
            for space in self.memories():
                run.synchronize(space)  # queues may still read what was fed, and is written now
        for name in wanted:
            value = held[name].host
            arrays = [d.array for n, d in wanted.items() if n != name and d.array is not None]
            if isinstance(value, np.ndarray) and any(np.may_share_memory(value, a) for a in arrays):
                held[name].host = value.copy()  # before its memory is written for another output
        return {name: self.complete(name, held[name], d, run) for name, d in wanted.items()}

    def complete(self, name: str, held: Held, destination: Destination, run: Run) -> Any:
        """The output where it was wanted: a Tensor, or what is no tensor as it is; copied there if it is not yet.

        Raises InvalidArgument where it does not fit.
        """
        space = destination.target.space
        if space and space in held.tensors and held.tensors[space].lease is destination.storage:
            assert held.spec is not None, "what is on a device has a shape"
            return Tensor(held.spec.dtype, held.spec.shape, storage=destination.storage)
        value = held.on_host(run)
        if not isinstance(value, np.ndarray):
            if space or destination.array is not None:
                raise InvalidArgument(f"output {name!r} is no tensor", remedy='Bind it to "cpu", without memory')
            return value
        spec = Spec(value.dtype, value.shape)
        destination.check(name, spec)
        if space == 0:
            if destination.array is not None and value is not destination.array:
                np.copyto(destination.array, value)
                value = destination.array
            return Tensor(spec.dtype, spec.shape, array=value)
        if spec.dtype.kind == "O":
            raise InvalidArgument(f"output {name!r} is strings", remedy='Bind it to "cpu"')
        storage = destination.storage or Storage.new(run.memory(space), spec.nbytes, run.make_room)
        if spec.nbytes:
            storage.write(np.ascontiguousarray(value))
        return Tensor(spec.dtype, spec.shape, storage=storage)


def check_apart(destinations: Iterable[tuple[str, Destination]]) -> None:
    """Raise InvalidArgument if two outputs are bound to memory that they would share."""
    seen: list[tuple[str, Destination]] = []
    for name, d in destinations:
        for other, e in seen:
            device = d.storage is not None and e.storage is not None and d.storage.overlaps(e.storage)
            host = d.array is not None and e.array is not None and np.may_share_memory(d.array, e.array)
            if device or host:
                raise InvalidArgument(
                    f"outputs {other!r} and {name!r} are bound to the same memory", remedy="Give each its own"
                )
        seen.append((name, d))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.ctypes.data == b.ctypes.data and a.shape == b.shape and a.dtype == b.dtype


def _on(space: int, spec: Spec, storage: Storage) -> Held:
    held = Held(spec=spec)
    held.tensors[space] = DeviceTensor(storage.ref, storage)
    return held
