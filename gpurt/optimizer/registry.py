"""Which optimizations there are: gpurt's own, those of plug-ins, those of a session; and the call that runs them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from typing import Any, Final

import onnx_ir as ir

from gpurt import logs
from gpurt.errors import InvalidArgument
from gpurt.loader import Names
from gpurt.optimizer import facts
from gpurt.optimizer.cse import CommonSubexpressionElimination, ConstantSharing
from gpurt.optimizer.dead import DeadCode
from gpurt.optimizer.fold import ConstantBranches, ConstantFolding, StaticShapes
from gpurt.optimizer.inference import ShapeInference
from gpurt.optimizer.loops import LoopInvariants
from gpurt.optimizer.owner import Owners
from gpurt.optimizer.projections import PackedProjections
from gpurt.optimizer.recurrent import RecurrentLoopFusion
from gpurt.optimizer.rewrite import RewriteRule, RuleSet
from gpurt.optimizer.rules import all_rules
from gpurt.optimizer.shapes import ShapeArithmetic
from gpurt.optimizer.symbols import forget_made
from gpurt.optimizer.transformer import Evaluate, GraphTransformer, Kind, Report, Tools, check_names, level_of, run
from gpurt.options import GraphOptimizationLevel
from gpurt.provider import Provider

logger = logs.get(__name__)

GROUP: Final = "gpurt.transformers"
"""Entry points of plug-ins: a GraphTransformer or RewriteRule, its class, or a function that returns several."""


AFTER_PLACEMENT: Final = ("ChannelsLast",)
"""Optimizations that run when nodes have their providers (gpurt.layout); disabled_optimizers may name them too."""


def transformers(
    extra: Iterable[Any] = (), *, plugins: bool = True
) -> tuple[list[GraphTransformer], list[RewriteRule]]:
    """All global transformations and all rules, in the order in which they run; the caller's last.

    Raises InvalidArgument for what is neither.
    """
    # Fresh ones each time: folding counts what it has spent.
    own: list[Any] = [StaticShapes(), ShapeArithmetic(), ConstantFolding(), ConstantBranches()]
    own += [LoopInvariants(), RecurrentLoopFusion(), PackedProjections()]
    own += all_rules()
    added = [*(_plugins() if plugins else ()), *(made for item in extra for made in instances(item))]
    rules = [t for t in (*own, *added) if isinstance(t, RewriteRule)]
    passes = [t for t in (*own, *added) if not isinstance(t, RewriteRule)]
    return [*passes, ShapeInference(), ConstantSharing(), CommonSubexpressionElimination(), DeadCode()], rules


def instances(item: Any) -> list[Any]:
    """Transformations from what a user or plug-in gives: one, the class of one, or a sequence of either."""
    if isinstance(item, Sequence) and not isinstance(item, str):
        return [made for entry in item for made in instances(entry)]
    made = item() if isinstance(item, type) else item
    if isinstance(made, RewriteRule) or (isinstance(made, GraphTransformer) and isinstance(made.name, str)):
        return [made]
    raise InvalidArgument(
        f"{item!r} is no transformation",
        remedy="Give a gpurt.optimizer.RewriteRule, or an object with a name and apply(model, tools)",
    )


def optimize(
    model: ir.Model,
    level: GraphOptimizationLevel,
    evaluate: Evaluate,
    names: Names | None = None,
    *,
    disabled: Iterable[str] = (),
    extra: Iterable[Any] = (),
    providers: Sequence[Provider] | None = None,
) -> Report:
    """Optimize a model in place.

    Args:
        model: in canonical form.
        level: which optimizations run; none for disable_all, not even those in ``extra``.
        evaluate: computes a node on the host, for folding.
        names: the model's names, ``LoadedModel.names``.
        disabled: names of optimizations that shall not run, global ones and rules alike.
        extra: transformations and rules of the caller, run after gpurt's own.
        providers: those of the session, in priority order: their own transformations run too, and rules that make
            another operator ask them whether they have a kernel for it. None to optimize for no one in particular.

    Raises:
        InvalidArgument: a name in ``disabled`` does not exist, or something in ``extra`` is no transformation.
        Fail: a transformation failed; names it.
    """
    passes, rules = transformers((*_brought(providers or ()), *extra))
    off = frozenset(disabled)
    check_names(off, [*(p.name for p in passes), *(r.name for r in rules), RuleSet.name, *AFTER_PLACEMENT])
    if level == GraphOptimizationLevel.ORT_DISABLE_ALL:
        return Report([], [])
    chosen = [r for r in rules if r.name not in off and level_of(r) <= level]
    position = next(i for i, p in enumerate(passes) if isinstance(p, ShapeInference))
    order = [*passes[:position], RuleSet(chosen), *passes[position:]]
    owner = Owners(providers) if providers is not None else None
    integers = {i: frozenset(p.prefers_integers) for i, p in enumerate(providers or ()) if p.prefers_integers}
    tools = Tools(names if names is not None else Names.of(model), evaluate, owner, integers)
    report = run(model, [p for p in order if p.name not in off and level_of(p) <= level], tools)
    for graph in facts.all_graphs(model.graph):
        for value in (v for node in graph for v in node.outputs):
            forget_made(value)
    logger.debug("optimization removed %d nodes in %d rounds", len(report.removed), report.rounds)
    return report


def _brought(providers: Sequence[Provider]) -> list[Any]:
    """Transformations of the session's providers, each marked as its provider's."""
    found: list[Any] = []
    for position, provider in enumerate(providers):
        for made in instances(list(provider.transformers())):
            made.kind = Kind.PROVIDER
            if isinstance(made, RewriteRule):
                made.provider = position
            found.append(made)
    return found


def _plugins() -> list[Any]:
    """Transformations of installed packages; one that is broken is left out with a warning."""
    found: list[Any] = []
    for entry in entry_points(group=GROUP):
        try:
            loaded = entry.load()
            made = instances(loaded if isinstance(loaded, type) or not callable(loaded) else loaded())
        except Exception as e:  # noqa: BLE001 - a plug-in may raise anything, and must not keep models from loading
            logger.warning("transformation %r of a plug-in is left out: %s: %s", entry.name, type(e).__name__, e)
            continue
        found += made
    return found
