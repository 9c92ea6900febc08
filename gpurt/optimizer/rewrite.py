"""Local transformations: rules of a pattern, a condition and a replacement, all found in one walk over the graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from gpurt import logs
from gpurt.errors import InvalidArgument
from gpurt.optimizer import facts, pattern
from gpurt.optimizer.build import Builder
from gpurt.optimizer.pattern import Bindings, Mismatch, Nearest, Output
from gpurt.optimizer.transformer import Kind, NearMiss, Removed, Result, Tools, naming
from gpurt.options import GraphOptimizationLevel

logger = logs.get(__name__)

_REWRITES_PER_NODE = 20  # a rule that undoes another, or itself, must end somewhere


class MatchResult:
    """The answer of a rule's condition: itself where the rule may fire, ``fail(reason)`` where it may not."""

    __slots__ = ("reason",)

    def __init__(self) -> None:
        self.reason = ""

    def fail(self, reason: str) -> MatchResult:
        """The rule may not fire here, and why."""
        self.reason = reason
        return self

    def __bool__(self) -> bool:
        return not self.reason


class RewriteRule:
    """A local transformation.

    A rule has three methods, and each names in its parameters what it wants: the variables of the pattern (an onnx-ir
    Value, or None for an input that is left out), its attributes (the value) and its named calls (the Node)::

        class MulByOne(RewriteRule):
            why = "multiplication by one"

            def pattern(self, op, x, one):
                return op.Mul(x, one)

            def check(self, m, x, one):
                return m if facts.scalar(one) == 1 else m.fail("the factor is not one")

            def rewrite(self, op, x):
                return x

    ``pattern`` writes the nodes as calls of ``op``: attributes that it gives must have these values, and
    ``perm=op.attr("p")`` binds one; ``_name="conv"`` binds a node. An input that the pattern does not write must be
    left out. Numbers stand for constants of one element. Two inputs of Add, Mul and the like match in either order.
    ``check`` gets a :class:`MatchResult` and returns it, or its ``fail("reason")``; a rule without one always fires.
    ``rewrite`` returns the value that takes the place of the pattern's, made with calls of ``op`` or one of the values
    bound, or None where it finds that it cannot. It must have the dtype of what it replaces, and its shape.

    A rule that makes an operator which its pattern does not have fires only where that operator has a kernel: no
    provider after the first one that runs a part of the pattern may have to take it.

    Attributes:
        name: what users switch the rule off by; the name of the class unless it is set.
        level: GraphOptimizationLevel from which on the rule is used.
        kind: whether the rule serves every provider or the one that brought it.
        why: what is reported for the nodes that the rule takes out.
        consumes: whether all nodes of the pattern must go. Where it is set, the rule does not fire if anything else
            reads one of their values. Otherwise those that something else reads stay.
    """

    name: str = ""
    level: ClassVar[GraphOptimizationLevel] = GraphOptimizationLevel.ORT_ENABLE_BASIC
    kind: Kind = Kind.GENERAL
    why: str = ""
    consumes: ClassVar[bool] = True

    pattern: Callable[..., Any]
    check: Callable[..., MatchResult] | None = None
    rewrite: Callable[..., Any]

    provider: int | None = None  # position of the provider that brought the rule

    def __init__(self) -> None:
        self.name = self.name or type(self).__name__
        recorder = pattern.Recorder()
        root = self.pattern(recorder, *(pattern.Variable(n) for n in _parameters(self.pattern)[1:]))
        if not isinstance(root, Output):
            raise InvalidArgument(f"the pattern of rule {self.name!r} returns {root!r}, not the value of a call of op")
        self._term = root
        self.reads = frozenset(t.call.op_type for t in root.call.inputs if isinstance(t, Output))
        # A rule of several forms may have variables that one of its forms does not read.
        known = pattern.names(root) | set(_parameters(self.pattern)[1:])
        self._check = _parameters(self.check)[1:] if self.check is not None else []
        self._rewrite = _parameters(self.rewrite)[1:]
        for name in (*self._check, *self._rewrite):
            if name not in known:
                raise InvalidArgument(f"rule {self.name!r} asks for {name!r}, which its pattern does not bind")

    @property
    def root(self) -> tuple[str, str]:
        """Domain and operator of the node that the pattern ends in."""
        call = self._term.call
        return call.domain, call.op_type

    def apply_at(self, node: ir.Node, tools: Tools, result: Result) -> list[ir.Node] | None:
        """Rewrite what ends in a node, if the rule fires there: the new nodes, or None. Near misses are noted."""
        nearest = Nearest()
        for bound in pattern.matches(self._term, node, nearest):
            try:
                made = self._fire(node, bound, tools, result)
            except Mismatch as e:
                nearest.note(e.reason, e.fitted)
                continue
            tools.misses.pop((self.name, node.name or ""), None)
            return made
        if nearest.reason:
            self._miss(node, nearest, tools)
        return None

    def _fire(self, node: ir.Node, bound: Bindings, tools: Tools, result: Result) -> list[ir.Node]:
        full = len(bound.nodes) + 1  # a pattern that fits is nearer than any that does not
        if any(facts.wanted(v) for v in node.outputs if v is not node.outputs[0] and not facts.absent(v)):
            raise Mismatch(f"another output of {node.name!r} is used", full)
        matched = list(bound.nodes.values())
        if self.consumes:
            _all_inside(node, matched, full)
        answer = MatchResult()
        if self.check is not None:
            answer = self.check(answer, *(bound.values.get(n) for n in self._check))
        if not answer:
            raise Mismatch(answer.reason, full)
        builder = Builder(tools.names, node)
        value = self.rewrite(builder, *(bound.values.get(n) for n in self._rewrite))
        if value is None:
            builder.discard()
            raise Mismatch("the replacement cannot be made here", full)
        if not isinstance(value, ir.Value):
            raise InvalidArgument(f"rule {self.name!r} returned {value!r}, not a value")
        graph = node.graph
        assert isinstance(graph, ir.Graph), "functions are inlined when a model is loaded"
        for constant in builder.constants:
            graph.register_initializer(constant)
        reason = _not_alike(node, value, builder) or self._not_run(matched, builder, tools)
        if reason:
            builder.discard()
            for constant in builder.constants:
                del graph.initializers[constant.name or ""]
            raise Mismatch(reason, full)
        return self._replace(node, value, matched, builder, result)

    def _not_run(self, matched: list[ir.Node], builder: Builder, tools: Tools) -> str:
        """Why the new nodes would have no kernel where the old ones have; empty if they have one."""
        if tools.owner is None:
            return ""
        there = {_kernel(n) for n in matched}
        # Shapes are taken on the host, whoever has the tensor.
        fresh = [n for n in builder.nodes if _kernel(n) not in there and n.op_type not in ("Shape", "Size")]
        if not fresh and self.provider is None:
            return ""
        owners = [tools.owner(n) for n in matched]
        limit = min((o for o in owners if o is not None), default=None)
        for node in fresh if self.provider is None else builder.nodes:
            owner = tools.owner(node)
            if owner is None or (limit is not None and owner > limit):
                return f"no provider that runs the nodes has a kernel for {node.op_type} of {_kernel(node)[2]}"
            if self.provider is not None and owner != self.provider:
                return f"the provider that the rule is for does not run {node.op_type}"
        return ""

    def _replace(
        self, node: ir.Node, value: ir.Value, matched: list[ir.Node], builder: Builder, result: Result
    ) -> list[ir.Node]:
        graph, old = node.graph, node.outputs[0]
        assert isinstance(graph, ir.Graph), "functions are inlined when a model is loaded"
        graph.insert_before(node, builder.nodes)
        name = old.name
        if value.producer() in builder.nodes:
            old.name = f"{name}__replaced"
            value.name = name
            value.type = old.type if old.type is not None else value.type
            value.shape = value.shape if value.shape is not None and value.shape.is_static() else old.shape
        elif old.is_graph_output():
            old.name, value.name = f"{name}__replaced", name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        kept = set(builder.likes.values())
        gone: list[ir.Node] = []
        waiting = list(matched)
        while free := [n for n in waiting if not any(facts.wanted(v) for v in n.outputs)]:
            graph.remove(free, safe=True)  # which frees what only these read
            gone += free
            waiting = [n for n in waiting if n not in free]
        for made, like in builder.likes.items():
            if like in gone:
                made.name = like.name
        why = self.why or self.name
        result.removed += [Removed(n.name or "", n.op_type, why, self.name) for n in gone if n not in kept]
        result.changes += 1
        result.rules[self.name] += 1
        logger.debug("%s at %s: %s", self.name, node.name, why)
        return builder.nodes

    def _miss(self, node: ir.Node, why: Nearest, tools: Tools) -> None:
        key = (self.name, node.name or "")
        known = tools.misses.get(key)
        if known is None or known.fitted < why.fitted:  # several rules may share a name: the nearest counts
            logger.debug("%s did not fire at %s: %s", self.name, node.name, why.reason)
            tools.misses[key] = NearMiss(self.name, node.name or "", why.reason, why.fitted)


class RuleSet:
    """Rules as one transformation: a walk over the graph that tries at each node the rules whose pattern ends in it."""

    name = "RewriteRules"

    def __init__(self, rules: Iterable[RewriteRule]) -> None:
        self.rules: Sequence[RewriteRule] = tuple(rules)
        self._by_root: dict[tuple[str, str], list[RewriteRule]] = {}
        for rule in self.rules:
            self._by_root.setdefault(rule.root, []).append(rule)

    def apply(self, model: ir.Model, tools: Tools) -> Result:
        """Run once over the model. New nodes are tried at once, so a chain needs no second walk."""
        result = Result()
        mine = {rule.name for rule in self.rules}
        for key in [k for k in tools.misses if k[0] in mine]:
            del tools.misses[key]  # what was in the way in an earlier round may be gone
        for graph in facts.all_graphs(model.graph):
            nodes = list(graph)
            left = _REWRITES_PER_NODE * (len(nodes) + 10)
            for node in nodes:
                waiting = [node]
                while waiting and left > 0:
                    made = self._at(waiting.pop(), tools, result)
                    waiting += reversed(made)
                    left -= bool(made)
            if left <= 0:
                logger.warning("rewriting graph %r was stopped: its rules seem to undo one another", graph.name)
        return result

    def _at(self, node: ir.Node, tools: Tools, result: Result) -> list[ir.Node]:
        rules = self._by_root.get((node.domain, node.op_type))
        if not rules or node.graph is None:  # an earlier rule took it
            return []
        # Most rules are out of the question after a look at who made the inputs.
        producers = [v.producer() for v in node.inputs if v is not None]
        reads = {p.op_type for p in producers if p is not None}
        for rule in rules:
            if not rule.reads <= reads:
                continue
            with naming(rule.name):
                made = rule.apply_at(node, tools, result)
            if made is not None:
                return made
        return []


def _parameters(method: Callable[..., Any]) -> list[str]:
    code = getattr(method, "__code__", None)
    odd = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
    if code is None or hasattr(method, "__wrapped__") or code.co_kwonlyargcount or code.co_flags & odd:
        return list(inspect.signature(method).parameters)
    return list(code.co_varnames[inspect.ismethod(method) : code.co_argcount])  # a signature takes 20 times as long


def _kernel(node: ir.Node) -> tuple[str, str, ir.DataType | None]:
    """What decides about the kernel of a node, in general: operator and dtype."""
    return node.domain, node.op_type, facts.dtype(node.inputs[0]) if node.inputs else None


def _not_alike(node: ir.Node, value: ir.Value, builder: Builder) -> str:
    """Why a value cannot take the place of a node's output; empty if it can."""
    old = node.outputs[0]
    if old.is_graph_output() and value.producer() not in builder.nodes and not _can_be_output(value, node):
        return f"{old.name!r} is a graph output, and {value.name!r} cannot take its place"
    if facts.dtype(old) != facts.dtype(value) and None not in (facts.dtype(old), facts.dtype(value)):
        return f"{old.name!r} is {facts.dtype(old)}, its replacement {facts.dtype(value)}"
    one, two = facts.dims(old), facts.dims(value)
    if one is None or two is None:
        return ""
    if len(one) != len(two) or any(a != b for a, b in zip(one, two, strict=True) if None not in (a, b)):
        return f"{old.name!r} has the shape {one}, its replacement {two}"
    return ""


def _all_inside(root: ir.Node, matched: list[ir.Node], fitted: int) -> None:
    inside = set(matched)
    for inner in matched:
        for value in inner.outputs if inner is not root else ():
            if value.is_graph_output():
                raise Mismatch(f"{value.name!r} is a graph output", fitted)
            other = next((user for user, _ in value.uses() if user not in inside), None)
            if other is not None:
                raise Mismatch(f"{value.name!r} is also read by {other.name!r}", fitted)


def _can_be_output(value: ir.Value, node: ir.Node) -> bool:
    """Whether a value that was there before can be a graph output; each of them has a node of its own."""
    producer = value.producer()
    return producer is not None and producer.graph is node.graph and not value.is_graph_output()
