"""DepthToSpace and SpaceToDepth: transpositions of the input seen with more dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from gpurt.device.lowering import Lowering
from gpurt.device.ops.movement import Dim, strided_copy, strides
from gpurt.device.table import STORED, op


def _permuted(c: Lowering, shape: Sequence[int], order: Sequence[int]) -> None:
    # The input seen as `shape`, its dimensions in another order, is the output.
    source, target = strides(shape), strides([shape[p] for p in order])
    strided_copy(c, c.output(), c.input(0), [Dim(shape[p], source[p], t) for p, t in zip(order, target, strict=True)])


@op("DepthToSpace", types=STORED)
def depth_to_space(c: Lowering) -> None:
    """DepthToSpace-28: channels are (block row, block column, channel) in mode DCR, (channel, row, column) in CRD."""
    n, channels, h, w = c.input(0).shape
    block = c.node.attr("blocksize")
    rest = channels // (block * block)
    if c.node.attr("mode", "DCR") == "DCR":
        _permuted(c, (n, block, block, rest, h, w), (0, 3, 4, 1, 5, 2))
    else:
        _permuted(c, (n, rest, block, block, h, w), (0, 1, 4, 2, 5, 3))


@op("SpaceToDepth", types=STORED)
def space_to_depth(c: Lowering) -> None:
    """SpaceToDepth-28: the inverse of DepthToSpace in the same mode."""
    n, channels, h, w = c.input(0).shape
    block = c.node.attr("blocksize")
    order = (0, 3, 5, 1, 2, 4) if c.node.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    _permuted(c, (n, channels, h // block, block, w // block, block), order)
