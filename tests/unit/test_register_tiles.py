"""Register tiles of products in the CPU class."""

from __future__ import annotations

from gpurt.device.tiles import tile_for


def test_tiles_fit_what_is_to_be_computed() -> None:
    assert tile_for(3136, 64, 16)[0].vectors == 4
    assert tile_for(3136, 96, 16)[0].vectors == 3
    assert tile_for(3136, 16, 16)[0].vectors == 1
    assert tile_for(1, 1000, 16)[0].rows == 1
    assert tile_for(3136, 64, 8)[0] == (6, 1)
    assert tile_for(49, 512, 16)[0].rows == 7  # 49 is 7 times 7, but 9 times 6 less 5
