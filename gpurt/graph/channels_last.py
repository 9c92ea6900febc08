"""The internal domain of operators whose data have the channels last, and the permutations between the layouts.

Its operators have the attributes and the other inputs of ONNX's newest ones: weights [M, C/group, kernel ...], a scale
for each channel. Data and result are [N, spatial ..., C]; MaxPool has one output. The optimizer makes them at level
layout, for providers that prefer them and as far as these have kernels for them; no file holds them.
"""

from __future__ import annotations

from typing import Final

DOMAIN: Final = "gpurt.channels_last"
"""The domain; its only version is 1."""

OPERATORS: Final = frozenset(
    {
        "AveragePool",
        "Conv",
        "ConvTranspose",
        "GroupNormalization",
        "InstanceNormalization",
        "LRN",
        "LpPool",
        "MaxPool",
    }
)
"""What there is in it."""


def to_last(rank: int) -> tuple[int, ...]:
    """Permutation from [N, C, spatial ...] to [N, spatial ..., C]."""
    return (0, *range(2, rank), 1)


def to_first(rank: int) -> tuple[int, ...]:
    """Permutation from [N, spatial ..., C] to [N, C, spatial ...]."""
    return (0, rank - 1, *range(1, rank - 1))
