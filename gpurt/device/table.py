"""The table of device operators: one row says what an operator supports and how it becomes launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.handed_on import HANDED_ON
from gpurt.dtypes import from_name, onnx_name
from gpurt.graph.view import NodeView
from gpurt.infer.constraints import objection

if TYPE_CHECKING:
    from gpurt.device.lowering import Lowering

FLOATS: Final = "float32 float16 double"
INTS: Final = "int32 int64 uint8 int8 uint32 uint64 int16 uint16"
NUMERIC: Final = f"{FLOATS} {INTS}"
ANY: Final = f"{NUMERIC} bool"
FLOAT8: Final = "float8e4m3fn float8e4m3fnuz float8e5m2 float8e5m2fnuz float8e8m0 float4e2m1"
NARROW: Final = f"bfloat16 {FLOAT8}"  # computed in float, see narrow.h
SUBBYTE: Final = "int4 uint4 int2 uint2"  # one to a byte, as in NumPy
STORED: Final = f"{ANY} {NARROW} {SUBBYTE}"  # for operators that move elements and never look at them

Lower = Callable[["Lowering"], None]
Check = Callable[[NodeView, DeviceInfo], str | None]


@dataclass(frozen=True, slots=True)
class Row:
    """An operator on the device layer.

    Attributes:
        lower: emits launches for concrete shapes through a Lowering.
        types: input position -> dtypes; the key None stands for every other input that a kernel reads.
        host: positions of inputs whose content must be known when the plan is made (axes, pads, sizes).
        check: looks at attributes, dtypes and static ranks; returns the reason for a refusal, or None.
    """

    lower: Lower
    types: Mapping[int | None, frozenset[np.dtype]]
    host: tuple[int, ...] = ()
    check: Check | None = None


@dataclass(slots=True)
class OpTable:
    """Rows by (domain, operator); a provider may extend the shared table with rows of its own."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def op(
        self,
        *op_types: str,
        types: str | Mapping[Any, str] = ANY,  # Any: a mapping is invariant in int | None
        host: tuple[int, ...] = (),
        check: Check | None = None,
        domain: str = "",
    ) -> Callable[[Lower], Lower]:
        """Decorator that registers a lowering for operators; types are names separated by spaces."""
        by_position = {None: types} if isinstance(types, str) else types
        parsed = {k: frozenset(from_name(n) for n in v.split()) for k, v in by_position.items()}

        def register(fn: Lower) -> Lower:
            for op_type in op_types:
                self.rows[domain, op_type] = Row(fn, parsed, host, check)
            return fn

        return register

    def extend(self) -> OpTable:
        """A copy that a provider can override rows in."""
        return OpTable(dict(self.rows))

    def refusal(self, node: NodeView, info: DeviceInfo) -> str | None:
        """Why this device cannot run the node, or None if it can."""
        row = self.rows.get((node.domain, node.op_type))
        if row is None:
            return HANDED_ON.get((node.domain, node.op_type), f"no kernel for {node.op}")
        for position, value in enumerate(node.inputs):
            if value is None or position in row.host:
                continue
            if value.dtype is None:
                return f"the type of {value.name!r} is not known or no tensor"
            allowed = row.types.get(position, row.types.get(None))
            if allowed is not None and value.dtype not in allowed:
                return f"no {node.op} kernel for {_name(value.dtype)} at input {position}"
            if value.dtype == np.float64 and not info.fp64:
                return "the device has no double"
        for value in node.outputs:
            if value is not None and (value.dtype is None or value.dtype not in _STORABLE):
                return f"cannot store output {value.name!r}"
            if value is not None and value.dtype == np.float64 and not info.fp64:
                return "the device has no double"
        return (row.check(node, info) if row.check else None) or objection(node)


COMPUTED: Final = frozenset(from_name(n) for n in ANY.split())
"""The dtypes of ANY."""

_STORABLE: Final = frozenset(from_name(n) for n in STORED.split())


def _name(dtype: np.dtype) -> str:
    try:
        return onnx_name(dtype)
    except KeyError:
        return str(dtype)


TABLE: Final = OpTable()
"""The rows that all devices share; modules of gpurt.device.ops fill it."""

op = TABLE.op
