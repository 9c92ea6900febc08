"""A device's tuning as its provider's options want it: off, from tables, or measured when a shape is first planned."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gpurt import caches, logs
from gpurt.device.tuning.bench import Bench
from gpurt.device.tuning.choices import Choices
from gpurt.device.tuning.tables import VERSION, Choice, Table, facts, package_tables, read_tables, write_tables
from gpurt.device.tuning.tuner import Tuner
from gpurt.errors import InvalidArgument, NoSuchFile, suggest
from gpurt.graph.view import NodeView
from gpurt.options import TUNING
from gpurt.provider import DeviceMemory, DeviceUnit, HostUnit, UnitPlan
from gpurt.spec import Spec

if TYPE_CHECKING:
    from gpurt.device.driver import DeviceInfo

logger = logs.get(__name__)

TUNING_OPTIONS: Final[Mapping[str, str]] = {
    "tuning": "off, cached or online: where kernels' parameters are from; default: SessionOptions'",
    "tuning_budget": "seconds that measuring may take; default: SessionOptions'",
    "tuning_file": "a file of gpurt tune, asked after the cache; default: SessionOptions'",
}

_LOCK = threading.Lock()


class Tuning:
    """The tables, the cache file and, where wanted, the tuner of one session's device.

    Args:
        info: the device.
        mode: off, cached or online.
        folder: of all caches; None keeps nothing.
        extra: tables of the application's file.
        budget: seconds for measuring.

    Attributes:
        choices: what lowerings ask.
        tuner: measures open choices; None unless online.
        path: the cache file of the device; None where nothing is kept.
        own: the cache file's table.
    """

    def __init__(
        self, info: DeviceInfo, mode: str, folder: Path | None, extra: Sequence[Table] = (), budget: float = 30.0
    ) -> None:
        self.own = Table(facts(info), source="measured by gpurt")
        self.path = None if folder is None else folder / f"tuning-{_digest(info)}.json"
        tables: list[Table] = []
        if mode != "off":
            self._read(info)
            tables = [self.own, *(t for t in (*extra, *package_tables()) if t.fits(info))]
        self.choices = Choices(tables)
        self.tuner = Tuner(self.choices, budget, self._keep) if mode == "online" else None

    def units(self, memory: DeviceMemory, units: Sequence[HostUnit | DeviceUnit]) -> Sequence[HostUnit | DeviceUnit]:
        """Units that make their open choices when they are planned; the units themselves unless online."""
        if self.tuner is None:
            return units
        return [TunedUnit(memory, self.tuner, u) if hasattr(u, "plan") else u for u in units]

    def _read(self, info: DeviceInfo) -> None:
        if self.path is None:
            return
        try:
            for table in read_tables(self.path):
                if table.fits(info):
                    self.own.choices.update(table.choices)
            logger.info("tuning: %d choices from %s", len(self.own.choices), self.path)
        except FileNotFoundError:
            logger.info("tuning: nothing is kept for this device yet (%s)", self.path)
        except (InvalidArgument, OSError) as e:
            logger.warning("tuning: %s is ignored: %s", self.path, e)

    def _keep(self, choice: Choice) -> None:
        self.own.add(choice)
        if self.path is None:
            return
        with _LOCK:
            merged = Table(self.own.match, source=self.own.source)
            with contextlib.suppress(OSError, InvalidArgument):  # what other processes have found since
                for table in read_tables(self.path):
                    merged.choices.update(table.choices)
            merged.choices.update(self.own.choices)
            try:
                write_tables(self.path, [merged])
            except OSError as e:
                logger.info("tuning: choices cannot be kept in %s: %s", self.path, e)


class TunedUnit:
    """A unit whose open choices are made before it is planned for a shape; shapes are numbers, never symbols."""

    symbolic = False

    def __init__(self, memory: DeviceMemory, tuner: Tuner, unit: Any) -> None:
        self._memory, self._tuner, self._unit = memory, tuner, unit
        self.nodes: Sequence[NodeView] = unit.nodes
        self.inputs: Sequence[str | None] = unit.inputs
        self.outputs: Sequence[str | None] = unit.outputs
        self.host_inputs: frozenset[int] = unit.host_inputs

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """Tune, then plan with what was found. Raises as the unit."""
        plan: Callable[[], UnitPlan] = partial(self._unit.plan, inputs)
        with _LOCK_TUNER:
            name = self.nodes[0].name or self.nodes[0].op
            self._tuner.tune(plan, lambda made: Bench(self._memory, made, inputs), name)
        return plan()


_LOCK_TUNER = threading.RLock()  # one measurement at a time


def tuning_for(info: DeviceInfo, options: Mapping[str, Any]) -> Tuning:
    """The tuning of a device as the provider options say. Raises InvalidArgument and NoSuchFile."""
    mode = options.get("tuning", "cached")
    if not (isinstance(mode, str) and mode in TUNING):
        raise InvalidArgument(
            f"tuning is {mode!r}{suggest(str(mode), TUNING)}", remedy=f"Use one of {', '.join(TUNING)}"
        )
    budget = options.get("tuning_budget", 30.0)
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not budget >= 0:
        raise InvalidArgument(f"tuning_budget is {budget!r}", remedy="Give a number of seconds")
    given = options.get("tuning_file")
    extra = [] if given is None or mode == "off" else _shipped(caches.checked("tuning_file", given))
    return Tuning(info, mode, caches.folder(options.get("cache_dir")), extra, float(budget))


def _shipped(given: str | os.PathLike[str]) -> list[Table]:
    try:
        return read_tables(Path(given))
    except FileNotFoundError as e:
        raise NoSuchFile(
            f"tuning_file {os.fspath(given)!r} is not there", remedy="Write it with gpurt tune --output"
        ) from e
    except OSError as e:
        raise InvalidArgument(
            f"tuning_file {os.fspath(given)!r} cannot be read: {e.strerror or e}",
            remedy="Give a file of gpurt tune --output",
        ) from e


def _digest(info: DeviceInfo) -> str:
    text = json.dumps([VERSION, facts(info)])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
