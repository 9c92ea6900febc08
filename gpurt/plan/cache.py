"""The plans of a session: the least recently used go first, by number at each point and by bytes in all."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from itertools import count

from gpurt.plan.plan import Plan


class PlanCache:
    """All plans of all graph levels.

    Args:
        most: plans kept for each point where a plan can begin.
        nbytes: bytes of device memory that plans may hold together, those in use included; 0 for no limit. The newest
            plan stays, however large.
    """

    def __init__(self, most: int, nbytes: int) -> None:
        self.most = most
        self.nbytes = nbytes
        self.crowded = False  # whether more is held than allowed, because runs were using it when that was looked at
        self._points: list[Point] = []
        self._clock = count()
        self._lock = threading.Lock()

    def point(self) -> Point:
        """A new point where plans can begin."""
        with self._lock:
            self._points.append(Point(self))
            return self._points[-1]

    def held(self) -> int:
        """Bytes of device memory that the plans hold."""
        with self._lock:
            return sum(plan.held() for point in self._points for plan in point.by_signature.values())

    def get(self, point: Point, signature: Hashable) -> Plan | None:
        """The plan for a signature, which is now the most recently used; None if there is none."""
        with self._lock:
            plan = point.by_signature.get(signature)
            if plan is not None:
                point.by_signature.move_to_end(signature)
                plan.used = next(self._clock)
            return plan

    def add(self, point: Point, signature: Hashable, plan: Plan) -> None:
        """Keep a plan, and let go of those that are beyond the limits then."""
        with self._lock:
            plan.used = next(self._clock)
            point.by_signature[signature] = plan
            while len(point.by_signature) > self.most:
                self._let_go(point.by_signature.popitem(last=False)[1], plan)
            self._trim(plan)

    def trim(self) -> None:
        """Let go of plans until the limit on bytes is kept: runs of several threads need more memory than one."""
        with self._lock:
            self._trim(None)

    def clear(self) -> None:
        """Let go of all plans."""
        with self._lock:
            for point in self._points:
                for plan in point.by_signature.values():
                    self._let_go(plan, None)
                point.by_signature.clear()

    def release(self) -> None:
        """Let go of all device memory of plans that is idle; the plans stay, and take memory anew when they run."""
        with self._lock:
            for point in self._points:
                for plan in point.by_signature.values():
                    plan.trim()

    def _let_go(self, plan: Plan, heir: Plan | None) -> None:
        if heir is not None:
            heir.inherit(plan)
        plan.retire()

    def _trim(self, coming: Plan | None) -> None:
        if not self.nbytes:
            return
        oldest = sorted(
            (
                (plan.used, point, signature, plan)
                for point in self._points
                for signature, plan in point.by_signature.items()
            ),
            key=lambda entry: entry[0],
        )
        held = sum(plan.held() for *_, plan in oldest) + (coming.nbytes if coming else 0)
        self.crowded = False
        for _, point, signature, plan in oldest[:-1]:
            if held <= self.nbytes:
                return
            held -= plan.held()
            del point.by_signature[signature]
            self._let_go(plan, coming)
        if held > self.nbytes and oldest:
            plan = oldest[-1][-1]
            plan.trim(1)  # it is the only plan left: what several threads needed goes
            self.crowded = plan.held() > max(self.nbytes, plan.nbytes)


class Point:
    """Where plans can begin: a position in a graph level."""

    def __init__(self, cache: PlanCache) -> None:
        self._cache = cache
        self.by_signature: OrderedDict[Hashable, Plan] = OrderedDict()

    def get(self, signature: Hashable) -> Plan | None:
        """See PlanCache.get."""
        return self._cache.get(self, signature)

    def add(self, signature: Hashable, plan: Plan) -> None:
        """See PlanCache.add."""
        self._cache.add(self, signature, plan)

    def __iter__(self) -> Iterator[Plan]:
        return iter(list(self.by_signature.values()))
