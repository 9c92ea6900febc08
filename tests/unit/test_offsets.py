"""Offsets of a plan's values."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gpurt.memory.offsets import Lifetime, assign, lower_bound

lifetimes = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 20), st.integers(0, 6)).map(
        lambda t: Lifetime(t[0], t[1], t[1] + t[2])
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(lifetimes, st.sampled_from([64, 128]))
def test_values_alive_together_never_overlap(lives, alignment):
    layout = assign(lives, alignment, 1 << 30)
    for i, a in enumerate(lives):
        block, offset = layout.places[i]
        assert offset % alignment == 0
        assert offset + a.nbytes <= layout.blocks[block]
        for j in range(i):
            b = lives[j]
            other, start = layout.places[j]
            if other == block and a.first <= b.last and b.first <= a.last and a.nbytes and b.nbytes:
                assert offset + a.nbytes <= start or start + b.nbytes <= offset
    assert layout.peak >= lower_bound(lives, alignment)


def test_a_chain_needs_two_places():
    lives = [Lifetime(1024, i, i + 1) for i in range(10)]
    assert assign(lives, 128, 1 << 30).peak == lower_bound(lives, 128) == 2048


def test_neighbours_of_a_chain_leave_room_for_what_is_between_them():
    """A residual chain (of eeg_spindle_net), whose dilated convolutions pad ever more between each two values."""
    lives = [
        Lifetime(3840000, 5, 6),
        *(Lifetime(3840000, i, i + 2) for i in range(6, 26, 2)),
        Lifetime(3840000, 26, 29),
    ]
    padding = (4096 * 2**i for i in range(11))
    lives += [Lifetime(3840000 + more, i, i + 1) for i, more in zip(range(7, 29, 2), padding, strict=True)]
    lives += [Lifetime(1920000, first, last) for first, last in ((28, 29), (29, 36), (30, 31), (51, 53))]
    assert assign(lives, 128, 1 << 30).peak <= 1.02 * lower_bound(lives, 128)
    assert max(assign(lives, 128, 9000000).blocks) <= 9000000


def test_blocks_are_no_larger_than_the_device_allows():
    lives = [Lifetime(600, 0, 9) for _ in range(5)]
    layout = assign(lives, 64, 1300)
    assert max(layout.blocks) <= 1300
    assert len(layout.blocks) == 3


def test_a_value_over_the_largest_block_gets_one_of_its_own():
    assert assign([Lifetime(5000, 0, 0)], 64, 1000).blocks == [5056]


def test_no_order_alone_is_good_but_one_of_them_is():
    # A dense block: each layer's output is read by all later ones, beside short-lived work of another size.
    dense = [Lifetime(128 * (i + 1), i, 24) for i in range(24)]
    dense += [Lifetime(128 * (40 - i), i, i + 1) for i in range(24)]
    layout = assign(dense, 128, 1 << 30)
    assert layout.peak <= 1.05 * lower_bound(dense, 128)


def test_a_layout_is_the_same_in_every_process():
    lives = [Lifetime(128 * (1 + i * 7 % 13), i % 9, i % 9 + i % 4) for i in range(60)]
    assert assign(lives, 128, 1 << 30) == assign(lives, 128, 1 << 30)


def test_nothing_to_place():
    assert assign([], 128, 1 << 30).peak == 0 == lower_bound([], 128)
