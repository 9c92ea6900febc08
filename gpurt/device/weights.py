"""Constants in device memory: stored once per content and device, shared by sessions, freed when the last one goes."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable

import numpy as np

from gpurt.device.driver import Driver
from gpurt.errors import OutOfMemory
from gpurt.memory.arena import RegionArena
from gpurt.provider import BufferRef

_ALIGN = 64


class _Stored:
    """Owns one allocation; sessions hold it, the store only knows it weakly."""

    def __init__(self, driver: Driver, array: np.ndarray) -> None:
        nbytes = max(array.nbytes, 1)
        buffer = driver.alloc(-(-nbytes // _ALIGN) * _ALIGN)
        self.ref = BufferRef(buffer, 0, nbytes)
        weakref.finalize(self, driver.free, buffer)
        if array.nbytes:
            stream = driver.stream()
            driver.write(self.ref, array, stream)
            driver.synchronize(stream)


class _Hold:
    """A session's hold on an allocation, which counts against the limit of its arena."""

    def __init__(self, stored: _Stored, arena: RegionArena, held: list[int]) -> None:
        self.stored = stored
        held[0] += stored.ref.nbytes
        weakref.finalize(self, _let_go, arena, held, stored.ref.nbytes)


def _let_go(arena: RegionArena, held: list[int], nbytes: int) -> None:
    held[0] -= nbytes
    arena.reserve(-nbytes)


class WeightStore:
    """The constants of one device, by content."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._by_content: weakref.WeakValueDictionary[bytes, _Stored] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, array: np.ndarray, key: bytes) -> _Stored:
        """The allocation with this content, made on first use. Raises MemoryError when the device has no room."""
        with self._lock:
            stored = self._by_content.get(key)
            if stored is None:
                stored = _Stored(self._driver, array)
                self._by_content[key] = stored
            return stored


_STORES: weakref.WeakKeyDictionary[Driver, WeightStore] = weakref.WeakKeyDictionary()


def store_for(driver: Driver) -> WeightStore:
    """The process's one store for a device."""
    return _STORES.setdefault(driver, WeightStore(driver))


class Constants:
    """A session's constants: hashes each array once; plans keep alive what they use.

    Their bytes count against the limit of the arena beside which they lie.
    """

    def __init__(self, driver: Driver, arena: RegionArena) -> None:
        self._store = store_for(driver)
        self._arena = arena
        self._bytes = [0]
        self._held: weakref.WeakValueDictionary[bytes, _Hold] = weakref.WeakValueDictionary()
        self._keys: dict[int, tuple[weakref.ref[np.ndarray], bytes]] = {}
        self._derived: dict[tuple[bytes, str], np.ndarray] = {}
        self._lock = threading.Lock()

    def key(self, array: np.ndarray) -> bytes:
        """Content key: dtype, shape and bytes."""
        known = self._keys.get(id(array))
        if known is not None and known[0]() is array:
            return known[1]
        digest = hashlib.sha256()  # processors have instructions for it
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b"")
        key = digest.digest()[:16]
        if array.nbytes >= 4096:  # hashing small arrays again is cheaper than keeping them
            self._know(array, key)
        return key

    def _know(self, array: np.ndarray, key: bytes) -> None:
        where, keys = id(array), self._keys
        keys[where] = (weakref.ref(array, lambda _: keys.pop(where, None)), key)

    def get(self, array: np.ndarray) -> BufferRef:
        """Device memory with this content, for as long as the reference is kept. Raises OutOfMemory."""
        key = self.key(array)
        held = self._held.get(key) or self._hold(array, key)
        ref = held.stored.ref
        return BufferRef(ref.buffer, ref.offset, ref.nbytes, held)

    def _hold(self, array: np.ndarray, key: bytes) -> _Hold:
        with self._lock:
            held = self._held.get(key)
            if held is None:
                nbytes = max(array.nbytes, 1)
                self._arena.reserve(nbytes)
                try:
                    stored = self._store.get(np.ascontiguousarray(array), key)
                except MemoryError as e:
                    self._arena.reserve(-nbytes)
                    raise OutOfMemory(
                        f"the device has no room for a constant of {array.nbytes} bytes beside {self._bytes[0]}",
                        remedy="Set memory_limit, or put another provider behind this one",
                    ) from e
                held = self._held[key] = _Hold(stored, self._arena, self._bytes)
            return held

    def derive(self, array: np.ndarray, tag: str, make: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """``make(array)``, computed once per content and tag."""
        key = (self.key(array), tag)
        made = self._derived.get(key)
        if made is None:
            made = self._derived[key] = np.ascontiguousarray(make(array))
            # What it was made of and how say as much as its bytes would, and those are many.
            self._know(made, hashlib.blake2b(key[0] + tag.encode(), digest_size=16).digest())
        return made

    def nbytes(self) -> int:
        """Bytes of the constants this session holds on the device."""
        return self._bytes[0]
