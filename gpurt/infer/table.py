"""The table that maps an operator to its rule, and the checks around a call of a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpurt.graph.view import NodeView
from gpurt.spec import Spec, Unknown

Inputs = Sequence[Spec | None]
Rule = Callable[[NodeView, Inputs], Sequence[Spec]]

_RULES: dict[tuple[str, str], Rule] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule for operators: ``(node, input specs) -> output specs``, one for each output there can be.

    A rule raises :class:`gpurt.spec.Unknown` when it needs the content of an input whose ``const`` is None, and
    ValueError naming the mismatch when the shapes do not fit the operator.
    """

    def register(fn: Rule) -> Rule:
        for op_type in op_types:
            _RULES[domain, op_type] = fn
        return fn

    return register


def known(node: NodeView) -> bool:
    """Whether there is a rule for this operator."""
    _load()
    return (node.domain, node.op_type) in _RULES


def infer(node: NodeView, inputs: Inputs) -> list[Spec]:
    """Specs of all outputs of a node.

    Raises:
        Unknown: the shape depends on content that is not known, or there is no rule for the operator.
        ValueError: the input shapes do not fit the operator.
    """
    _load()
    fn = _RULES.get((node.domain, node.op_type))
    if fn is None:
        raise Unknown(f"{node.op} has no shape rule")
    return list(fn(node, inputs))


def _load() -> None:
    # The rule modules register themselves; they are imported on first use so that `import gpurt` stays light.
    from gpurt.infer import rules  # noqa: F401
