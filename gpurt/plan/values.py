"""Values while a model runs: on the host, on devices, or both; and the run that owns queues and deferred frees."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gpurt.errors import OutOfMemory, Terminated
from gpurt.plan.reserve import Reserve
from gpurt.plan.usage import Usage
from gpurt.provider import BufferRef, DeviceMemory
from gpurt.run_options import RunOptions
from gpurt.spec import Spec, aligned

if TYPE_CHECKING:
    from gpurt.plan.parallel import Threads
    from gpurt.plan.plan import Plan
    from gpurt.plan.replay import Variant
    from gpurt.plan.state import PlanState
    from gpurt.plan.trace import Trace

BRANCH: Final = 1 << 16
"""Queues for branches have the space and so many times their number as key; those for copies the space's negative."""

MISSING: Final = object()
"""Marks a value that is not on the host; None is a legal value (an absent optional)."""


class Lease:
    """Keeps memory from being used again: when the last tensor that lies in it goes, the run takes it back."""

    __slots__ = ("__weakref__", "_give_back")

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def release(self) -> None:
        """Give the memory back now, whoever still knows of it."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()

    def __del__(self) -> None:
        self.release()


class DeviceTensor:
    """A tensor in the memory of one space, with the lease, or whatever else keeps that memory its own."""

    __slots__ = ("lease", "ref")

    def __init__(self, ref: BufferRef, lease: object) -> None:
        self.ref = ref
        self.lease = lease


class Run:
    """One call of session.run: its queues, and what must stay untouched until they are empty.

    Attributes:
        options: the caller's, or None.
        variant: how plans are replayed where it is not the plain way: step by step, or traced.
        trace: what a traced run writes down.
        fed: what the caller has lent, which must stay until the queues are empty.
    """

    def __init__(
        self,
        memories: Sequence[DeviceMemory | None],
        streams: dict[int, Any],
        relieve: Callable[[], None],
        options: RunOptions | None = None,
        variant: Variant | None = None,
        trace: Trace | None = None,
        reserve: Reserve | None = None,
    ) -> None:
        self.memories = memories
        self.options = options
        self.variant = variant
        self.trace = trace
        self.fed: list[Any] = []
        self.grew = False  # whether a plan took memory that it did not have before
        self.relieve = relieve  # frees device memory that nobody needs now
        self._streams = streams
        self._pace: dict[tuple[int, int], tuple[int, list[Callable[[], None]]]] = {}
        self._leases: list[weakref.ref[Lease]] = []
        self._sweep = 64  # number of leases at which those that have gone are forgotten
        self._after: list[Callable[[], None]] = []
        self._keep: list[Any] = []
        self.finished = False
        self._reserve = Reserve() if reserve is None else reserve
        self.idle: dict[Plan, list[PlanState]] = {}  # states that nobody reads any more, for this run's next turns
        self.usage = Usage()
        self.threads: Threads | None = None  # for the lanes of plans that have several

    def memory(self, space: int) -> DeviceMemory:
        """The owner of a memory space."""
        memory = self.memories[space]
        assert memory is not None, "the host has no device memory"
        return memory

    def stream(self, space: int, queue: int = 0) -> Any:
        """This run's queue on a space, or one of those for branches beside it, from 1 on."""
        key = space + BRANCH * queue
        stream = self._streams.get(key)
        if stream is None:
            memory = self.memory(space)
            stream = self._streams[key] = memory.branch_stream(queue) if queue else memory.stream()
        return stream

    def copies(self, space: int) -> Any:
        """This run's queue for copies to a space that overlap with its work."""
        stream = self._streams.get(-space)
        if stream is None:
            stream = self._streams[-space] = self.memory(space).copy_stream()
        return stream

    def synchronize(self, space: int) -> None:
        """Wait for this run's queue on a space."""
        if space in self._streams:
            self.memory(space).synchronize(self._streams[space])
            if len(self._streams) == 1:
                self._keep.clear()

    def span(self, category: str, name: str, args: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Something that a traced run writes down."""
        return nullcontext() if self.trace is None else self.trace.span(category, name, args)

    def check(self) -> None:
        """Raise Terminated if the caller has asked for the run's end."""
        if self.options is not None and self.options.terminate:
            raise Terminated(
                "the run was ended by RunOptions.terminate",
                remedy="Set it to False before these options are used again",
            )

    def pace(self, space: int, queue: int, ahead: int) -> None:
        """Called after each launch: every `ahead` launches, wait for the device to have done those before the last."""
        count, marks = self._pace.setdefault((space, queue), (0, []))
        if count + 1 < ahead:
            self._pace[space, queue] = (count + 1, marks)
            return
        marks.append(self.memory(space).mark(self.stream(space, queue)))
        if len(marks) > 1:
            marks.pop(0)()
        self._pace[space, queue] = (0, marks)

    def lease(self, give_back: Callable[[], None]) -> Lease:
        """A lease that this run's failure ends, too; give_back is called at once, when queues may still be at work."""
        made = Lease(give_back)
        self._leases.append(weakref.ref(made))
        if len(self._leases) >= self._sweep:  # a loop makes some in every turn
            self._leases = [known for known in self._leases if known() is not None]
            self._sweep = 2 * len(self._leases) + 64
        return made

    def abandon(self) -> None:
        """Give all leased memory back: the run has failed, and only the error's traceback still knows of it."""
        for known in self._leases:
            lease = known()
            if lease is not None:
                lease.release()

    def keep(self, value: Any) -> None:
        """Keep a host array alive until the queues are empty: they may still read it."""
        if self._streams:
            self._keep.append(value)

    def block(self, space: int, nbytes: int) -> BufferRef:
        """Memory for a value that no plan has a place for."""
        ref = self._reserve.take(space, nbytes)
        if ref is None:
            arena = self.memory(space).arena
            try:
                ref = arena.alloc(nbytes)
            except OutOfMemory:
                self.make_room()
                ref = arena.alloc(nbytes)
            self.usage.allocated(space, 1)
        return ref

    def give_back(self, space: int, nbytes: int, ref: BufferRef) -> None:
        """Take a block back, for further runs if this one still goes on; at once if it has ended."""
        arena, reserve = self.memory(space).arena, self._reserve
        if self.finished:
            arena.free(ref)
        else:
            self._after.append(lambda: reserve.keep(space, nbytes, arena, ref))

    def after(self, action: Callable[[], None]) -> None:
        """Do something once all queues are empty: at the end of the run, or now if it has ended."""
        if self.finished:
            action()
        else:
            self._after.append(action)

    def make_room(self) -> None:
        """Wait, and free all device memory that nobody needs now: what this run has done with, and what others hold."""
        self._wait()
        self._drain()
        self.relieve()

    def finish(self) -> None:
        """Wait for all queues, then give back what was deferred."""
        self._wait()
        self.fed.clear()
        self.finished = True
        self._drain()

    def _wait(self) -> None:
        for space, stream in list(self._streams.items()):
            self.memory(abs(space) % BRANCH).synchronize(stream)
        self._keep.clear()

    def _drain(self) -> None:
        while self.idle:
            plan, states = self.idle.popitem()
            for state in states:
                plan.pool(state)
        while self._after:
            self._after.pop()()


class Held:
    """A value between steps of a run."""

    __slots__ = ("host", "spec", "tensors")

    def __init__(self, host: Any = MISSING, spec: Spec | None = None) -> None:
        self.host = host
        self.tensors: dict[int, DeviceTensor] = {}
        self.spec = Spec(host.dtype, host.shape) if spec is None and isinstance(host, np.ndarray) else spec

    def on_host(self, run: Run) -> Any:
        """The value on the host; read from a device once."""
        if self.host is MISSING:
            space, tensor = next(iter(self.tensors.items()))
            assert self.spec is not None
            array = aligned_empty(self.spec)
            run.memory(space).read(array, tensor.ref, run.stream(space))
            run.synchronize(space)
            self.host = array
        return self.host

    def on_device(self, space: int, run: Run) -> BufferRef:
        """The value in a space; copied there once, into memory that lives as long as this value."""
        tensor = self.tensors.get(space)
        if tensor is None:
            memory = run.memory(space)
            array = np.ascontiguousarray(self.on_host(run))
            nbytes = array.nbytes
            ref = run.block(space, nbytes)
            if memory.shares_host:
                memory.view(ref)[: array.nbytes] = array.reshape(-1).view(np.uint8)
            else:
                run.keep((array, memory.write(ref, array, run.stream(space))))
            lease = run.lease(lambda: run.give_back(space, nbytes, ref))
            tensor = self.tensors[space] = DeviceTensor(ref, lease)
        return tensor.ref


def aligned_empty(spec: Spec) -> np.ndarray:
    """A new uninitialised array at a 64-byte boundary."""
    return aligned(spec.nbytes).view(spec.dtype).reshape(spec.shape)
