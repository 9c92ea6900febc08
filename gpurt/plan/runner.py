"""Runs a compiled graph level: plans from an LRU by signature, control flow between them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from time import perf_counter_ns
from typing import Any, Final, Protocol

import numpy as np

from gpurt import logs
from gpurt.partitioner.result import CompiledGraph, ControlItem
from gpurt.plan.budget import Budget
from gpurt.plan.builder import KEYED_ELEMENTS, Builder, Planning
from gpurt.plan.cache import PlanCache, Point
from gpurt.plan.destination import Destination, Target
from gpurt.plan.plan import Plan
from gpurt.plan.schedule import Parallel
from gpurt.plan.steps import Draft
from gpurt.plan.template import Template, make_template, varying
from gpurt.plan.values import Held, Run
from gpurt.provider import DeviceMemory
from gpurt.spec import Spec

logger = logs.get(__name__)
NOWHERE: Final[Mapping[str, Destination]] = {}


MOST_TEMPLATES: Final = 8
"""Templates kept for each position; the one that has not served for longest goes first."""

MOST_ATTEMPTS: Final = 4
"""Walks with symbolic sizes that may come to nothing at a position before it has ordinary plans only."""


class Site(Planning, Protocol):
    """What runners of all levels share."""

    @property
    def memories(self) -> Sequence[DeviceMemory | None]: ...

    @property
    def devices(self) -> Sequence[str]: ...

    @property
    def plans(self) -> PlanCache: ...

    @property
    def budget(self) -> Budget: ...

    @property
    def parallel(self) -> Parallel | None:
        """What divides plans among threads; None under the sequential execution mode."""

    @property
    def building(self) -> AbstractContextManager[Any]:
        """Held while a plan is made, one at a time; runs whose plan exists do not wait for it."""

    def runner(self, graph: CompiledGraph) -> GraphRunner:
        """The one runner of a nested graph."""

    def planned(self, graph: CompiledGraph, plan: Plan) -> None:
        """Told of each new plan."""


class GraphRunner:
    """Replays a graph level; safe to call from several threads."""

    def __init__(self, site: Site, graph: CompiledGraph, *, outputs_to_host: bool, level: int = 0) -> None:
        self.graph = graph
        self._site = site
        self._level = level  # number among the session's runners
        self._targets: dict[str, Target] | None = {} if outputs_to_host else None
        # Control flow takes its inputs from held values, so constants that it reads directly are held from the start.
        direct = {v.name for i in graph.items if isinstance(i, ControlItem) for v in i.node.inputs if v is not None}
        self._constants = {n: a for n, a in graph.constants.items() if n in direct}
        self._points: list[Point] = [site.plans.point() for _ in range(len(graph.items) + 1)]
        self._templates: list[list[Template]] = [[] for _ in self._points]  # the last one that served is the last
        self._latest: dict[int, Sequence[Any]] = {}  # signatures that plans or templates were made for
        self._attempts = [0] * len(self._points)  # walks for templates that came to nothing, by position

    def run(self, run: Run, env: dict[str, Held], destinations: Mapping[str, Destination] = NOWHERE) -> list[Held]:
        """Run with the graph's inputs and captures in env; env gains what the plans yield.

        Destinations, by output, say where the caller wants outputs that are not just wanted on the host.
        """
        position = 0
        items = self.graph.items
        for name, constant in self._constants.items():
            env.setdefault(name, Held(constant))
        if not items:
            plan, symbols = self._plan(0, env, run, destinations)
            plan.execute(run, env, destinations, symbols)
        while position < len(items):
            item = items[position]
            if isinstance(item, ControlItem) and not self._can_inline(item, env, run):
                from gpurt.plan.control import execute

                with run.span("Node", f"{item.node.name}_kernel_time", _about(item)):
                    execute(self._site, item, run, env)
                position += 1
                if position == len(items):  # outputs that control flow yields need no plan but for reaching the host
                    plan, symbols = self._plan(position, env, run, destinations)
                    plan.execute(run, env, destinations, symbols)
                continue
            plan, symbols = self._plan(position, env, run, destinations)
            if plan.end == position:
                continue  # an If that turned out not to be inlined
            plan.execute(run, env, destinations, symbols)
            position = plan.end
        return [env[name] for name in self.graph.outputs]

    def _behind(self, end: int) -> Collection[str]:
        """Values that items from a cut on read."""
        return self.graph.needs[end] if end < len(self.graph.items) else ()

    def forget_templates(self) -> None:
        """Let go of what is kept of plans beside the plans."""
        with self._site.building:
            self._templates = [[] for _ in self._points]

    def plans(self) -> list[Plan]:
        """All plans that are kept."""
        return [plan for point in self._points for plan in point]

    def _can_inline(self, item: ControlItem, env: Mapping[str, Held], run: Run) -> bool:
        if item.node.op_type != "If" or not item.inline:
            return False
        condition = item.node.inputs[0]
        assert condition is not None
        held = env.get(condition.name)
        return held is None or isinstance(held.on_host(run), np.ndarray)

    def _plan(
        self, position: int, env: Mapping[str, Held], run: Run, destinations: Mapping[str, Destination]
    ) -> tuple[Plan, tuple[int, ...]]:
        """The plan for the values in env from an item on, made if there is none yet; a template's symbols' values."""
        needs = self.graph.needs[position]
        key: list[Any] = []
        specs: dict[str, Spec | None] = {}
        for name in needs:
            held = env.get(name)
            if held is None:
                continue
            spec = held.spec
            if spec is None:
                key.append(None)
            elif name in self.graph.keyed and spec.size <= KEYED_ELEMENTS and spec.dtype.kind in "iubf":
                array = held.on_host(run)
                key.append((spec.shape, spec.dtype.num, array.tobytes()))
                spec = Spec(spec.dtype, spec.shape, array)
            else:
                # A value that is on a device already is planned differently from one that the host alone has.
                key.append((spec.shape, spec.dtype.num, tuple(held.tensors) or None))
            specs[name] = spec
        targets = self._targets
        if destinations:
            targets = {name: destination.target for name, destination in destinations.items()}
            key.extend(targets.items())
        signature = tuple(key)
        point = self._points[position]
        plan = point.get(signature)
        if plan is not None:
            return plan, ()
        with self._site.building:
            plan = point.get(signature)  # another thread may have made it meanwhile
            if plan is not None:
                return plan, ()
            served = self._served(position, signature)
            if served is not None:
                return served
            start = perf_counter_ns()
            known = {n: _kept(s) for n, s in specs.items()}
            # What the host alone has is copied into the plan's own memory; what is on a device is used where it is.
            slotted = frozenset(n for n in self.graph.inputs if n in env and not env[n].tensors)
            shared = frozenset(i for i, m in enumerate(self._site.memories) if m is not None and m.shares_host)

            def walk(entries: Mapping[str, Spec | None]) -> Draft:
                def build(slotted: frozenset[str]) -> Draft:
                    builder = Builder(self._site, self.graph, entries, slotted, self._site.devices, shared)
                    return builder.build(position, targets)

                draft = build(slotted)
                # What is copied here and read again behind the cut is copied once if it has memory of its own.
                again = slotted.intersection(draft.written()).intersection(self._behind(draft.end))
                draft = build(slotted - again) if again else draft
                if self._site.parallel is not None:
                    self._site.parallel.arrange(draft, targets)
                return draft

            if self._template(position, signature, known, walk):
                served = self._served(position, signature)
                if served is not None:
                    return served
            draft = walk(known)
            plan = Plan(draft, self._site.memories, self._site.budget.share((self._level, position)))
            self._site.planned(self.graph, plan)
            point.add(signature, plan)
            about = {n: repr(s) for n, s in known.items() if s is not None and n in self.graph.inputs}
            logger.debug(
                "planned %s from item %d to %d for %s: %.1f ms, %d steps, %d bytes",
                self.graph.name, position, plan.end, about, (perf_counter_ns() - start) / 1e6, len(draft.steps),
                plan.nbytes,
            )  # fmt: skip
            if run.trace is not None:
                args = {"graph": self.graph.name, "inputs": about, "steps": len(draft.steps), "bytes": plan.nbytes}
                run.trace.host("Session", "plan", start, args)
            return plan, ()

    def _served(self, position: int, signature: Sequence[Any]) -> tuple[Plan, tuple[int, ...]] | None:
        """A template's plan and its symbols' values for a signature."""
        templates = self._templates[position]
        for number in reversed(range(len(templates))):
            symbols = templates[number].match(signature)
            if symbols is not None:
                if self._points[position].get(templates[number]) is None:  # the cache let go of its plan
                    templates.pop(number)
                    continue
                templates.append(templates.pop(number))
                plan = templates[-1].plan
                logger.debug(
                    "planned %s from item %d to %d by a template, sizes %s",
                    self.graph.name,
                    position,
                    plan.end,
                    symbols,
                )
                return plan, symbols
        return None

    def _template(
        self,
        position: int,
        signature: Sequence[Any],
        specs: Mapping[str, Spec | None],
        walk: Callable[[Mapping[str, Spec | None]], Draft],
    ) -> bool:
        """Make a template of this signature and the latest that differs from it in sizes alone."""
        if self._attempts[position] >= MOST_ATTEMPTS:
            return False
        latest = self._latest.get(position)
        self._latest[position] = signature
        if latest is None or not varying(latest, signature):
            return False
        try:
            share = self._site.budget.share((self._level, position))
            template = make_template(
                latest, signature, specs, walk, self._site.memories, share, bool(self._templates[position])
            )
        except Exception as e:  # noqa: BLE001 - whatever code that expects numbers makes of sizes; a plan serves
            logger.debug("%s: no template from item %d on: %s", self.graph.name, position, e)
            template = None
        if template is None:
            self._attempts[position] += 1
            return False
        self._attempts[position] = 0
        self._site.planned(self.graph, template.plan)
        templates = self._templates[position]
        templates.append(template)
        self._points[position].add(template, template.plan)
        del templates[:-MOST_TEMPLATES]
        return True


def _about(item: ControlItem) -> dict[str, Any]:
    """A control-flow node as profiles show it."""
    return {
        "op_name": item.node.op_type,
        "provider": "CPUExecutionProvider",
        "device": "cpu",
        "input_type_shape": [],
        "output_type_shape": [],
    }


def _kept(spec: Spec | None) -> Spec | None:
    """The spec with its content copied: the plan outlives the caller's array."""
    return spec if spec is None or spec.const is None else Spec(spec.dtype, spec.shape, spec.const.copy())
