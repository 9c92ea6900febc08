"""Unique names: after the loader, every value and node of the model, nested graphs included, has a name of its own."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from gpurt.loader.walk import graphs


class Names:
    """Hands out names that nothing in a model has yet, one space for values and one for nodes."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._nodes: set[str] = set()
        self._next: dict[str, int] = {}

    @classmethod
    def of(cls, model: ir.Model) -> Names:
        """Names of a model as it is."""
        names = cls()
        for graph in graphs(model.graph):
            names._values.update(value.name for value in defined(graph) if value.name)
            names._nodes.update(node.name for node in graph if node.name)
        return names

    def value(self, base: str) -> str:
        """A new value name: the base itself where it is free."""
        return self._fresh(base or "value", self._values)

    def node(self, base: str) -> str:
        """A new node name: the base itself where it is free."""
        return self._fresh(base or "node", self._nodes)

    def _fresh(self, base: str, used: set[str]) -> str:
        name = base
        while name in used:
            self._next[base] = self._next.get(base, 0) + 1
            name = f"{base}_{self._next[base]}"
        used.add(name)
        return name


def defined(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values that a graph itself defines: inputs, initializers and node outputs that exist."""
    yield from graph.inputs
    for value in graph.initializers.values():
        if not value.is_graph_input():
            yield value
    for node in graph:
        for value in node.outputs:
            if value.name != "":  # an optional output that nobody wants has an empty name
                yield value


def make_unique(model: ir.Model) -> Names:
    """Rename what shares its name with something else; interface names of the main graph stay as they are."""
    names = Names.of(model)  # a new name must not be one that another value has and keeps
    main = model.graph
    kept = {*main.inputs, *main.initializers.values(), *main.outputs}
    seen_values = {value.name for value in kept}
    seen_nodes: set[str] = set()
    counter = 0
    for graph in graphs(main):
        for value in list(defined(graph)):
            if value not in kept and (not value.name or value.name in seen_values):
                value.name = names.value(value.name or "value")
            seen_values.add(value.name)
        for node in graph:
            if not node.name or node.name in seen_nodes:
                node.name = names.node(node.name or f"{node.op_type}_{counter}")
            seen_nodes.add(node.name)
            counter += 1
    return names
