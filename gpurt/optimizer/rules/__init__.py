"""The rewrite rules, by the operator that they end in; each module lists its own in ``rules()``."""

from __future__ import annotations

from functools import cache

from gpurt.optimizer import identities
from gpurt.optimizer.rewrite import RewriteRule
from gpurt.optimizer.rules import (
    activation,
    attention,
    batch_norm,
    conv,
    decoder,
    elementwise,
    gemm,
    group_norm,
    integers,
    norm,
    quantize,
    reshape,
    transpose,
)


@cache
def all_rules() -> tuple[RewriteRule, ...]:
    """All rules, in the order in which they are tried at a node: what goes away first, then what becomes another.

    They keep nothing of a model, so all sessions share them.
    """
    modules = (
        identities,
        reshape,
        transpose,
        elementwise,
        conv,
        batch_norm,
        gemm,
        activation,
        norm,
        group_norm,
        attention,
        decoder,
        quantize,
        integers,
    )
    return tuple(rule for module in modules for rule in module.rules())
