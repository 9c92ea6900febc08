"""Makes a plan: walks a graph level from a position on with concrete shapes until the end or a cut.

A cut is where a device unit needs a shape or content that only the run can tell; the next plan begins there. Whatever
can be computed from shapes and small host values alone is computed here, once, and is a constant of the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np

from gpurt.graph.view import NodeView
from gpurt.infer import infer
from gpurt.partitioner.result import CompiledGraph, ControlItem, UnitItem
from gpurt.plan.delivery import Delivery
from gpurt.plan.destination import Target
from gpurt.plan.sizes import fold_sizes, known_content, sized
from gpurt.plan.steps import DeviceStep, Draft, HostStep, Place, Slot
from gpurt.plan.unit_plans import UnitPlans
from gpurt.provider import DeviceUnit, HostUnit, Operand, Refused
from gpurt.spec import Spec, Unknown
from gpurt.symbolic import NeedsNumbers

FOLD_BYTES: Final = 1 << 20  # larger constants of a plan would cost more to keep than to compute
HOSTED: Final = Target(0)
KEYED_ELEMENTS: Final = 256  # host values up to this size can be part of a plan's key
RANDOM: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)


class Planning(Protocol):
    """What the builder asks of the session."""

    def space(self, provider: int) -> int:
        """Number of a provider's memory space; 0 is the host."""

    def evaluate(self, node: NodeView, inputs: Sequence[Any]) -> Sequence[Any] | None:
        """Compute a node on the host now; None if the host provider has no kernel for it."""

    def fallback(self, item: UnitItem, reason: str) -> Sequence[UnitItem]:
        """Units of the next providers for a unit that was refused; raises NotImplemented if there is none."""

    @property
    def unit_plans(self) -> UnitPlans:
        """What units planned before."""

    def handed_on(self, item: UnitItem) -> bool:
        """Whether fallback was asked about this unit before."""


class _Cut(Exception):
    pass


class Builder(Delivery):
    """One walk. `held` gives the specs of values that exist already; None for those that are no tensors."""

    def __init__(
        self,
        planning: Planning,
        graph: CompiledGraph,
        held: Mapping[str, Spec | None],
        slotted: frozenset[str],
        devices: Sequence[str],
        shared: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(devices, shared, slotted)
        self._planning = planning
        self._graph = graph
        self._symbolic = any(map(sized, held.values()))
        self._places = {name: Place(spec, entry=name) for name, spec in held.items()}

    def build(self, start: int, targets: Mapping[str, Target] | None) -> Draft:
        """Walk from an item on. Raises Unknown if not even the first item can be planned.

        Targets say where the graph's outputs are wanted, the host if not there; None leaves them where they are.
        """
        items = self._graph.items
        self._add_constants(self._graph)
        self._spoilt = any(t.space > 0 and not t.direct for t in (targets or {}).values())
        if start and targets:  # what earlier plans yielded may lie in the past's memory
            targets = {n: t._replace(past="") for n, t in targets.items()}
        end = start
        try:
            while end < len(items):
                item = items[end]
                if isinstance(item, ControlItem):
                    if not self._inline(item):
                        break
                else:
                    self._unit(item)
                end += 1
        except _Cut:
            pass
        final = end == len(items)
        wanted = self._graph.outputs if final else [n for n in self._graph.needs[end] if n in self._places]
        outputs = self._deliver_all(wanted, targets, final=final)
        for space in sorted({p.pending for _, p in outputs if p.pending is not None}):
            self._sync(space)
        for name, place in outputs:
            if final and place.register is not None and targets is not None and targets.get(name, HOSTED).space == 0:
                place.slots = {}  # it is wanted on the host, and is there
            self._lasting.update(place.slots.values(), place.views)
        for slot in self._lasting:
            slot.use(len(self._steps))
        return Draft(
            end,
            self._steps,
            self._slots,
            self._registers,
            self._preset,
            self._entries,
            outputs,
            self._copies,
            self._moved,
        )

    # --- items

    def _add_constants(self, graph: CompiledGraph) -> None:
        for name, array in graph.constants.items():
            if name not in self._places:
                self._places[name] = Place(Spec.of(array))

    def _inline(self, item: ControlItem) -> bool:
        """Splice the branch of an If whose condition is known into this plan."""
        if item.node.op_type != "If" or not item.inline:
            return False
        condition = item.node.inputs[0]
        assert condition is not None
        known = self._places[condition.name].spec
        if known is None or known.const is None:
            return False
        branch = item.bodies["then_branch" if bool(np.ravel(known.const)[0]) else "else_branch"]
        before = {n: replace(p, slots=dict(p.slots)) for n, p in self._places.items()}
        mark = (len(self._steps), before, self._registers, len(self._preset), len(self._copies))
        slots, entries = len(self._slots), len(self._entries)
        try:
            self._add_constants(branch)
            for inner in branch.items:
                if isinstance(inner, ControlItem):
                    if not self._inline(inner):
                        raise _Cut
                else:
                    self._unit(inner)
        except _Cut:
            # A cut inside a branch would need a place to come back to: the framework runs this If instead.
            item.inline = False
            del self._steps[mark[0] :], self._slots[slots:], self._entries[entries:]
            del self._preset[mark[3] :], self._copies[mark[4] :]
            self._places, self._registers = mark[1], mark[2]
            return False
        for outer, inner_name in zip(item.node.outputs, branch.outputs, strict=False):
            if outer is not None:
                self._places[outer.name] = self._places[inner_name]
        return True

    def _unit(self, item: UnitItem) -> None:
        unit = item.unit
        if self._fold(unit.nodes):
            return
        space = self._planning.space(item.provider)
        if space == 0:
            self._host_unit(unit)  # type: ignore[arg-type]
            return
        try:
            self._device_unit(unit, space)  # type: ignore[arg-type]
        except Refused as refusal:
            self._ordinary(item)
            for replacement in self._planning.fallback(item, refusal.reason):
                self._unit(replacement)
        except Unknown as unknown:
            if self._steps:
                raise _Cut from unknown
            self._ordinary(item)
            # Nothing came before: the content is too large for a key, or the shape depends on data.
            for replacement in self._planning.fallback(item, unknown.reason):
                self._unit(replacement)

    def _ordinary(self, item: UnitItem) -> None:
        """A walk over sizes hands on only what a walk over numbers has handed on already."""
        if self._symbolic and not self._planning.handed_on(item):
            raise NeedsNumbers(item.unit.nodes[0].op_type)

    def _host_unit(self, unit: HostUnit) -> None:
        ins = [-1 if name is None else self._on_host(name, f"read by {unit.nodes[0].op_type}") for name in unit.inputs]
        for name in unit.inputs:
            place = None if name is None else self._places[name]
            if place is not None and place.pending is not None:
                self._sync(place.pending)
        views = frozenset(s for n in unit.inputs if n is not None for s in self._places[n].views)
        for slot in views:
            slot.use(len(self._steps))
        specs = self._infer(unit)
        known = [None if n is None else self._places[n].spec for n in unit.inputs]
        outs = []
        for position, name in enumerate(unit.outputs):
            register = self._register()
            outs.append(register)
            if name is not None:
                self._places[name] = Place(specs[position] if specs else None, register, views=views)
        self._steps.append(HostStep(unit, ins, outs, specs=(known, specs)))

    def _infer(self, unit: HostUnit) -> Sequence[Spec] | None:
        """Output specs of a host unit; None where only running it can tell."""
        known = {n: self._places[n].spec for n in unit.inputs if n is not None}
        found: Sequence[Spec] = ()
        for node in unit.nodes:
            specs = [None if v is None else known[v.name] for v in node.inputs]
            if any(s is None and v is not None for s, v in zip(specs, node.inputs, strict=True)):
                return None
            try:
                found = infer(node, specs)
            except (Unknown, ValueError):
                return None
            known.update((v.name, s) for v, s in zip(node.outputs, found, strict=False) if v is not None)
        if len(unit.nodes) == 1:
            return found if len(found) >= len(unit.outputs) else None
        wanted = [None if n is None else known.get(n) for n in unit.outputs]
        return None if None in wanted else [s for s in wanted if s is not None]

    def _device_unit(self, unit: DeviceUnit, space: int) -> None:
        specs: list[Spec | None] = []
        for name in unit.inputs:
            spec = None if name is None else self._places[name].spec
            if name is not None and spec is None:
                raise Unknown(f"the shape of {name!r} is known when the model runs")
            specs.append(spec)
        plan = self._planning.unit_plans.plan(unit, specs)
        name_of = unit.inputs
        step = len(self._steps)
        outs: list[Slot] = []
        for position, spec in enumerate(plan.outputs):
            slot = Slot(space, spec.nbytes)
            if position in plan.aliases:
                source, offset = plan.aliases[position]
                source_name = name_of[source]
                assert source_name is not None, "an alias of an input that is left out"
                slot.parent = self._on_device(source_name, space, f"read by {unit.nodes[0].op_type}")
                slot.shift = int(offset)
            else:
                self._slots.append(slot)
            outs.append(slot)
        operands = [self._operand(o, unit, outs, space) for o in plan.operands]
        step = len(self._steps)
        if plan.operands:
            self._steps.append(DeviceStep(space, plan, operands, unit, specs))
            self._busy.add(space)
        for slot in [*operands, *outs]:
            slot.use(step)
        for position, name in enumerate(unit.outputs):
            if name is not None:
                self._places[name] = Place(plan.outputs[position], slots={space: outs[position]}, home=space)

    def _operand(self, operand: Operand, unit: DeviceUnit, outs: Sequence[Slot], space: int) -> Slot:
        if operand.kind == "in":
            name = unit.inputs[operand.index]
            assert name is not None, "a launch reads an input that is left out"
            return self._on_device(name, space, f"read by {unit.nodes[0].op_type}")
        if operand.kind == "out":
            return outs[operand.index]
        if operand.kind == "temp":
            slot = Slot(space, operand.nbytes)
            self._slots.append(slot)
            return slot
        assert operand.array is not None, "a constant operand without content"
        return Slot(space, operand.array.nbytes, bound=operand.array)

    def _fold(self, nodes: Sequence[NodeView]) -> bool:
        """Compute nodes now if everything they read is known and what they yield is small."""
        found: dict[str, Spec] = {}
        for node in nodes:
            if node.op_type in RANDOM:
                return False
            specs: list[Spec | None] = []
            for value in node.inputs:
                spec = None if value is None else found.get(value.name) or self._places[value.name].spec
                known = value is None or known_content(spec)
                if not known and (node.op_type not in ("Shape", "Size") or spec is None):
                    return False
                specs.append(spec)
            if any(map(sized, specs)):
                followed = fold_sizes(node, specs)
                if followed is None:
                    return False
                found.update((v.name, s) for v, s in zip(node.outputs, followed, strict=False) if v is not None)
                continue
            try:
                outs: Sequence[Spec] = infer(node, specs)
            except (Unknown, ValueError):
                if sum(s.size for s in specs if s is not None) > 4096:
                    return False
                outs = ()
            if node.op_type not in ("Shape", "Size"):
                if sum(s.nbytes for s in outs) > FOLD_BYTES:
                    return False
                values = self._planning.evaluate(node, [None if s is None else s.const for s in specs])
                if values is None or not all(isinstance(v, np.ndarray) for v in values):
                    return False
                outs = [Spec.of(v) for v in values]
            for value, spec in zip(node.outputs, outs, strict=False):
                if value is not None:
                    found[value.name] = spec
        for name, spec in found.items():
            self._places[name] = Place(spec)
        return True
