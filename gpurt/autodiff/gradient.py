"""Gradient(xs, zs; y) -> the nodes that compute dy/dxs: finds the graph between xs and y and walks it backwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import onnx_ir as ir

from gpurt import logs
from gpurt.autodiff.build import Build, dtype_of
from gpurt.autodiff.rules import load
from gpurt.autodiff.table import RULES, Step, op_name
from gpurt.dtypes import is_float
from gpurt.errors import InvalidGraph, Unsupported
from gpurt.loader import CANONICAL_OPSETS, Names, expand, has_body
from gpurt.loader.inference import annotate
from gpurt.loader.names import defined
from gpurt.loader.walk import bodies, graphs

logger = logs.get(__name__)

DOMAIN: Final = "ai.onnx.preview.training"

Scope = Mapping[str, ir.Value]


def differentiate(model: ir.Model, names: Names) -> int:
    """Replace every Gradient node of a loaded model, in place; returns how many there were.

    A Gradient may name the output of another one, for derivatives of higher order.

    Raises:
        InvalidGraph: a Gradient names a value that does not exist or has another number of inputs.
        NotImplemented: an operator between xs and y has no gradient rule and no function body of operators that have.
    """
    count = 0
    while (found := _next(model.graph)) is not None:
        if count == 0:
            load()
        _Backward(*found, names).run()
        annotate(model, CANONICAL_OPSETS)  # rules look at shapes, those of a second derivative at the new nodes'
        count += 1
    if count:
        logger.debug("%d Gradient nodes became ordinary ones", count)
    return count


def _next(main: ir.Graph) -> tuple[ir.Node, Scope] | None:
    """A Gradient node that depends on no other one, with the values that it can name; None if there is none left."""
    found = list(_gradients(main, {}))
    for node, scope in found:
        y = scope.get(_text(node, "y"))
        if y is None or not any(_is_gradient(n) for n in _ancestors(y, frozenset())):
            return node, scope
    if found:
        raise InvalidGraph("Gradient nodes depend on each other in a circle", node=found[0][0].name, op="Gradient")
    return None


def _gradients(graph: ir.Graph, outer: Scope) -> Iterator[tuple[ir.Node, Scope]]:
    scope = {**outer, **{v.name or "": v for v in defined(graph)}}
    for node in graph:
        if _is_gradient(node):
            yield node, scope
        for body in bodies(node):
            yield from _gradients(body, scope)


def _is_gradient(node: ir.Node) -> bool:
    return node.op_type == "Gradient" and node.domain == DOMAIN


def _text(node: ir.Node, name: str) -> str:
    attr = node.attributes.get(name)
    return "" if attr is None else str(attr.value)


def _ancestors(y: ir.Value, stop: frozenset[ir.Value]) -> list[ir.Node]:
    """Nodes that a value is computed by, each after those it depends on, without what lies before the stops."""
    order: list[ir.Node] = []
    seen: set[ir.Node] = set()
    pending: list[tuple[ir.Value | None, ir.Node | None]] = [(y, None)]
    while pending:
        value, done = pending.pop()
        if done is not None:
            order.append(done)
        elif value is not None and value not in stop:
            node = value.producer()
            if node is not None and node not in seen:
                seen.add(node)
                pending.append((None, node))
                pending += [(v, None) for v in _reads(node)]
    return order


def _reads(node: ir.Node) -> list[ir.Value]:
    """Values that a node depends on: its inputs, and what its bodies read from outside."""
    inside = [graph for body in bodies(node) for graph in graphs(body)]
    captured = [v for graph in inside for n in graph for v in n.inputs if v is not None and v.graph not in inside]
    return [v for v in node.inputs if v is not None] + captured


def _carries(value: ir.Value) -> bool:
    """Whether a gradient can flow through a value: not through integers and booleans, such as shapes and masks."""
    dtype = dtype_of(value)
    return dtype is None or is_float(dtype)


class _Backward:
    """One Gradient node: forward part, then the walk back."""

    def __init__(self, node: ir.Node, scope: Scope, names: Names) -> None:
        assert node.graph is not None, "the node is in a graph"
        self._node = node
        self._names = names
        self._graph: ir.Graph = node.graph
        named = [str(n) for key in ("xs", "zs") for n in (node.attributes[key].value if key in node.attributes else ())]
        self._count = len(node.attributes["xs"].value) if "xs" in node.attributes else 0
        if len(named) != len(node.inputs) or any(v is None for v in node.inputs):
            raise InvalidGraph(
                f"Gradient has {len(node.inputs)} inputs, but xs and zs name {len(named)} values",
                node=node.name,
                op="Gradient",
            )
        for name in (*named, _text(node, "y")):
            if name not in scope:
                raise InvalidGraph(f"Gradient names {name!r}, which is no value here", node=node.name, op="Gradient")
        self._named = [scope[n] for n in named]
        self._y = scope[_text(node, "y")]
        self._build = Build(self._graph, node, names)

    def run(self) -> None:
        """Build the gradients and put them in place of the node's outputs."""
        order = self._path()
        values, order, y = self._forward(order)
        xs = values[: self._count]
        grads = self._back(order, y, values)
        results = []
        for old, x in zip(self._node.outputs, xs, strict=False):
            g = grads.get(x)
            results.append(self._build.op("Identity", self._build.filled(0, x) if g is None else g))
            results[-1].type, results[-1].shape = old.type or x.type, old.shape or x.shape
        wanted = [(old, new) for old, new in zip(self._node.outputs, results, strict=False) if old.name]
        self._build.insert(new for _, new in wanted)
        for old, new in wanted:
            new.name, old.name = old.name, None
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)
        self._graph.sort()  # y need not have been computed before the Gradient node

    def _path(self) -> list[ir.Node]:
        """Nodes between the named values and y; those without a rule are replaced by their function bodies."""
        while True:
            order = _ancestors(self._y, frozenset(self._named))
            active = _active(order, self._named[: self._count], self._named)
            lacking = [n for n in order if (n.domain, n.op_type) not in RULES and any(v in active for v in n.outputs)]
            if not lacking:
                return order
            for node in lacking:
                expansion = expand(node, self._names) if has_body(node.op_type, node.domain) else None
                if expansion is None:
                    raise Unsupported(
                        f"the gradient of {op_name(node)} is not implemented",
                        node=node.name,
                        op=op_name(node),
                        remedy="Compute this part of the gradient in the model itself",
                    )
                became = {o: n for o, n in zip(node.outputs, expansion.outputs, strict=True) if n is not None}
                expansion.apply()
                self._y = became.get(self._y, self._y)
                self._named = [became.get(v, v) for v in self._named]

    def _forward(self, order: list[ir.Node]) -> tuple[list[ir.Value], list[ir.Node], ir.Value]:
        """The values to differentiate by, the nodes between, and y, all at the point that the inputs give.

        Where the inputs are the named values themselves, what the model computes anyway is used; nodes that depend on
        a value for which another is given are computed once more.
        """
        given = [v for v in self._node.inputs if v is not None]
        # Each point is a value of its own: two of them may be given the same one, or one on the way to another.
        point = [b if a is b else self._build.op("Identity", b) for a, b in zip(self._named, given, strict=True)]
        moved = {a: b for a, b in zip(self._named, point, strict=True) if a is not b}
        path = []
        for node in order:
            if not any(v in moved for v in _reads(node)):
                path.append(node)
                continue
            if next(bodies(node), None) is not None:
                raise Unsupported(
                    "Gradient at another point than the model's own cannot compute control flow again",
                    node=node.name,
                    op=op_name(node),
                    remedy="Give Gradient the values that xs and zs name",
                )
            made = self._build.clone(node, [v if v is None else moved.get(v, v) for v in node.inputs])
            for old, new in zip(node.outputs, made, strict=True):
                moved.setdefault(old, new)
            twin = made[0].producer()
            assert twin is not None, "it was just made"
            path.append(twin)
        return point, path, moved.get(self._y, self._y)

    def _back(self, order: list[ir.Node], y: ir.Value, cut: list[ir.Value]) -> dict[ir.Value, ir.Value]:
        active = _active(order, cut[: self._count], cut)
        stop = frozenset(cut)
        grads: dict[ir.Value, ir.Value] = {}
        if y in active:
            grads[y] = self._build.filled(1, y)
        for node in reversed(order):
            outputs = [None if v in stop else grads.get(v) for v in node.outputs]
            wanted = frozenset(i for i, v in enumerate(node.inputs) if v in active)
            if not wanted or all(g is None for g in outputs):
                continue
            if any(v in active for body in bodies(node) for v in _reads(node)[len(node.inputs) :]):
                Step(node, self._build, outputs, wanted).refuse("its bodies read what it is differentiated by")
            found = RULES[node.domain, node.op_type](Step(node, self._build, outputs, wanted))
            for i, (x, g) in enumerate(zip(node.inputs, found, strict=False)):  # rules may end early or late
                if x is not None and g is not None and i in wanted:
                    grads[x] = self._build.op("Add", grads[x], g) if x in grads else g
        return grads


def _active(order: Sequence[ir.Node], xs: Sequence[ir.Value], cut: Sequence[ir.Value]) -> set[ir.Value]:
    """Values that vary with xs; the cut ones, xs and zs, do not vary with one another."""
    active, stop = set(xs), frozenset(cut)
    for node in order:
        if any(v in active for v in _reads(node)):
            active.update(v for v in node.outputs if v.name != "" and _carries(v) and v not in stop)
    return active
