"""The table of upgrade rules: for an operator and the newest opset with the old form, how to rewrite a node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from gpurt.loader.upgrade.site import Site

RuleFn = Callable[[Site], None]


class Rule(NamedTuple):
    """One rewrite: applies to nodes of an opset up to and including ``upto``."""

    upto: int
    types: bool
    fn: RuleFn


RULES: dict[tuple[str, str], list[Rule]] = defaultdict(list)
LEGACY: set[tuple[str, str]] = set()


def upgrade(
    *op_types: str, upto: int, domain: str = "", types: bool = False, legacy: bool = False
) -> Callable[[RuleFn], RuleFn]:
    """Register a rule for operators.

    Rules of an operator run from the oldest form to the newest, each on what the one before left, until the node is
    gone or another operator.

    Args:
        op_types: operators concerned.
        upto: newest opset whose form the rule rewrites.
        domain: domain of the operators.
        types: whether the rule does better where dtypes and ranks are known; shape inference then runs before it.
        legacy: whether ONNX once had the operator as an experiment, without a schema today.
    """

    def register(fn: RuleFn) -> RuleFn:
        for op_type in op_types:
            rules = RULES[domain, op_type]
            rules.append(Rule(upto, types, fn))
            rules.sort(key=lambda rule: rule.upto)
            if legacy:
                LEGACY.add((domain, op_type))
        return fn

    return register
