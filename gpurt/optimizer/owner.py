"""Which provider has a kernel for a node: what a rule must know before it makes an operator that was not there."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gpurt.graph.view import part
from gpurt.loader import Views
from gpurt.provider import Provider


class Owners:
    """Asks the providers of a session, in priority order, about single nodes, in a graph or not yet.

    What a provider could run with casts or as a function body does not count: a fusion is worth a kernel only.
    """

    def __init__(self, providers: Sequence[Provider]) -> None:
        self._providers = providers

    def __call__(self, node: ir.Node) -> int | None:
        """Position of the first provider with a kernel for the node; None where none has one."""
        view = Views().node(node)  # fresh, as views remember values and rules change what is constant
        graph = part([view])
        return next((i for i, p in enumerate(self._providers) if p.get_capability(graph).takes(view)), None)
