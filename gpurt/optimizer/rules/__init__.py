"""The rewrite rules, by the operator that they end in; each module lists its own in ``rules()``."""

from __future__ import annotations

from gpurt.optimizer import identities
from gpurt.optimizer.rewrite import RewriteRule
from gpurt.optimizer.rules import conv, elementwise, gemm, norm, quantize, reshape, transpose


def all_rules() -> list[RewriteRule]:
    """All rules, in the order in which they are tried at a node: what goes away first, then what becomes another."""
    modules = (identities, reshape, transpose, elementwise, conv, gemm, norm, quantize)
    return [rule for module in modules for rule in module.rules()]
