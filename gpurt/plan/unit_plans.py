"""Plans of single units, kept beyond the plan of the graph that they were made for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from gpurt.plan.sizes import sized
from gpurt.provider import DeviceUnit, UnitPlan
from gpurt.spec import SizedSpec, Spec
from gpurt.symbolic import NeedsNumbers, pinned

_SMALL: Final = 256  # bytes of content that a key holds itself


class UnitPlans:
    """Plans of units for the specs that they were made for: most units see nothing of a size that changes."""

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._plans: OrderedDict[Any, tuple[UnitPlan, Any]] = OrderedDict()

    def plan(self, unit: DeviceUnit, specs: Sequence[Spec | None]) -> UnitPlan:
        """The unit's plan. Raises Refused or Unknown."""
        key = _key(unit, specs)
        if key is None:
            return _over_sizes(unit, specs)
        found = self._plans.get(key)
        if found is None:
            found = self._plans[key] = unit.plan(specs), (unit, specs)
            if len(self._plans) > self._most:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(key)
        return found[0]


def _key(unit: DeviceUnit, specs: Sequence[Spec | None]) -> Any:
    """Unit, shapes, types, and content: by its bytes where it is small, else by the array, which the entry keeps."""
    if any(map(sized, specs)):
        return None
    parts: list[Any] = [id(unit)]
    for s in specs:
        if s is None:
            parts.append(None)
        elif s.const is None:
            parts.append((s.dtype, s.shape))
        else:
            content = s.const.tobytes() if s.const.nbytes <= _SMALL else id(s.const)
            parts.append((s.dtype, s.shape, content))
    return tuple(parts)


def _over_sizes(unit: DeviceUnit, specs: Sequence[Spec | None]) -> UnitPlan:
    """A unit's plan: with symbolic sizes where the unit takes them, else with their numbers."""
    if getattr(unit, "symbolic", False):
        # Content that a unit reads on the device is no business of its plan.
        given = [
            Spec(s.dtype, s.shape) if isinstance(s, SizedSpec) and i not in unit.host_inputs else s
            for i, s in enumerate(specs)
        ]
        try:
            return unit.plan(given)
        except NeedsNumbers:
            pass
    return unit.plan([None if s is None else Spec(s.dtype, pinned(s.shape), s.const) for s in specs])
