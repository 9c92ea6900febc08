"""What channels last save a device of the CPU class, in shares of a node's time, as measured over the usual CNNs."""

from __future__ import annotations

import math
from typing import Final

from gpurt.device.driver import DeviceInfo
from gpurt.device.tiles import LANES
from gpurt.graph.view import NodeView

_DEPTHWISE: Final = 0.5
_COPIED: Final = 0.3  # windows that the other layout copies into padded planes first
_WINOGRAD: Final = 0.5
_POINTWISE: Final = 0.15
_POOL: Final = 0.2
_FEW: Final = LANES // 2  # filters that leave half of a vector idle


def preference(node: NodeView, info: DeviceInfo) -> float:
    """The share of a node's time that channels last save on a device; see Provider.channels_last."""
    if info.kernel_class != "cpu" or node.domain:
        return 0.0
    if node.op_type in ("MaxPool", "AveragePool"):
        return _POOL
    if node.op_type != "Conv" or node.inputs[1] is None or node.inputs[1].const is None:
        return 0.0
    filters, channels, *kernel = node.inputs[1].const.shape
    group = int(node.attr("group", 1))
    if group == filters and channels == 1 and group > 1:
        return _DEPTHWISE
    if filters // group <= _FEW:
        return 1 - LANES * group / int(filters)  # what the idle lanes take
    dense = group == 1 and not (channels % LANES or filters % LANES)
    if dense and kernel == [3, 3] and all(s == 1 for s in (*node.attr("strides", ()), *node.attr("dilations", ()))):
        return _WINOGRAD
    moved = math.prod(kernel) > 1 or any(s > 1 for s in node.attr("strides", ()))
    return _COPIED if moved else _POINTWISE
