"""Provider-neutral transformations of the graph, before it is partitioned.

``transformer`` says what a global transformation is, ``rewrite`` what a rule is; ``registry`` knows which there are.
"""

from gpurt.optimizer import facts
from gpurt.optimizer.registry import optimize, transformers
from gpurt.optimizer.rewrite import MatchResult, RewriteRule, RuleSet
from gpurt.optimizer.transformer import (
    Applied,
    Evaluate,
    GraphTransformer,
    Kind,
    NearMiss,
    Removed,
    Report,
    Result,
    Tools,
)

__all__ = [
    "Applied",
    "Evaluate",
    "GraphTransformer",
    "Kind",
    "MatchResult",
    "NearMiss",
    "Removed",
    "Report",
    "Result",
    "RewriteRule",
    "RuleSet",
    "Tools",
    "facts",
    "optimize",
    "transformers",
]
