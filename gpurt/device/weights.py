"""Constants in device memory: stored once per content and device, shared by sessions, freed when the last one goes."""

from __future__ import annotations

import hashlib
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import numpy as np

from gpurt.device.driver import Driver, SharingDriver
from gpurt.errors import OutOfMemory
from gpurt.memory.arena import RegionArena
from gpurt.provider import BufferRef
from gpurt.spec import aligned_zeros

_ALIGN: Final = 64

WHOLE: Final = 1 << 16
"""Bytes up to which a mark is made of all of an array."""

_SAMPLES: Final = 64  # of larger ones: so many pieces
_PIECE: Final = 256  # of so many bytes
_KNOWN: Final = 4096  # from so many bytes on it is cheaper to keep a mark than to make it again
_COMPARED: Final = 1 << 20  # bytes that are compared at a time
_ALIKE: Final = 8  # arrays of one mark and different contents that are shared


def blank(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """A new array of zeros at a 64-byte boundary: drivers of devices that share the host's memory take it as it is."""
    dtype = np.dtype(dtype)
    made: np.ndarray = aligned_zeros(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
    return made


def mark(array: np.ndarray) -> bytes:
    """What equal arrays have in common: dtype, shape and a sample of the bytes; of arrays up to WHOLE all bytes."""
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())  # processors have instructions for it
    content = _bytes(array)
    if array.nbytes <= WHOLE:
        digest.update(content.data)
    else:
        for start in np.linspace(0, array.nbytes - _PIECE, _SAMPLES).astype(np.int64):
            digest.update(content[start : start + _PIECE].data)
    return digest.digest()[:16]


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays of bytes are equal."""
    pieces = range(0, len(one), _COMPARED)
    return len(one) == len(other) and all(
        np.array_equal(one[i : i + _COMPARED], other[i : i + _COMPARED]) for i in pieces
    )


class _Stored:
    """Owns one allocation; sessions hold it, the store only knows it weakly."""

    def __init__(self, driver: Driver, array: np.ndarray, keep: bool) -> None:
        nbytes = max(array.nbytes, 1)
        fits = array.nbytes > 0 and array.flags.writeable and array.ctypes.data % _ALIGN == 0
        in_place = keep and fits and driver.info().shares_host
        if in_place:
            buffer = cast("SharingDriver", driver).wrap(_bytes(array))
        else:
            buffer = driver.alloc(-(-nbytes // _ALIGN) * _ALIGN)
        self.ref = BufferRef(buffer, 0, nbytes)
        weakref.finalize(self, driver.free, buffer)
        if array.nbytes and not in_place:
            stream = driver.stream()
            driver.write(self.ref, array, stream)
            driver.synchronize(stream)

    def holds(self, driver: Driver, array: np.ndarray) -> bool:
        """Whether the device has these bytes here."""
        if self.ref.nbytes != max(array.nbytes, 1):
            return False
        if driver.info().shares_host:
            return _same(cast("SharingDriver", driver).view(self.ref)[: array.nbytes], _bytes(array))
        there, stream = np.empty(array.nbytes, np.uint8), driver.stream()
        kept = driver.read(there, self.ref, stream)
        driver.synchronize(stream)
        del kept
        return _same(there, _bytes(array))


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
    """The constants of one device, by content.

    Reading all weights only to hash them would take longer than to upload them. So they are known by a mark, and where
    another array has the mark of one that is stored, the two are compared.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._by_mark: weakref.WeakValueDictionary[tuple[bytes, int], _Stored] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, array: np.ndarray, keep: bool = False) -> _Stored:
        """The allocation with this content, made on first use. Raises MemoryError when the device has no room.

        Args:
            array: contiguous.
            keep: nobody will change the array, so a device that can may compute with it where it is.
        """
        found = mark(array)
        with self._lock:
            free = None
            for number in range(_ALIKE):
                stored = self._by_mark.get((found, number))
                if stored is None:
                    free = number if free is None else free
                elif array.nbytes <= WHOLE or stored.holds(self._driver, array):
                    return stored
            stored = _Stored(self._driver, array, keep)
            if free is not None:
                self._by_mark[found, free] = stored
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
        self._marks: dict[bytes, weakref.ref[np.ndarray]] = {}
        self._keys: dict[int, tuple[weakref.ref[np.ndarray], bytes]] = {}
        self._made: set[bytes] = set()
        self._derived: dict[tuple[bytes, str], np.ndarray] = {}
        self._lock = threading.Lock()

    def key(self, array: np.ndarray) -> bytes:
        """What stands for the array's dtype, shape and bytes in this session.

        It is the array's mark for the first array that has it and for those that are seen to equal it; others that
        have the same mark are hashed.
        """
        known = self._keys.get(id(array))
        if known is not None and known[0]() is array:
            return known[1]
        key = mark(array)
        if array.nbytes > WHOLE:
            with self._lock:
                first = self._marks.setdefault(key, weakref.ref(array))()
            if first is not array and (first is None or not _same(_bytes(first), _bytes(array))):
                key = hashlib.sha256(key + hashlib.sha256(_bytes(array).data).digest()).digest()
        if array.nbytes >= _KNOWN:
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
                    stored = self._store.get(np.ascontiguousarray(array), key in self._made)
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
            made = make(array)
            if np.may_share_memory(made, array) or not made.flags.c_contiguous or made.ctypes.data % _ALIGN:
                strided, made = made, blank(made.shape, made.dtype)
                made[...] = strided
            self._derived[key] = made
            # What it was made of and how say as much as its bytes would, and those are many.
            own = hashlib.blake2b(key[0] + tag.encode(), digest_size=16).digest()
            self._know(made, own)
            self._made.add(own)
        return made

    def nbytes(self) -> int:
        """Bytes of the constants this session holds on the device."""
        return self._bytes[0]
