"""Constants of devices: known by marks, compared where marks are equal, packed in place where memory is shared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpurt.device import DeviceInfo
from gpurt.device.ops.matrices import panels
from gpurt.device.weights import WHOLE, Constants, WeightStore, blank, mark
from gpurt.memory.arena import RegionArena
from gpurt.provider import BufferRef
from gpurt.testing.null import NullDriver

LARGE = 4 * WHOLE


class SharingNull(NullDriver):
    """Whose kernels would see the host's memory."""

    def __init__(self) -> None:
        super().__init__(replace(DeviceInfo("null"), shares_host=True))
        self.wrapped: list[np.ndarray] = []

    def view(self, ref: BufferRef) -> np.ndarray:
        return np.frombuffer(ref.buffer, np.uint8)[ref.offset : ref.offset + ref.nbytes]

    def wrap(self, array: np.ndarray) -> np.ndarray:
        assert array.ctypes.data % 64 == 0
        self.wrapped.append(array)
        return array

    def free(self, buffer: bytearray | np.ndarray) -> None:
        if isinstance(buffer, bytearray):
            super().free(buffer)


def constants(driver: NullDriver) -> Constants:
    return Constants(driver, RegionArena(driver.alloc, driver.free))


def unlike(array: np.ndarray) -> np.ndarray:
    """Another array of the same mark."""
    for position in range(array.size):
        other = array.copy()
        other[position] += 1
        if mark(other) == mark(array):
            return other
    raise AssertionError("the mark is made of all bytes")


@pytest.fixture(params=[NullDriver, SharingNull])
def driver(request: pytest.FixtureRequest) -> NullDriver:
    made: NullDriver = request.param()
    return made


def content(driver: NullDriver, ref: BufferRef, like: np.ndarray) -> np.ndarray:
    there = np.empty_like(like)
    driver.read(there, ref, driver.stream())
    return there


def test_marks_tell_dtypes_shapes_and_all_of_small_arrays_apart() -> None:
    x = np.zeros(WHOLE // 4, np.float32)
    y = x.copy()
    y[123] = 1
    assert len({mark(a) for a in (x, y, x.view(np.int32), x.reshape(2, -1))}) == 4
    assert mark(x) == mark(x.copy())
    assert mark(np.zeros((0, 3))) != mark(np.zeros((3, 0)))


def test_large_arrays_of_one_mark_are_compared(driver: NullDriver) -> None:
    x = np.arange(LARGE, dtype=np.float32)
    y = unlike(x)
    one, other = constants(driver), constants(driver)
    refs = [one.get(x), one.get(y), one.get(x.copy()), other.get(y.copy()), other.get(x.copy())]
    assert refs[0].buffer is refs[2].buffer is refs[4].buffer
    assert refs[1].buffer is refs[3].buffer is not refs[0].buffer
    assert (content(driver, refs[0], x) == x).all()
    assert (content(driver, refs[1], y) == y).all()
    assert one.nbytes() == other.nbytes() == 2 * x.nbytes


def test_an_array_that_is_gone_is_not_taken_for_another(driver: NullDriver) -> None:
    x = np.arange(LARGE, dtype=np.float32)
    y = unlike(x)
    own = constants(driver)
    first = own.derive(x, "twice", lambda a: 2 * a)
    del x
    second = own.derive(y, "twice", lambda a: 2 * a)
    assert not (first == second).all()
    assert (second == 2 * y).all()
    made: list[int] = []
    again = own.derive(y.copy(), "twice", lambda a: (made.append(1), 2 * a)[1])
    assert again is second
    assert not made


def test_what_is_made_of_equal_arrays_is_made_once(driver: NullDriver) -> None:
    x = np.arange(LARGE, dtype=np.float32)
    own = constants(driver)
    assert own.derive(x, "negative", np.negative) is own.derive(x.copy(), "negative", np.negative)
    assert own.derive(x, "same", lambda a: a) is not x


def test_packed_weights_are_computed_with_where_they_are() -> None:
    driver = SharingNull()
    x = np.arange(LARGE, dtype=np.float32).reshape(64, -1)
    own = constants(driver)
    packed = own.derive(x, "transposed", lambda a: a.T)
    ref = own.get(packed)
    assert np.shares_memory(driver.wrapped[0], packed)
    assert (driver.wrapped[0].view(np.float32).reshape(packed.shape) == x.T).all()
    assert ref.nbytes == x.nbytes
    own.get(x)  # may be changed by whoever gave it, so it is copied
    assert len(driver.wrapped) == 1


def test_weights_go_with_the_last_who_hold_them() -> None:
    driver = NullDriver()
    own = constants(driver)
    ref = own.get(np.arange(LARGE, dtype=np.float32))
    assert driver.held == 4 * LARGE
    del ref
    assert driver.held == 0
    assert own.nbytes() == 0


def test_many_arrays_of_one_mark() -> None:
    driver = NullDriver()
    store = WeightStore(driver)
    x = np.zeros(LARGE, np.uint8)
    places = [p for p in range(512, 900) if mark(_set(x, p)) == mark(x)][:12]
    arrays = [_set(x, p) for p in places]
    stored = [store.get(a) for a in arrays]
    assert len({id(s) for s in stored}) == 12
    assert store.get(arrays[0].copy()) is stored[0]
    for array, found in zip(arrays, stored, strict=True):
        assert (content(driver, found.ref, array) == array).all()


def _set(array: np.ndarray, position: int) -> np.ndarray:
    other = array.copy()
    other[position] = 1
    return other


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (1000, 7)])
def test_blank_memory_is_aligned(shape: tuple[int, ...]) -> None:
    made = blank(shape, np.float16)
    assert made.size == 0 or made.ctypes.data % 64 == 0
    assert made.shape == shape
    assert not made.any()


@pytest.mark.parametrize("shape", [(70, 33), (2, 700, 1000), (1000, 700)])
def test_panels_of_matrices(shape: tuple[int, ...]) -> None:
    b = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    made = panels(b)
    count = -(-shape[-1] // 16)
    assert made.shape == (*shape[:-2], count, shape[-2], 16)
    flat = np.moveaxis(made, -2, -3).reshape(*shape[:-1], count * 16)
    np.testing.assert_array_equal(flat[..., : shape[-1]], b)
    assert not flat[..., shape[-1] :].any()
    np.testing.assert_array_equal(panels(np.swapaxes(np.swapaxes(b, -1, -2).copy(), -1, -2)), made)
