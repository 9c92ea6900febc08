"""Patterns: a piece of a graph written as ordinary operator calls, and how one is matched.

``op.Relu(op.Clip(x, low, high))`` makes terms, not nodes: a recording of what the calls say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.optimizer import facts

COMMUTATIVE: Final = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum"})


@dataclass(frozen=True, slots=True, eq=False)
class Variable:
    """Any value, or an input that is left out; the same wherever the name stands."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Attribute:
    """Any value of an attribute, its default included."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A node: operator, inputs, those attributes that matter, and the orders in which inputs are compared."""

    domain: str
    op_type: str
    inputs: tuple[Any, ...]
    attrs: Mapping[str, Any]
    name: str | None
    orders: tuple[tuple[tuple[Any, int], ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """An output of a node."""

    call: Call
    index: int = 0


_RANK: Final = {Variable: 0, Output: 1}


def _orders(domain: str, op_type: str, inputs: tuple[Any, ...]) -> tuple[tuple[tuple[Any, int], ...], ...]:
    """Terms with the positions that they may stand in; the last one is compared first."""
    both = op_type in COMMUTATIVE and not domain and len(inputs) == 2
    pairs = [[(t, i) for i, t in enumerate(terms)] for terms in ((inputs, inputs[::-1]) if both else (inputs,))]
    # Variables fit everywhere, constants hardly anywhere: what fails does so early.
    return tuple(tuple(sorted(p, key=lambda pair: _RANK.get(type(pair[0]), 2))) for p in pairs)


class Recorder:
    """The ``op`` of patterns: every operator is a method that takes terms, constants and None, and attributes."""

    def attr(self, name: str) -> Attribute:
        """An attribute whose value is bound to a name."""
        return Attribute(name)

    def __getattr__(self, op_type: str) -> Any:
        def call(*inputs: Any, _name: str | None = None, _domain: str = "", _outputs: int = 1, **attrs: Any) -> Any:
            node = Call(_domain, op_type, inputs, attrs, _name, _orders(_domain, op_type, inputs))
            return Output(node) if _outputs == 1 else tuple(Output(node, i) for i in range(_outputs))

        return call


@dataclass(slots=True)
class Bindings:
    """What the names of a pattern stand for, and the nodes it covers, the last one first."""

    values: dict[str, Any] = field(default_factory=dict)
    nodes: dict[Call, ir.Node] = field(default_factory=dict)


class Mismatch(Exception):
    """The pattern does not fit; says where, and how many of its nodes did fit."""

    def __init__(self, reason: str, fitted: int) -> None:
        self.reason, self.fitted = reason, fitted
        super().__init__(reason)


@dataclass(slots=True)
class Nearest:
    """Of all ways in which a pattern did not fit, the one in which most of its nodes did.

    The last node of a pattern fits wherever it is tried, so with that one alone it is not near.
    """

    reason: str = ""
    fitted: int = 1

    def note(self, reason: str, fitted: int) -> None:
        """Another way in which it did not fit."""
        if fitted > self.fitted:
            self.reason, self.fitted = reason, fitted


def _calls(call: Call) -> Iterator[Call]:
    seen: dict[Call, None] = {}

    def walk(c: Call) -> None:
        if c not in seen:
            seen[c] = None
            for term in c.inputs:
                if isinstance(term, Output):
                    walk(term.call)

    walk(call)
    return iter(seen)


def names(root: Output) -> set[str]:
    """All names that a match of the pattern binds."""
    found: set[str] = set()
    for call in _calls(root.call):
        found |= {t.name for t in call.inputs if isinstance(t, Variable)}
        found |= {a.name for a in call.attrs.values() if isinstance(a, Attribute)}
        found |= {call.name} if call.name else set()
    return found


# What is still to be matched: a term, the value that it has to be, and the node that reads it; then the rest.
_Goals = tuple[Any, "ir.Value | None", ir.Node, Any] | None


def matches(root: Output, node: ir.Node, nearest: Nearest) -> Iterator[Bindings]:
    """All ways to lay a pattern over the graph with its last call on a node.

    There are several where operators are commutative: each order of their inputs is followed as far as it fits.
    """
    bound = Bindings()
    try:
        _check_call(root.call, node, node.graph, 0)
        _bind_call(root.call, node, bound)
    except Mismatch as e:
        nearest.note(e.reason, e.fitted)
        return
    for goals in _inputs(root.call, node, None):
        yield from _solve(goals, bound, node.graph, nearest)


def _solve(goals: _Goals, bound: Bindings, graph: Any, nearest: Nearest) -> Iterator[Bindings]:
    if goals is None:
        yield bound
        return
    term, value, user, rest = goals
    fitted = len(bound.nodes)
    try:
        if isinstance(term, Output):
            producer = _producer(term, value, user, fitted)
            known = bound.nodes.get(term.call)
            if known is not None:
                if known is not producer:
                    reason = f"{producer.name!r} is not the same {producer.op_type} as elsewhere in the pattern"
                    raise Mismatch(reason, fitted)
                yield from _solve(rest, bound, graph, nearest)
                return
            _check_call(term.call, producer, graph, fitted)
            bound = Bindings(dict(bound.values), dict(bound.nodes))
            _bind_call(term.call, producer, bound)
        else:
            if isinstance(term, Variable) and term.name not in bound.values:
                bound = Bindings({**bound.values, term.name: value}, bound.nodes)
            _check_leaf(term, value, user, bound)
            yield from _solve(rest, bound, graph, nearest)
            return
    except Mismatch as e:
        nearest.note(e.reason, e.fitted)
        return
    for more in _inputs(term.call, producer, rest):
        yield from _solve(more, bound, graph, nearest)


def _inputs(call: Call, node: ir.Node, rest: _Goals) -> Iterator[_Goals]:
    """The inputs of a call as goals, in each order that they may stand in."""
    for order in call.orders:
        goals = rest
        for term, position in order:
            goals = (term, facts.given(node, position), node, goals)
        yield goals


def _producer(term: Output, value: ir.Value | None, user: ir.Node, fitted: int) -> ir.Node:
    producer = value.producer() if value is not None else None
    if value is None or producer is None:
        what = "nothing" if value is None else f"{value.name!r}, which no node makes"
        raise Mismatch(f"{user.name!r} reads {what}, not a {term.call.op_type}", fitted)
    if value.index() != term.index:
        raise Mismatch(f"{value.name!r} is output {value.index()} of its node, not {term.index}", fitted)
    return producer


def _check_call(call: Call, node: ir.Node, graph: Any, fitted: int) -> None:
    if node.op_type != call.op_type or node.domain != call.domain:
        raise Mismatch(f"{node.name!r} is {node.op_type}, not {call.op_type}", fitted)
    if node.graph is not graph:
        raise Mismatch(f"{node.name!r} is outside the body that reads it", fitted)
    if len(node.inputs) > len(call.inputs) and not all(map(facts.absent, node.inputs[len(call.inputs) :])):
        raise Mismatch(f"{node.name!r} has {len(node.inputs)} inputs, not {len(call.inputs)}", fitted)


def _bind_call(call: Call, node: ir.Node, bound: Bindings) -> None:
    bound.nodes[call] = node
    for name, expected in call.attrs.items():
        found = facts.attr(node, name)
        if isinstance(expected, Attribute):
            bound.values[expected.name] = found
        elif found != expected:
            raise Mismatch(f"{node.name!r} has {name}={found!r}, not {expected!r}", len(bound.nodes))
    if call.name:
        bound.values[call.name] = node


def _check_leaf(term: Any, value: ir.Value | None, user: ir.Node, bound: Bindings) -> None:
    fitted = len(bound.nodes)
    if isinstance(term, Variable):
        if bound.values[term.name] is not value:
            raise Mismatch(f"{term.name!r} would be two different values", fitted)
        return
    if term is None:
        if value is not None:
            raise Mismatch(f"{user.name!r} reads {value.name!r} where the pattern has nothing", fitted)
        return
    content = facts.array(value)
    if content is None or content.size != 1 or not _equal(content.reshape(-1)[0], term):
        raise Mismatch(f"{user.name!r} reads {value.name if value else None!r}, not the constant {term!r}", fitted)
    ranks = [facts.rank(v) for v in user.inputs if v is not value]
    if content.ndim > max((r for r in ranks if r is not None), default=0):
        raise Mismatch(f"{user.name!r} may get axes from the constant {term!r}", fitted)


def _equal(element: Any, expected: Any) -> bool:
    if isinstance(expected, float):  # a constant of 0.7071 in a model has few digits, or those of half precision
        with np.errstate(all="ignore"):
            return bool(np.isclose(float(element), expected, rtol=1e-3 if np.asarray(element).itemsize < 4 else 1e-5))
    return bool(element == expected)
