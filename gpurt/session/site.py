"""What all graph levels of a session share: providers, memory spaces, evaluation on the host, fallbacks."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gpurt.errors import InvalidArgument, suggest
from gpurt.graph.view import NodeView, part
from gpurt.partitioner import CompiledGraph, Compiler, UnitItem
from gpurt.plan.budget import Budget
from gpurt.plan.cache import PlanCache
from gpurt.plan.plan import Plan
from gpurt.plan.replay import watched
from gpurt.plan.reserve import Reserve
from gpurt.plan.runner import GraphRunner
from gpurt.plan.schedule import Parallel
from gpurt.plan.trace import Trace, traced
from gpurt.plan.unit_plans import UnitPlans
from gpurt.plan.usage import Usage
from gpurt.plan.values import Run
from gpurt.provider import HOST, DeviceMemory, HostUnit, Provider
from gpurt.run_options import RunOptions


class Evaluator:
    """Computes single nodes on the host provider, for folding before and while plans are made."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._units: dict[NodeView, HostUnit | None] = {}

    def __call__(self, node: NodeView, inputs: Sequence[Any]) -> Sequence[Any] | None:
        """Outputs of a node; None if the provider has no kernel for it, or the kernel fails on these inputs."""
        if node not in self._units:
            view = part([node])
            claimed = self._provider.get_capability(view).takes(node)
            self._units[node] = self._provider.compile(view)[0] if claimed else None  # type: ignore[assignment]
        unit = self._units[node]
        return None if unit is None else unit.call(inputs)


class Site:
    """Implements gpurt.plan.runner.Site for a session."""

    def __init__(
        self, providers: Sequence[Provider], compiler: Compiler, evaluator: Evaluator, plans: PlanCache,
        parallel: Callable[[Sequence[int]], Parallel | None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.lock = threading.RLock()
        self.building = threading.RLock()
        self.plans = plans
        self._providers = providers
        self.devices: list[str] = ["cpu"]
        self.memories: list[DeviceMemory | None] = [None]
        self._spaces: list[int] = []
        self._compiler = compiler
        self._evaluator = evaluator
        self._runners: dict[int, GraphRunner] = {}
        self._fallbacks: dict[int, Sequence[UnitItem]] = {}
        self._items: list[UnitItem] = []
        self._idle: list[dict[int, Any]] = []
        self.unit_plans = UnitPlans()
        self.copies: dict[str, Mapping[str, Any]] = {}
        numbers = {HOST: 0}
        for provider in providers:
            if provider.memory_space not in numbers:
                assert isinstance(provider, DeviceMemory), f"{provider.name} has memory of its own and no DeviceMemory"
                numbers[provider.memory_space] = len(self.memories)
                self.memories.append(provider)
                self.devices.append(provider.device)
            self._spaces.append(numbers[provider.memory_space])
        self.parallel = parallel(self._spaces)
        self.budget = Budget(self.memories)
        self.short = False  # whether a run has had to make room, since that was last looked at
        self.usage = Usage()
        self._reserve = Reserve()
        _SITES.add(self)

    def space(self, provider: int) -> int:
        """Number of a provider's memory space; 0 is the host."""
        return self._spaces[provider]

    def evaluate(self, node: NodeView, inputs: Sequence[Any]) -> Sequence[Any] | None:
        """Compute a node on the host now."""
        return self._evaluator(node, inputs)

    def handed_on(self, item: UnitItem) -> bool:
        """Whether there are units in place of this one already."""
        return id(item) in self._fallbacks

    def fallback(self, item: UnitItem, reason: str) -> Sequence[UnitItem]:
        """Units that take the place of a refused one; made once, with the first reason."""
        if id(item) not in self._fallbacks:
            self._fallbacks[id(item)] = self._compiler.fallback(item, reason)
            self._items.append(item)  # keeps the id its own
        return self._fallbacks[id(item)]

    def replaced(self) -> dict[int, Sequence[UnitItem]]:
        """For refused items, by id, the units that run instead."""
        with self.lock:
            return dict(self._fallbacks)

    def runner(self, graph: CompiledGraph) -> GraphRunner:
        """The runner of a graph level; the first that is asked for is the model's own, whose outputs go to the host."""
        found = self._runners.get(id(graph))
        if found is None:
            with self.lock:
                level = len(self._runners)
                made = GraphRunner(self, graph, outputs_to_host=not level, level=level)
                found = self._runners.setdefault(id(graph), made)
        return found

    def planned(self, graph: CompiledGraph, plan: Plan) -> None:
        """Remember what the newest plan of each level copies, for explain()."""
        for copy in plan.copies:
            self.copies[f"{graph.name}/{copy['value']}/{copy['from']}/{copy['to']}"] = copy

    def forget(self) -> None:
        """Let go of all plans and their memory, so that they are made anew."""
        self.plans.clear()
        with self.lock:
            runners = list(self._runners.values())
        for runner in runners:
            runner.forget_templates()
        self.trim()

    def spaces_of(self, names: Sequence[str]) -> list[int]:
        """Memory spaces of devices: ``opencl:0``, or ONNX Runtime's ``gpu:0`` for the first that is not the host.

        The host is ``cpu`` or ``cpu:0``. Raises InvalidArgument for devices that the session does not use.
        """
        known = {"cpu:0": 0} | {name: space for space, name in enumerate(self.devices)}
        known |= {f"gpu:{space - 1}": space for space in range(1, len(self.devices))}
        for name in names:
            if name not in known:
                raise InvalidArgument(
                    f"the session uses no device {name!r}{suggest(name, known)}",
                    remedy=f"Its devices are {', '.join(self.devices)}",
                )
        return [known[name] for name in names]

    @contextmanager
    def run(self, options: RunOptions | None = None, trace: Trace | None = None) -> Iterator[Run]:
        """A run with queues of its own, taken from the pool or the trace; all work is complete when it ends."""

        def room() -> None:
            self.short = True
            relieve(self.memories)

        if trace is not None:
            run = Run(trace.memories(self.memories), {}, room, options, traced, trace, self._reserve)
            streams = None
        else:
            with self.lock:
                streams = self._idle.pop() if self._idle else {}
            run = Run(self.memories, streams, room, options, None if options is None else watched, None, self._reserve)
        run.threads = None if self.parallel is None else self.parallel.threads
        try:
            yield run
        except BaseException:
            run.abandon()
            raise
        finally:
            run.finish()
            self._reserve.ended()
            self.usage = run.usage
            if streams is not None:
                with self.lock:
                    self._idle.append(streams)
            if run.grew or self.plans.crowded:
                self.plans.trim()

    def memory(self) -> dict[str, dict[str, int]]:
        """See InferenceSession.memory."""
        usage, found = self.usage, {}
        for space, memory in enumerate(self.memories):
            if memory is None:
                continue
            stats = memory.arena.stats()
            found[self.devices[space]] = {
                "planned_peak": usage.peak.get(space, 0),
                "lower_bound": usage.bound.get(space, 0),
                "held": stats["held"],
                "in_use": stats["in_use"],
                "weights": memory.weights(),
                "streamed": usage.streamed.get(space, 0),
                "limit": stats["limit"],
                "allocations_last_run": usage.allocations.get(space, 0),
            }
        return found

    def trim(self, spaces: Sequence[int] | None = None) -> int:
        """Give idle plans' memory back to the arenas, and what these then have to spare to the devices; bytes freed.

        Args:
            spaces: whose arenas are shrunk; None for all, and for what providers keep on the host.
        """
        self.plans.release()
        self._reserve.release()
        kept = sum(p.trim() for p in self._providers) if spaces is None else 0
        wanted = range(len(self.memories)) if spaces is None else spaces
        return kept + sum(memory.arena.shrink() for s in wanted if (memory := self.memories[s]) is not None)


_SITES: weakref.WeakSet[Site] = weakref.WeakSet()


def relieve(memories: Sequence[DeviceMemory | None]) -> None:
    """Free what no run needs now in the arenas of these memories, whichever session holds it."""
    arenas = {id(m.arena) for m in memories if m is not None}
    for site in list(_SITES):
        if any(m is not None and id(m.arena) in arenas for m in site.memories):
            site.trim()
