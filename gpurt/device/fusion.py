"""Which nodes of a partition become one kernel: chains of elementwise nodes."""

from __future__ import annotations

from collections.abc import Sequence

from gpurt.device.unit import Host
from gpurt.graph.view import GraphView, NodeView
from gpurt.provider import DeviceUnit


def groups(host: Host, partition: GraphView) -> Sequence[DeviceUnit | tuple[NodeView, ...]]:
    """Units and single nodes in topological order."""
    return [(node,) for node in partition.nodes]
