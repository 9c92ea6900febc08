"""What partitioning yields: units with their providers, control-flow nodes with their bodies, and the reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpurt.graph.view import NodeView
from gpurt.provider import DeviceUnit, HostUnit


@dataclass(slots=True, eq=False)
class UnitItem:
    """A unit and the position of its provider in the session's list."""

    unit: HostUnit | DeviceUnit
    provider: int


@dataclass(slots=True, eq=False)
class ControlItem:
    """If, Loop or Scan: run by the framework over compiled bodies, by attribute name."""

    node: NodeView
    bodies: Mapping[str, CompiledGraph]
    inline: bool = True  # an If whose condition is known is spliced into the plan; unset once that proved impossible


Item = UnitItem | ControlItem


@dataclass(slots=True, eq=False)
class CompiledGraph:
    """A graph level, ready to be planned.

    Attributes:
        items: in topological order.
        inputs, outputs: names in the graph's order.
        constants: initializers by name.
        keyed: names whose content decides shapes or branches: small host values among them are part of a plan's key.
        captures: names from outer graphs that this one or a body in it reads.
        needs: for each position in items, the names that items from there on, or the outputs, read from before it.
    """

    name: str
    items: Sequence[Item]
    inputs: Sequence[str]
    outputs: Sequence[str]
    constants: Mapping[str, np.ndarray]
    keyed: frozenset[str]
    captures: Sequence[str] = ()
    needs: Sequence[Sequence[str]] = ()


@dataclass(slots=True)
class Decisions:
    """Everything explain() reports of what was done to the graph, and why."""

    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    casts: list[dict[str, str]] = field(default_factory=list)
    removed: list[dict[str, str]] = field(default_factory=list)
    applied: list[dict[str, Any]] = field(default_factory=list)
    misses: list[dict[str, str]] = field(default_factory=list)
    layouts: list[dict[str, Any]] = field(default_factory=list)
