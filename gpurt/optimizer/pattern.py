"""Patterns: a piece of a graph written as ordinary operator calls, and how one is matched.

``op.Relu(op.Clip(x, low, high))`` makes terms, not nodes: a recording of what the calls say.
"""

from __future__ import annotations

import itertools
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
    """A node: operator, inputs, and those attributes that matter."""

    domain: str
    op_type: str
    inputs: tuple[Any, ...]
    attrs: Mapping[str, Any]
    name: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """An output of a node."""

    call: Call
    index: int = 0


class Recorder:
    """The ``op`` of patterns: every operator is a method that takes terms, constants and None, and attributes."""

    def attr(self, name: str) -> Attribute:
        """An attribute whose value is bound to a name."""
        return Attribute(name)

    def __getattr__(self, op_type: str) -> Any:
        def call(*inputs: Any, _name: str | None = None, _domain: str = "", _outputs: int = 1, **attrs: Any) -> Any:
            node = Call(_domain, op_type, inputs, attrs, _name)
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


def variants(root: Output) -> list[Output]:
    """A pattern with the inputs of its commutative calls in every order."""
    calls = [c for c in _calls(root.call) if c.op_type in COMMUTATIVE and not c.domain and len(c.inputs) == 2]
    choices = itertools.product((False, True), repeat=len(calls))
    swaps = [{c for c, swap in zip(calls, chosen, strict=True) if swap} for chosen in choices]
    return [Output(_swapped(root.call, swap, {}), root.index) for swap in swaps]


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


def _swapped(call: Call, swap: set[Call], made: dict[Call, Call]) -> Call:
    # Calls that stand twice in the pattern stay one call in the copy.
    if call not in made:
        inputs = tuple(
            Output(_swapped(t.call, swap, made), t.index) if isinstance(t, Output) else t for t in call.inputs
        )
        made[call] = Call(call.domain, call.op_type, inputs[::-1] if call in swap else inputs, call.attrs, call.name)
    return made[call]


def names(root: Output) -> set[str]:
    """All names that a match of the pattern binds."""
    found: set[str] = set()
    for call in _calls(root.call):
        found |= {t.name for t in call.inputs if isinstance(t, Variable)}
        found |= {a.name for a in call.attrs.values() if isinstance(a, Attribute)}
        found |= {call.name} if call.name else set()
    return found


def match(root: Output, node: ir.Node) -> Bindings:
    """Lay a pattern over the graph with its last call on a node. Raises Mismatch where it does not fit."""
    bound = Bindings()
    _match_call(root.call, node, bound, node.graph)
    return bound


def _match_call(call: Call, node: ir.Node, bound: Bindings, graph: Any) -> None:
    if call in bound.nodes:
        if bound.nodes[call] is not node:
            raise Mismatch(
                f"{node.name!r} is not the same {call.op_type} as elsewhere in the pattern", len(bound.nodes)
            )
        return
    if node.op_type != call.op_type or node.domain != call.domain:
        raise Mismatch(f"{node.name!r} is {node.op_type}, not {call.op_type}", len(bound.nodes))
    if node.graph is not graph:
        raise Mismatch(f"{node.name!r} is outside the body that reads it", len(bound.nodes))
    if len(node.inputs) > len(call.inputs) and not all(map(facts.absent, node.inputs[len(call.inputs) :])):
        raise Mismatch(f"{node.name!r} has {len(node.inputs)} inputs, not {len(call.inputs)}", len(bound.nodes))
    bound.nodes[call] = node
    for name, expected in call.attrs.items():
        found = facts.attr(node, name)
        if isinstance(expected, Attribute):
            bound.values[expected.name] = found
        elif found != expected:
            raise Mismatch(f"{node.name!r} has {name}={found!r}, not {expected!r}", len(bound.nodes))
    if call.name:
        bound.values[call.name] = node
    for position, term in enumerate(call.inputs):
        _match_input(term, facts.given(node, position), bound, graph, node)


def _match_input(term: Any, value: ir.Value | None, bound: Bindings, graph: Any, user: ir.Node) -> None:
    fitted = len(bound.nodes)
    if isinstance(term, Variable):
        if bound.values.setdefault(term.name, value) is not value:
            raise Mismatch(f"{term.name!r} would be two different values", fitted)
    elif term is None:
        if value is not None:
            raise Mismatch(f"{user.name!r} reads {value.name!r} where the pattern has nothing", fitted)
    elif isinstance(term, Output):
        producer = value.producer() if value is not None else None
        if value is None or producer is None:
            what = "nothing" if value is None else f"{value.name!r}, which no node makes"
            raise Mismatch(f"{user.name!r} reads {what}, not a {term.call.op_type}", fitted)
        if value.index() != term.index:
            raise Mismatch(f"{value.name!r} is output {value.index()} of its node, not {term.index}", fitted)
        _match_call(term.call, producer, bound, graph)
    else:
        content = facts.array(value)
        fits = content is not None and content.size == 1 and _equal(content.reshape(-1)[0], term)
        ranks = [facts.rank(v) for v in user.inputs if v is not value]
        if fits and content is not None and content.ndim > max((r for r in ranks if r is not None), default=0):
            raise Mismatch(f"{user.name!r} may get axes from the constant {term!r}", fitted)
        if not fits:
            raise Mismatch(f"{user.name!r} reads {value.name if value else None!r}, not the constant {term!r}", fitted)


def _equal(element: Any, expected: Any) -> bool:
    if isinstance(expected, float):  # a constant of 0.7071 in a model has few digits, or those of half precision
        with np.errstate(all="ignore"):
            return bool(np.isclose(float(element), expected, rtol=1e-3 if np.asarray(element).itemsize < 4 else 1e-5))
    return bool(element == expected)
