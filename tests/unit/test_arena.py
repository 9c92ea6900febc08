"""The arena's arithmetic, on a pretended device."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpurt.errors import InvalidArgument, OutOfMemory
from gpurt.memory.arena import RegionArena


class Device:
    def __init__(self, room=1 << 40):
        self.room, self.held = room, {}

    def alloc(self, nbytes):
        if sum(self.held.values()) + nbytes > self.room:
            raise MemoryError
        key = object()
        self.held[key] = nbytes
        return key

    def free(self, key):
        del self.held[key]


def arena(device, **options):
    return RegionArena(device.alloc, device.free, **options)


def test_sizes_are_rounded_and_offsets_aligned():
    a = arena(Device(), alignment=128)
    refs = [a.alloc(n) for n in (1, 129, 128)]
    assert [r.nbytes for r in refs] == [128, 256, 128]
    assert all(r.offset % 128 == 0 for r in refs)


def test_neighbours_coalesce_and_are_reused():
    device = Device()
    a = arena(device, initial=1024, strategy="next_power_of_two")
    refs = [a.alloc(256) for _ in range(4)]
    for r in (refs[1], refs[3], refs[2], refs[0]):
        a.free(r)
    big = a.alloc(1024)
    assert big.offset == 0
    assert len(device.held) == 1


def test_best_fit_takes_the_smallest_chunk_that_fits():
    a = arena(Device(), initial=4096)
    refs = [a.alloc(n) for n in (512, 128, 256, 128, 384, 128)]
    a.free(refs[0])
    a.free(refs[2])
    assert a.alloc(200).offset == refs[2].offset


def test_strategies_differ_in_what_is_held():
    for strategy, held in (("same_as_requested", 3 * 512), ("next_power_of_two", 1024 + 2048)):
        a = arena(Device(), strategy=strategy, initial=1024)
        for _ in range(3):
            a.alloc(512)
        assert a.stats()["held"] == held


def test_shrink_returns_the_bytes_freed():
    device = Device()
    a = arena(device, strategy="same_as_requested")
    first, second = a.alloc(1000), a.alloc(2000)
    a.free(second)
    assert a.shrink() == 2048
    a.free(first)
    assert a.shrink() == 1024
    assert device.held == {}
    assert a.stats()["held"] == 0


def test_the_limit_is_an_error_that_says_what_was_asked_and_held():
    a = arena(Device(), limit=4096, initial=1024)
    kept = a.alloc(2048)
    with pytest.raises(OutOfMemory, match="4096 bytes asked for") as e:
        a.alloc(4096)
    assert e.value.remedy
    assert isinstance(e.value, MemoryError)
    a.free(kept)
    assert a.alloc(4096).nbytes == 4096


def test_a_full_device_shrinks_the_arena_and_tries_again():
    device = Device(room=4096)
    a = arena(device, strategy="same_as_requested")
    a.free(a.alloc(3000))
    assert a.alloc(4096).nbytes == 4096
    with pytest.raises(OutOfMemory):
        a.alloc(128)


def test_a_block_over_the_devices_largest_is_refused():
    with pytest.raises(OutOfMemory, match="in one piece"):
        arena(Device(), max_block=1 << 20).alloc((1 << 20) + 1)


def test_unknown_strategy():
    with pytest.raises(InvalidArgument, match="arena_extend_strategy"):
        arena(Device(), strategy="double")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000)), max_size=60))
def test_blocks_never_overlap_and_counters_agree(actions):
    device = Device()
    a = arena(device, initial=1024)
    live = []
    for take, n in actions:
        if take or not live:
            live.append(a.alloc(n))
        else:
            a.free(live.pop(n % len(live)))
        for i, x in enumerate(live):
            for y in live[i + 1 :]:
                assert x.buffer is not y.buffer or x.offset + x.nbytes <= y.offset or y.offset + y.nbytes <= x.offset
        stats = a.stats()
        assert stats["in_use"] == sum(r.nbytes for r in live)
        assert stats["held"] == sum(device.held.values()) >= stats["in_use"]
