"""What a transformation of the graph is, which ones there are, and the loop that runs them until nothing changes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Protocol, runtime_checkable

import onnx_ir as ir

from gpurt import logs
from gpurt.errors import Fail, GpurtError, InvalidArgument, suggest
from gpurt.graph.view import NodeView
from gpurt.loader import Names
from gpurt.optimizer import facts
from gpurt.options import GraphOptimizationLevel

logger = logs.get(__name__)

Evaluate = Callable[[NodeView, Sequence[Any]], Sequence[Any] | None]
"""Computes a node on the host: inputs in, outputs out; None where no kernel can."""

ROUNDS: Final = 10  # ONNX Runtime's number; what still changes then is left as it is


class Kind(StrEnum):
    """What a transformation is for.

    Attributes:
        REQUIRED: without it the model does not run: casts and copies between devices. Nobody can switch these off.
        GENERAL: serves every provider.
        PROVIDER: serves the provider that brought it, on nodes which that provider runs.
    """

    REQUIRED = "required"
    GENERAL = "general"
    PROVIDER = "provider"


@dataclass(frozen=True, slots=True)
class Removed:
    """A node that an optimization took out, why, and which optimization it was."""

    name: str
    op_type: str
    why: str
    by: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """A transformation or rule that changed the graph.

    Attributes:
        name: what it is switched off by.
        kind: what it is for.
        level: from which level on it runs.
        changes: how often it changed something.
    """

    name: str
    kind: Kind
    level: GraphOptimizationLevel
    changes: int


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A rule that fitted a place in the graph in part.

    Attributes:
        rule: name of the rule.
        node: name of the node that its pattern ends in.
        reason: what was in the way.
        fitted: how many nodes did fit; one more than the pattern has where only its condition was in the way.
    """

    rule: str
    node: str
    reason: str
    fitted: int = 0


@dataclass(slots=True)
class Result:
    """What one run of a transformation did.

    Attributes:
        removed: the nodes it took out.
        changes: how often it changed anything.
        rules: of a set of rules, how often each fired, by the rule's name.
    """

    removed: list[Removed] = field(default_factory=list)
    changes: int = 0
    rules: Counter[str] = field(default_factory=Counter)

    def remove(self, node: ir.Node, why: str) -> None:
        """Take a node out of its graph and note it."""
        assert node.graph is not None, "a removed node was in a graph"
        node.graph.remove(node, safe=True)
        facts.release(node)
        self.removed.append(Removed(node.name or "", node.op_type, why))
        self.changes += 1


@dataclass(slots=True)
class Tools:
    """What transformations are given besides the model.

    Attributes:
        names: names for new values and nodes.
        evaluate: computes a node on the host.
        owner: a node -> position of the first provider of the session that has a kernel for it, or None; itself None
            where the model is optimized for no provider in particular.
        integers: position of a provider -> operators that it wants on quantized numbers as they are.
        fold_bytes: largest constant that folding may make; a larger one is left for the run.
        fold_total: bytes of all constants that folding may make.
        fold_seconds: time that folding may take in all; what is not folded then is left for the run.
        misses: where rules almost fired, by rule and node.
    """

    names: Names
    evaluate: Evaluate
    owner: Callable[[ir.Node], int | None] | None = None
    integers: Mapping[int, frozenset[str]] = field(default_factory=dict)
    fold_bytes: int = 512 << 20
    fold_total: int = 2 << 30
    fold_seconds: float = 30.0
    misses: dict[tuple[str, str], NearMiss] = field(default_factory=dict)


@runtime_checkable
class GraphTransformer(Protocol):
    """A global transformation: edits all graphs of a model in place.

    It may have the attributes ``level``, the GraphOptimizationLevel from which on it runs (basic if it has none), and
    ``kind`` (general if it has none). It must
    leave graph inputs and the names of graph outputs as they are, and give new nodes names, versions and dtypes; a
    :class:`~gpurt.optimizer.rewrite.RewriteRule` gets all of this done for it.
    """

    name: str

    def apply(self, model: ir.Model, tools: Tools) -> Result:
        """Run once over the model."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the optimizer did: removed nodes with reasons, where rules almost fired, and what changed anything."""

    removed: list[Removed]
    misses: list[NearMiss]
    rounds: int = 0
    applied: list[Applied] = field(default_factory=list)


def run(model: ir.Model, transformers: Sequence[GraphTransformer], tools: Tools, rounds: int = ROUNDS) -> Report:
    """Run transformations in order, again and again, until a round changes nothing.

    Raises Fail, naming the transformation, where one of them raises anything but gpurt's own errors.
    """
    removed: list[Removed] = []
    done = 0
    changes: Counter[str] = Counter()
    # A transformation that changed nothing since the model last changed need not look again.
    quiet: set[int] = set()
    while done < rounds and len(quiet) < len(transformers):
        done += 1
        for position, transformer in enumerate(transformers):
            if position in quiet:
                continue
            start = time.perf_counter()
            with naming(transformer.name):
                result = transformer.apply(model, tools)
            took = time.perf_counter() - start
            if result.changes:
                quiet.clear()
                logger.debug("%s: %d changes in %.1f ms", transformer.name, result.changes, 1e3 * took)
            # Its own changes may have made more room for it, so only a run without any lets it rest.
            else:
                quiet.add(position)
            changes.update(result.rules or {transformer.name: result.changes})
            removed += [r if r.by else replace(r, by=transformer.name) for r in result.removed]
    if len(quiet) < len(transformers):
        logger.debug("the graph still changed after %d rounds", rounds)
    known = {t.name: t for t in (*transformers, *(r for t in transformers for r in getattr(t, "rules", ())))}
    applied = [Applied(n, kind_of(known[n]), level_of(known[n]), c) for n, c in changes.items() if c]
    return Report(removed, list(tools.misses.values()), done, applied)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn what an optimization raises, unless it is one of gpurt's own errors, into a Fail that names it."""
    try:
        yield
    except GpurtError:
        raise
    except Exception as e:
        raise Fail(
            f"optimization {name!r} failed: {type(e).__name__}: {e}",
            remedy=f"Switch it off with SessionOptions(disabled_optimizers=[{name!r}]) and report it",
        ) from e


def kind_of(item: Any) -> Kind:
    """What a transformation or a rule is for."""
    return Kind(getattr(item, "kind", Kind.GENERAL))


def level_of(item: Any) -> GraphOptimizationLevel:
    """Level from which on a transformation or a rule runs."""
    return GraphOptimizationLevel(getattr(item, "level", GraphOptimizationLevel.ORT_ENABLE_BASIC))


def check_names(disabled: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names of optimizations that do not exist, with a suggestion."""
    known = sorted(set(known))
    for name in disabled:
        if name not in known:
            raise InvalidArgument(
                f"disabled_optimizers names {name!r}, which is no optimization{suggest(str(name), known)}",
                remedy=f"There are {', '.join(known)}",
            )
