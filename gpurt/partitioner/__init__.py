"""Which provider runs which node, casts and function bodies where they help, and the compiled units that result."""

from gpurt.partitioner.assign import Assigner
from gpurt.partitioner.compile import Compiler
from gpurt.partitioner.decide import Settings
from gpurt.partitioner.result import CompiledGraph, ControlItem, Decisions, UnitItem

__all__ = ["Assigner", "CompiledGraph", "Compiler", "ControlItem", "Decisions", "Settings", "UnitItem"]
