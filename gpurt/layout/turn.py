"""How a node works on values whose channels are last: what a rule says of it, and the table of the rules.

The layout of a value of rank r, 3 or more, is either the model's own or *turned* by
:func:`gpurt.graph.channels_last.to_last`: [N, C, spatial ...] becomes [N, spatial ..., C]. Values of lower rank have
one layout only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.graph.channels_last import to_last
from gpurt.optimizer import facts


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """An operand that is read turned."""

    value: ir.Value


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """An operand that an earlier step of the same turn makes, by the step's position."""

    step: int


Operand = Data | Made | ir.Value | np.ndarray | None
"""Also a value in the model's own layout, the content of a new constant, and an input that is left out."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A node that a turn makes.

    Attributes:
        op_type, domain: the operator.
        inputs: by position.
        attrs: attributes; None takes one away that `like` has.
        like: a node whose attributes and, in the last step, whose name it takes over.
        rank: of its outputs, where other steps read them.
        dtype: of its output, where that is not the replaced node's.
        host: it is shape arithmetic, which the host does.
    """

    op_type: str
    inputs: Sequence[Operand]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    like: ir.Node | None = None
    rank: int = 0
    dtype: Any = None
    host: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """How a node works on turned values.

    Attributes:
        steps: what takes its place; outputs of the last one stand for the node's, in order.
        exit: its outputs are in the model's own layout all the same.
        absorbed: nodes before it that the steps stand for as well, and that nobody else reads.
        fixes: constants of other nodes that change with it: the node, the input's position, and the new content.
        instead: another way, for a provider that has no kernel for this one.
        shapes: it looks at nothing but its input's shape, whoever runs it.
    """

    steps: Sequence[Step]
    exit: bool = False
    absorbed: Sequence[ir.Node] = ()
    fixes: Sequence[tuple[ir.Node, int, Callable[[], np.ndarray]]] = ()
    instead: Turn | None = None
    shapes: bool = False


Rule = Callable[[ir.Node], Turn | None]
"""A node -> how it works on turned values; None where it cannot, and then it gets the model's own layout."""

RULES: Final[dict[tuple[str, str], Rule]] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register the rule of operators."""

    def register(fn: Rule) -> Rule:
        for op_type in op_types:
            RULES[domain, op_type] = fn
        return fn

    return register


def turn_of(node: ir.Node) -> Turn | None:
    """What the rule of the node's operator says; None without one."""
    found = RULES.get((node.domain, node.op_type))
    return None if found is None else found(node)


# --- what rules are written with


def rank_of(value: ir.Value | None) -> int:
    """Rank of a value that has two layouts; 0 for all others."""
    rank = facts.rank(value)
    return rank if rank is not None and rank >= 3 and not facts.absent(value) else 0


def place(axis: int, rank: int) -> int:
    """Where an axis, which may count from the end, lies in a turned value."""
    return to_last(rank).index(axis % rank)


def places(axes: Sequence[int], rank: int) -> list[int]:
    """As place, for several axes."""
    return [place(a, rank) for a in axes]


def turned(content: np.ndarray, rank: int) -> np.ndarray:
    """A constant that broadcasts against values of a rank, for turned ones; without leading axes of one element."""
    wide = content.reshape((1,) * (rank - content.ndim) + content.shape).transpose(to_last(rank))
    lead = next((i for i, d in enumerate(wide.shape) if d != 1), rank)
    return wide.reshape(wide.shape[lead:]) if lead < rank else wide.reshape(())


def rest(node: ir.Node, first: int = 1) -> list[Operand]:
    """The inputs of a node from a position on, as they are."""
    return [facts.given(node, i) for i in range(first, len(node.inputs))]


def whole_axes(rank: int) -> list[int]:
    """All axes of a value, in the model's order, where they lie in the turned one."""
    return places(range(rank), rank)


def order_after(gone: set[int], rank: int) -> bool | None:
    """What is left of a turned value without some axes: True for turned too, False for the model's own layout.

    None where it is neither.
    """
    left = [a for a in range(rank) if a not in gone]
    found = [a for a in to_last(rank) if a not in gone]
    if found == left:
        return False
    return True if found == [left[i] for i in to_last(len(left))] and len(left) >= 3 else None


def idle_axes(value: ir.Value | None) -> list[int]:
    """Axes of one element beside which turning a value moves no data: the channels' or all others'; [] if it does."""
    dims = facts.dims(value)
    if dims is None or len(dims) < 3:
        return []
    return [1] if dims[1] == 1 else list(range(2, len(dims))) if all(d == 1 for d in dims[2:]) else []
