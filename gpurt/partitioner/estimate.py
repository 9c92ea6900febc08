"""Shapes before there are inputs: every value's Spec under assumed sizes of the dimensions that a model leaves open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from gpurt.graph.view import GraphView, NodeView, ValueView
from gpurt.infer import infer
from gpurt.spec import Spec, Unknown

BATCH: Final = 1  # assumed for an open first dimension
OPEN: Final = 64  # assumed for any other open dimension
IMAGE: Final = 224  # assumed for open height and width of a floating-point input of rank 4
TRIPS: Final = 8  # assumed iterations of a loop whose trip count is not a constant
_CONTENT: Final = 4096  # elements up to which contents are followed

Evaluate = Callable[[NodeView, Sequence[Any]], Sequence[Any] | None]
Shapes = Mapping[str, Sequence[int]]


class Estimate:
    """Specs of all values of a model, nested graphs included, and trip counts of its loops.

    Args:
        graph: the outermost graph.
        shapes: given sizes of graph inputs, by name; the others get BATCH, IMAGE and OPEN. One symbolic name has one
            size everywhere.
        evaluate: computes a node on the host, None where it cannot.

    Attributes:
        specs: by value; values whose shape nothing tells are missing.
        trips: by node, for Loop and Scan.
    """

    def __init__(self, graph: GraphView, shapes: Shapes, evaluate: Evaluate) -> None:
        self.specs: dict[str, Spec] = {}
        self.trips: dict[str, int] = {}
        self._dims: dict[str, int] = {}
        self._evaluate = evaluate
        for value in graph.inputs:
            for declared, size in zip(value.shape or (), shapes.get(value.name, ()), strict=False):
                if isinstance(declared, str):
                    self._dims[declared] = int(size)
        for value in graph.inputs:
            if value.const is None and value.dtype is not None and value.shape is not None:
                given = shapes.get(value.name)
                self.specs[value.name] = self._assumed(value) if given is None else Spec(value.dtype, tuple(given))
        self._level(graph)

    def nbytes(self, name: str) -> int:
        """Bytes of a value, 0 where nothing is known of it."""
        spec = self.specs.get(name)
        return 0 if spec is None else spec.nbytes

    def _assumed(self, value: ValueView) -> Spec:
        assert value.dtype is not None, "asked for tensors"
        assert value.shape is not None, "asked for tensors of known rank"
        image = len(value.shape) == 4 and value.dtype.kind == "f"
        sizes = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                sizes.append(dim)
                continue
            assumed = BATCH if axis == 0 else IMAGE if image and axis >= 2 else OPEN
            sizes.append(assumed if dim is None else self._dims.setdefault(dim, assumed))
        return Spec(value.dtype, tuple(sizes))

    def _level(self, graph: GraphView) -> None:
        for name, value in graph.initializers.items():
            if value.const is not None:
                self.specs[name] = Spec.of(value.const)
        for node in graph.nodes:
            bodies = {n: a for n, a in node.attrs.items() if isinstance(a, GraphView)}
            found = self._control(node, bodies) if bodies else self._node(node)
            for output, spec in zip(node.outputs, found, strict=False):
                if output is not None and spec is not None:
                    self.specs[output.name] = spec
            for made in node.outputs:
                if made is not None and made.name not in self.specs and made.shape is not None and made.dtype:
                    self.specs[made.name] = self._assumed(made)

    def _inputs(self, node: NodeView) -> list[Spec | None]:
        found: list[Spec | None] = []
        for value in node.inputs:
            if value is not None and value.name not in self.specs and value.const is not None:
                self.specs[value.name] = Spec.of(value.const)
            found.append(None if value is None else self.specs.get(value.name))
        return found

    def _node(self, node: NodeView) -> Sequence[Spec | None]:
        specs = self._inputs(node)
        if any(s is None and v is not None for s, v in zip(specs, node.inputs, strict=True)):
            return ()
        small = all(s is None or (s.const is not None and s.size <= _CONTENT) for s in specs)
        try:
            outs = infer(node, specs)
        except (Unknown, ValueError):
            outs = []
        if (small and specs and all(o.size <= _CONTENT for o in outs)) or node.op_type in ("Shape", "Size"):
            if all(o.const is not None for o in outs) and outs:
                return outs
            values = self._evaluate(node, [None if s is None else s.const for s in specs]) if small else None
            if values is not None and all(isinstance(v, np.ndarray) for v in values):
                return [Spec.of(v) for v in values]
        return outs

    def _control(self, node: NodeView, bodies: Mapping[str, GraphView]) -> Sequence[Spec | None]:
        specs = self._inputs(node)
        if node.op_type == "If":
            for body in bodies.values():
                self._level(body)
            return [self.specs.get(v.name) for v in bodies["then_branch"].outputs]
        if node.op_type not in ("Loop", "Scan"):
            for body in bodies.values():
                self._level(body)
            return ()
        body = bodies["body"]
        if node.op_type == "Loop":
            count = specs[0]
            known = count is not None and count.const is not None
            trips = int(np.ravel(count.const)[0]) if known and count is not None and count.const is not None else TRIPS
            given = [Spec(np.dtype(np.int64), ()), Spec(np.dtype(bool), ()), *specs[2:]]
            states, extra = len(specs) - 2, 1
        else:
            scanned = int(node.attr("num_scan_inputs"))
            states, extra = len(specs) - scanned, 0
            axes = node.attr("scan_input_axes") or (0,) * scanned
            slices: list[Spec | None] = []
            trips = TRIPS
            for spec, axis in zip(specs[states:], axes, strict=True):
                if spec is not None and spec.rank:
                    at = axis % spec.rank
                    trips = spec.shape[at]
                    spec = Spec(spec.dtype, (*spec.shape[:at], *spec.shape[at + 1 :]))
                slices.append(spec)
            given = [*specs[:states], *slices]
        self.trips[node.name] = max(min(trips, 1 << 20), 0)
        for value, spec in zip(body.inputs, given, strict=False):
            if spec is not None:
                self.specs[value.name] = replace(spec, const=None)
        self._level(body)
        made = [self.specs.get(v.name) for v in body.outputs[extra:]]
        stacked = [None if s is None else Spec(s.dtype, (self.trips[node.name], *s.shape)) for s in made[states:]]
        carried = [None if s is None else replace(s, const=None) for s in made[:states]]
        return [*carried, *stacked]
