"""Blocks of device memory that live as long as somebody knows of them, whichever session they came from."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from gpurt import registry
from gpurt.errors import EPFail, InvalidArgument, OutOfMemory
from gpurt.provider import HOST, Borrowed, BufferRef, DeviceMemory, Provider, Unavailable

ALIGNMENT = 64
"""Bytes; kernels load vectors, so they are given no memory that begins elsewhere."""


class Storage:
    """Device memory of a tensor, with the provider that reads and writes it.

    Attributes:
        memory: the provider; it is kept alive.
        ref: where.
        owner: what keeps the memory alive where it is not the arena's.
    """

    __slots__ = ("__weakref__", "memory", "owner", "ref")

    def __init__(self, memory: DeviceMemory, ref: BufferRef, owner: Any = None) -> None:
        self.memory, self.ref, self.owner = memory, ref, owner

    @classmethod
    def new(cls, memory: DeviceMemory, nbytes: int, relieve: Callable[[], None] | None = None) -> Storage:
        """A block of the arena, given back with the storage.

        Raises OutOfMemory, after `relieve`, which may free what nobody needs, has been tried.
        """
        try:
            block = memory.arena.alloc(nbytes)
        except OutOfMemory:
            if relieve is None:
                raise
            relieve()
            block = memory.arena.alloc(nbytes)
        storage = cls(memory, BufferRef(block.buffer, block.offset, nbytes))
        weakref.finalize(storage, memory.arena.free, block).atexit = False
        return storage

    @property
    def aligned(self) -> bool:
        """Whether kernels may be pointed at it."""
        base = self.ref.buffer if isinstance(self.ref.buffer, int) else 0
        return (base + self.ref.offset) % ALIGNMENT == 0

    def overlaps(self, other: Storage) -> bool:
        """Whether they share a byte."""
        a, b = self.ref, other.ref
        if isinstance(a.buffer, int) and isinstance(b.buffer, int):
            start, end = a.buffer + a.offset, b.buffer + b.offset
            return start < end + b.nbytes and end < start + a.nbytes
        if not same_buffer(a.buffer, b.buffer):
            return False
        return a.offset < b.offset + b.nbytes and b.offset < a.offset + a.nbytes

    def same(self, other: Storage) -> bool:
        """Whether they are the same bytes."""
        return self.ref.nbytes == other.ref.nbytes and same_place(self.ref, other.ref)

    def write(self, array: np.ndarray) -> None:
        """Copy a contiguous host array in and wait."""
        stream = self.memory.stream()
        kept = self.memory.write(self.ref, array, stream)
        self.memory.synchronize(stream)
        del kept

    def read(self, array: np.ndarray) -> None:
        """Copy into a contiguous host array and wait."""
        stream = self.memory.stream()
        kept = self.memory.read(array, self.ref, stream)
        self.memory.synchronize(stream)
        del kept

    def align(self, stream: Any, relieve: Callable[[], None] | None = None) -> Storage:
        """The same content where kernels may be pointed at it: itself, or a copy that is put on the stream."""
        if self.aligned:
            return self
        moved = Storage.new(self.memory, self.ref.nbytes, relieve)
        self.memory.copy(moved.ref, self.ref, self.ref.nbytes, stream)
        moved.owner = self  # the copy may not have been made yet
        return moved


def borrowed(memory: DeviceMemory, value: Borrowed) -> Storage:
    """Another library's memory as storage."""
    return Storage(memory, value.ref, value.owner)


def same_place(a: BufferRef | None, b: BufferRef | None) -> bool:
    """Whether two references begin at the same byte. Buffers are whatever their driver has, arrays included."""
    return a is not None and b is not None and a.offset == b.offset and same_buffer(a.buffer, b.buffer)


def same_buffer(a: Any, b: Any) -> bool:
    """Whether two of a driver's buffers are one."""
    return a is b or (type(a) is type(b) and not isinstance(a, (np.ndarray, bytearray)) and bool(a == b))


_memories: weakref.WeakValueDictionary[str, Provider] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def memory_of(device: str) -> DeviceMemory | None:
    """The memory of a device (``"opencl:0"``, ``"cuda"``) that tensors made without a session share; None for the host.

    Raises:
        InvalidArgument: there is no such provider.
        EPFail: the device cannot be used here; says why.
    """
    if device == "cpu":
        return None
    with _lock:
        provider = _memories.get(device)
        if provider is None:
            (request,) = registry.parse([device], None)
            try:
                provider = registry.open_provider(request)
            except Unavailable as e:
                raise EPFail(f"cannot be used: {e.reason}", provider=device, remedy=e.remedy) from e
            # "opencl" and "opencl:0" are one device, and one arena.
            provider = _memories.setdefault(provider.device, provider)
            _memories[device] = provider
    if provider.memory_space == HOST:
        return None
    if not isinstance(provider, DeviceMemory):
        raise InvalidArgument(f"the device {device!r} has no memory of its own", remedy='Use "cpu"')
    return provider
