"""The persistent kernels of a provider: which launches become one, and which program has the kernels for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final

from gpurt import logs
from gpurt.device.driver import AddressingDriver, DeviceInfo
from gpurt.device.persistent.part import Part
from gpurt.device.persistent.table import Table
from gpurt.device.persistent.text import Kind, key, merged
from gpurt.errors import EPFail
from gpurt.provider import Step

logger = logs.get(__name__)

FEWEST: Final = 4
"""Launches that are worth a program of their own; kernels that others have built already need not be built again."""

MOST_PROGRAMS: Final = 64


class Programs:
    """Persistent kernels of one device, for the plans of one session.

    A program is built for the kernels of a plan. Plans that come later, for other shapes, use it as far as it has their
    kernels, and launch what it lacks by itself, as long as that is the smaller part.

    Args:
        driver: of the device.
        info: about it.
        program: the program for a key; its text is made only if nobody has the program yet.
    """

    def __init__(
        self, driver: AddressingDriver, info: DeviceInfo, program: Callable[[str, str, Callable[[], str]], Any]
    ) -> None:
        self._driver, self._info, self._program = driver, info, program
        self._known: list[tuple[dict[Kind, int], Any]] = []
        self._failed: set[frozenset[Kind]] = set()
        self._lock = threading.Lock()

    def merged(self, launches: Sequence[Step]) -> Sequence[Step]:
        """The same work in the same order in fewer launches."""
        steps: list[Step] = []
        for kind, group in groupby(launches, lambda s: isinstance(s, Part) and s.kind is not None):
            run = list(group)
            steps += self._stretches([s for s in run if isinstance(s, Part)]) if kind else run
        return steps

    def _stretches(self, parts: Sequence[Part]) -> Iterable[Step]:
        found = self._find([p.kind for p in parts if p.kind is not None])
        if found is None:
            yield from parts
            return
        numbers, program = found
        for has, group in groupby(parts, lambda p: p.kind in numbers):
            run = list(group)
            if not has or len(run) == 1:
                yield from run
                continue
            table = Table(self._driver, program, numbers, run, self._info.compute_units)
            for number, part in enumerate(run):
                part.join(table, number)
            yield table

    def _find(self, kinds: Sequence[Kind]) -> tuple[dict[Kind, int], Any] | None:
        """A program that has most of these kernels, built if none has; None where that is not worth while."""
        with self._lock:
            best = max(self._known, key=lambda known: sum(k in known[0] for k in kinds), default=None)
            if best is not None and 2 * sum(k in best[0] for k in kinds) > len(kinds):
                return best
            distinct = tuple(dict.fromkeys(kinds))
            if len(kinds) < FEWEST or frozenset(distinct) in self._failed:
                return None
            name, made = f"{len(distinct)} kernels", partial(merged, distinct, self._info.dialect)
            try:
                program = self._program(key(distinct), name, made)
            except (EPFail, ValueError) as e:
                logger.warning("%s: kernels are launched one by one: %s", self._info.name, e)
                self._failed.add(frozenset(distinct))
                return None
            found = {k: i for i, k in enumerate(distinct)}, program
            self._known.append(found)
            del self._known[:-MOST_PROGRAMS]
            return found
