"""Selection: the candidates of a unit's open choices are timed one choice after the other, and the winner verified."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from gpurt import logs
from gpurt.device.tuning.choices import Choices, Key, Value
from gpurt.device.tuning.tables import Choice
from gpurt.errors import GpurtError
from gpurt.provider import Refused, UnitPlan
from gpurt.symbolic import NeedsNumbers

logger = logs.get(__name__)

GAIN: Final = 0.03
"""The share of the time that a candidate must save for the default to be given up."""

FINALISTS: Final = 3  # candidates that are timed again, in turns with the default
ROUNDS: Final = 5
HOPELESS: Final = 3.0  # times the best so far, after which a candidate is not timed again
TOLERANCE: Final = {"float32": 1e-3, "float16": 1e-2, "float64": 1e-6}
"""Largest difference from the plain kernel's result, as a share of its largest magnitude; integers must be equal."""


class Prepared(Protocol):
    """A unit's plan that is bound to memory with random content."""

    def seconds(self) -> float:
        """Device time of one run, of several the shortest."""

    def outputs(self) -> Sequence[np.ndarray]:
        """Results, as host arrays."""

    def close(self) -> None:
        """Give the memory back."""


@dataclass(slots=True)
class Tuner:
    """Measures choices that no table knows.

    Args:
        choices: of the device.
        budget: seconds that all measuring may take, builds of kernels included; what comes later stays at defaults.
        keep: called with each choice that was made.
        clock: seconds, ever growing.

    Attributes:
        made: choices made by this tuner, in order.
        spent: seconds taken so far.
        ended: whether the budget ended before something was measured.
    """

    choices: Choices
    budget: float
    keep: Callable[[Choice], None]
    clock: Callable[[], float] = time.perf_counter
    made: list[Choice] = field(default_factory=list)
    spent: float = 0.0
    ended: bool = False

    def tune(self, plan: Callable[[], UnitPlan], prepare: Callable[[UnitPlan], Prepared], name: str) -> None:
        """Make the open choices of a unit.

        Args:
            plan: plans the unit; it asks the choices.
            prepare: binds a plan; equal inputs at every call.
            name: of the unit, for the log.
        """
        start = self.clock()
        try:
            self._tune(plan, prepare, name, start)
        finally:
            self.spent += self.clock() - start

    def _left(self, start: float) -> bool:
        if self.spent + self.clock() - start < self.budget:
            return True
        if not self.ended:
            logger.info("tuning: the budget of %g s is spent; what is still open keeps its defaults", self.budget)
            self.ended = True
        return False

    def _tune(
        self, plan: Callable[[], UnitPlan], prepare: Callable[[UnitPlan], Prepared], name: str, start: float
    ) -> None:
        done: dict[Key, Value] = {}
        expected: Sequence[np.ndarray] | None = None
        while True:
            with self.choices.trying(done) as trial:
                plan()
            known = self.choices.exact
            key = next((k for k in trial.seen if k not in done and known(k) is None), None)
            if key is None or not self._left(start):
                return
            candidates, default = trial.seen[key]
            try:
                expected = self._results(plan, prepare) if expected is None else expected
            except (GpurtError, MemoryError) as e:
                logger.info("tuning: %s cannot be measured: %s", name, e)
                return
            contest = _Contest(self, plan, prepare, done, key, expected)
            choice = contest.decide(candidates, default, lambda: self._left(start))
            if choice is None:
                return
            done[key] = choice.value
            gain = choice.default_seconds / choice.seconds
            logger.info(
                "tuning: %s: %s %s %s: %s, %.3f ms, %.2f times as fast as the default %s",
                name, *key, choice.value, 1e3 * choice.seconds, gain, default,
            )  # fmt: skip
            self.made.append(choice)
            self.keep(choice)

    def _results(self, plan: Callable[[], UnitPlan], prepare: Callable[[UnitPlan], Prepared]) -> Sequence[np.ndarray]:
        """Of the plain kernels: every choice at its first candidate."""
        with self.choices.trying({}, plain=True):
            prepared = prepare(plan())
        try:
            prepared.seconds()
            return prepared.outputs()
        finally:
            prepared.close()


@dataclass(slots=True)
class _Contest:
    """One choice's candidates against each other."""

    tuner: Tuner
    plan: Callable[[], UnitPlan]
    prepare: Callable[[UnitPlan], Prepared]
    done: dict[Key, Value]
    key: Key
    expected: Sequence[np.ndarray]

    def decide(self, candidates: Sequence[Value], default: Value, left: Callable[[], bool]) -> Choice | None:
        """The winner; None where not even the default could be timed, or the budget ended before a second one."""
        times: dict[Value, float] = {}
        best = math.inf
        for candidate in dict.fromkeys((default, *candidates)):
            if times and not left():
                return None
            seconds = self._time(candidate, best)
            if seconds is None:
                if candidate == default:
                    return None
                continue
            times[candidate] = seconds
            best = min(best, seconds)
        ranked = sorted(times, key=lambda v: times[v])[:FINALISTS]
        finalists = dict.fromkeys((default, *ranked))
        self._final(finalists, times)
        winner = min(finalists, key=lambda v: times[v])
        if times[winner] > (1 - GAIN) * times[default]:
            winner = default
        return Choice(self.key, winner, times[winner], times[default])

    def _bound(self, candidate: Value) -> Prepared:
        with self.tuner.choices.trying({**self.done, self.key: candidate}):
            return self.prepare(self.plan())

    def _time(self, candidate: Value, best: float) -> float | None:
        """Seconds of a candidate whose result is right; None for others."""
        try:
            prepared = self._bound(candidate)
        except (GpurtError, Refused, NeedsNumbers, MemoryError) as e:
            logger.info("tuning: %s %s: candidate %s cannot run: %s", *self.key[:2], candidate, e)
            return None
        try:
            seconds = prepared.seconds()
            wrong = difference(self.expected, prepared.outputs())
            if wrong:
                logger.warning("tuning: %s %s: candidate %s is left out: %s", *self.key[:2], candidate, wrong)
                return None
            return min(seconds, prepared.seconds()) if seconds < HOPELESS * best else seconds
        finally:
            prepared.close()

    def _final(self, finalists: dict[Value, None], times: dict[Value, float]) -> None:
        """Time them again in turns, as the device's clock drifts."""
        if len(finalists) < 2:
            return
        bound: list[tuple[Value, Prepared]] = []
        try:
            for value in finalists:
                bound.append((value, self._bound(value)))  # noqa: PERF401 - those that were bound are to be closed
            fresh = dict.fromkeys(finalists, math.inf)
            for _ in range(ROUNDS):
                for value, prepared in bound:
                    fresh[value] = min(fresh[value], prepared.seconds())
            times.update(fresh)
        except (GpurtError, MemoryError) as e:
            logger.info("tuning: %s %s: finalists do not fit beside each other: %s", *self.key[:2], e)
        finally:
            for _, prepared in bound:
                prepared.close()


def difference(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> str:
    """Why results are not the same; empty where they are within TOLERANCE."""
    for i, (e, a) in enumerate(zip(expected, actual, strict=True)):
        tolerance = TOLERANCE.get(e.dtype.name)
        if tolerance is None or not e.size:
            if not np.array_equal(e, a):
                return f"output {i} differs from the plain kernel's"
            continue
        wide, other = e.astype(np.float64), a.astype(np.float64)
        if not np.array_equal(np.isfinite(wide), np.isfinite(other)):
            return f"output {i} is not finite where the plain kernel's is, or the reverse"
        finite = np.isfinite(wide)
        scale = float(np.abs(wide[finite]).max(initial=1e-30))
        error = float(np.abs(wide[finite] - other[finite]).max(initial=0.0)) / scale
        if error > tolerance:
            return f"output {i} differs from the plain kernel's by {error:.1e} of its largest value"
    return ""
