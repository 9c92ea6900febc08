"""What is folded once more after partitioning: function bodies bring shape arithmetic over shapes that are known.

Only transformations that make no new node may run here, as every node has its provider by now.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from gpurt.loader import Names
from gpurt.optimizer.dead import DeadCode
from gpurt.optimizer.fold import ConstantFolding, StaticShapes
from gpurt.optimizer.identities import CastElimination, EliminateDropout, EliminateIdentity
from gpurt.optimizer.rewrite import RuleSet
from gpurt.optimizer.transformer import Evaluate, GraphTransformer, Removed, Tools, run

_ROUNDS = 4


def settle(model: ir.Model, evaluate: Evaluate, names: Names, disabled: Iterable[str] = ()) -> list[Removed]:
    """Fold what function bodies left to fold, until nothing changes."""
    off = set(disabled)
    rules = RuleSet(r for r in (EliminateIdentity(), EliminateDropout(), CastElimination()) if r.name not in off)
    passes: list[GraphTransformer] = [StaticShapes(), rules, ConstantFolding(), DeadCode()]
    return run(model, [p for p in passes if p.name not in off], Tools(names, evaluate), _ROUNDS).removed
