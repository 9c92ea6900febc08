"""What lowerings ask for parameters of kernels: found in tables, else the default; and trials that say otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gpurt import logs
from gpurt.symbolic import Size

if TYPE_CHECKING:
    from gpurt.device.tuning.tables import Table

logger = logs.get(__name__)

Value = int | str | tuple[int, ...]
"""A candidate: a number, a name, or several numbers, as JSON keeps them."""

V = TypeVar("V", bound=Value)


class Key(NamedTuple):
    """What a choice depends on.

    Attributes:
        family: the kernels and the parameter, for example ``gemm.tile``.
        kind: what else must be equal: dtype, epilogue; separated by spaces.
        sizes: numbers that may differ a little between a problem that was measured and one that takes its result.
    """

    family: str
    kind: str
    sizes: tuple[int, ...]


@dataclass(slots=True)
class Trial:
    """Answers for one planning of a unit.

    Attributes:
        forced: answers by key; others come from the tables by exact key, else they are the default.
        plain: every answer is the first candidate.
        seen: the choices that were asked for: candidates and default.
    """

    forced: Mapping[Key, Value]
    plain: bool = False
    seen: dict[Key, tuple[tuple[Value, ...], Value]] = field(default_factory=dict)


class Choices:
    """Parameters of kernels for one device.

    Args:
        tables: in the order in which they are asked; an exact match in any is before a near one in the first.

    Attributes:
        hits, near, misses: choices found for the very sizes, for sizes nearby, and not found.
    """

    def __init__(self, tables: Sequence[Table] = ()) -> None:
        self.tables = list(tables)
        self.hits = self.near = self.misses = 0
        self._local = threading.local()

    def choose(self, key: Key, candidates: Sequence[V], default: V) -> V:
        """The candidate to use. Sizes that are symbolic get the default, as one plan serves many of them.

        Args:
            key: what the choice depends on.
            candidates: all that are right here, the plainest first: the others' results are verified against its.
            default: what a heuristic says; it need not be among the candidates.
        """
        if len(candidates) < 2 or any(isinstance(s, Size) for s in key.sizes):
            return default
        trial: Trial | None = getattr(self._local, "trial", None)
        if trial is None:
            return self._found(key, candidates, default)
        trial.seen[key] = (tuple(candidates), default)
        if trial.plain:
            return candidates[0]
        value = trial.forced[key] if key in trial.forced else self.exact(key)
        return next((c for c in candidates if c == value), default)

    def exact(self, key: Key) -> Value | None:
        """What the tables hold for the very key."""
        for table in self.tables:
            value = table.exact(key)
            if value is not None:
                return value
        return None

    def _found(self, key: Key, candidates: Sequence[V], default: V) -> V:
        if not self.tables:
            return default
        how, value = "for these sizes", self.exact(key)
        if value is None or value not in candidates:
            how, value = "for sizes nearby", self._nearest(key, candidates)
        if value is None:
            self.misses += 1
            logger.debug("tuning: %s %s %s: nothing known, default %s", *key, default)
            return default
        if how == "for these sizes":
            self.hits += 1
        else:
            self.near += 1
        logger.debug("tuning: %s %s %s: %s %s", *key, value, how)
        return next(c for c in candidates if c == value)

    def _nearest(self, key: Key, candidates: Sequence[Value]) -> Value | None:
        found = (table.nearest(key, candidates) for table in self.tables)
        return next((value for value in found if value is not None), None)

    @contextmanager
    def trying(self, forced: Mapping[Key, Value], *, plain: bool = False) -> Iterator[Trial]:
        """A trial for what this thread plans inside the block."""
        trial = self._local.trial = Trial(forced, plain)
        try:
            yield trial
        finally:
            self._local.trial = None


HEURISTICS = Choices()
"""Of devices that nobody tuned: every answer is the default."""
