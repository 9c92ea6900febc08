"""The numbers of a convolution, in one to three dimensions, as three."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpurt.graph.view import NodeView
from gpurt.infer.shapes import conv_geometry, window_arguments

Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution with three spatial axes; missing leading ones have size 1.

    Attributes:
        n, channels: batch and input channels.
        size: input sizes.
        kernel, stride, dilation: of the window.
        begin: pads at the begin.
        out: output sizes.
        group: number of groups.
        filters: output channels.
    """

    n: int
    channels: int
    size: Triple
    kernel: Triple
    stride: Triple
    dilation: Triple
    begin: Triple
    end: Triple
    out: Triple
    group: int
    filters: int

    @property
    def k(self) -> int:
        """Length of the sum for one output element."""
        return self.channels // self.group * math.prod(self.kernel)

    @property
    def pixels(self) -> int:
        return math.prod(self.out)


def geometry(node: NodeView, x: tuple[int, ...], w: tuple[int, ...]) -> Geometry:
    """The convolution's numbers by attributes and shapes."""
    rank = len(x) - 2
    stride, dilation, _ = window_arguments(rank, node.attr("strides"), node.attr("dilations"), None)
    out, begin, end = conv_geometry(
        x[2:], w[2:], stride, dilation, node.attr("pads"), node.attr("auto_pad", "NOTSET")
    )  # fmt: skip
    return Geometry(
        x[0], x[1], three(x[2:], 1), three(w[2:], 1), three(stride, 1), three(dilation, 1), three(begin, 0),
        three(end, 0), three(out, 1), node.attr("group", 1), w[0],
    )  # fmt: skip


def three(values: tuple[int, ...], fill: int) -> Triple:
    """One to three values as three, filled up in front."""
    filled = (fill,) * (3 - len(values)) + tuple(values)
    return filled[0], filled[1], filled[2]
