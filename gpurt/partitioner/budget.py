"""What a placement keeps in a device's memory, and which nodes are too many for a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from gpurt.graph.view import NodeView
from gpurt.partitioner.cost import VIEWS
from gpurt.partitioner.estimate import Estimate
from gpurt.partitioner.flow import Value

_ROOM: Final = 1.1  # of the largest sum of values alive at once: alignment, and workspaces
_TRANSFORMED: Final = 4  # a 3x3 kernel may be kept transformed to 6x6


class Resident:
    """Bytes that nodes keep on their device."""

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate

    def weights(self, node: NodeView) -> dict[str, int]:
        """Constants that a node reads, by name, as a provider may keep them."""
        found = {}
        for value in node.inputs:
            if value is not None and value.const is not None:
                window = node.op_type == "Conv" and value.const.ndim == 4 and value.const.shape[2:] == (3, 3)
                found[value.name] = value.const.nbytes * (_TRANSFORMED if window else 1)
        return found

    def workspace(self, node: NodeView) -> int:
        """Memory that a node may need while it runs: a window's input padded or unrolled by blocks."""
        if node.op_type != "Conv":
            return 0
        first = node.inputs[0]
        return 0 if first is None else 2 * self._estimate.nbytes(first.name)

    def value(self, name: str) -> int:
        """A value that is made at run time."""
        return self._estimate.nbytes(name)


def overflow(
    nodes: Sequence[NodeView], values: Sequence[Value], resident: Resident, limit: int, *, streamed: bool = False
) -> tuple[list[str], int]:
    """Names of the last of a device's nodes, from where on weights and values together pass a limit.

    Args:
        nodes: those placed on the device, in the order they run.
        values: of the whole model.
        resident: the bytes.
        limit: in bytes.
        streamed: whether weights need to be there only while their node runs.

    Returns:
        The names, none if all fit; and the bytes that all nodes would need.
    """
    position = {n.name: i for i, n in enumerate(nodes)}
    start: dict[int, list[int]] = {}
    end: dict[int, list[int]] = {}
    for value in values:
        uses = [position[r] for r in (value.maker, *value.readers) if r in position]
        if not uses:
            continue
        maker = position.get(value.maker)
        if maker is not None and nodes[maker].op_type in VIEWS:
            continue  # it lies in its input's memory
        # What a turn of a loop yields stays while the next turn has memory of its own.
        nbytes = resident.value(value.name) * (2 if value.times > 1 else 1)
        start.setdefault(min(uses), []).append(nbytes)
        end.setdefault(max(uses), []).append(nbytes)
    read = {value.name for value in values}
    held: dict[str, int] = {}
    alive = weights = 0
    peak = 0.0
    late: list[str] = []
    for i, node in enumerate(nodes):
        if streamed:
            held, weights = {}, 0
        for name, nbytes in resident.weights(node).items():
            if name not in held:
                held[name] = nbytes
                weights += nbytes
        alive += sum(start.get(i, ()))
        unread = sum(resident.value(v.name) for v in node.outputs if v is not None and v.name not in read)
        now = _ROOM * (alive + unread) + resident.workspace(node)
        peak = now if streamed else max(peak, now)
        alive -= sum(end.get(i, ()))
        if weights + peak > limit:
            late.append(node.name)
    return late, math.ceil(weights + peak)
