"""The table of NumPy kernels: how one is registered and found. The kernels themselves live in the family modules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Fn = TypeVar("Fn", bound=Callable[..., Any])

_TABLE: dict[tuple[str, str], Kernel] = {}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operator on the CPU.

    Attributes:
        op_type: ONNX name of the operator.
        domain: its domain; empty for ai.onnx.
        fn: called with the node's inputs by position (None for one that is left out) and its attributes by name.
            Returns one value, or a tuple of them. Inputs are never written to; an output may be a view of an input.
        wants_constants: input positions; where they hold constants, ``fn`` is given ``prepared``, a dictionary of the
            node's own in which it may keep what it makes of them.
        wants_outputs: whether ``fn`` takes ``outputs``, a tuple of bool saying which outputs are wanted.
        continues: output -> the input that it continues, a cache. ``fn`` takes ``into``, arrays by output position or
            None: where one has the output's dtype and shape it is written and returned; it may be that input itself.
    """

    op_type: str
    domain: str
    fn: Callable[..., Any]
    wants_outputs: bool = False
    wants_constants: tuple[int, ...] = ()
    continues: Mapping[int, int] = field(default_factory=dict)


def op(
    op_type: str,
    *,
    domain: str = "",
    wants_outputs: bool = False,
    wants_constants: tuple[int, ...] = (),
    continues: Mapping[int, int] | None = None,
) -> Callable[[Fn], Fn]:
    """Register the decorated function as the kernel of an operator; one function may serve several."""

    def register(fn: Fn) -> Fn:
        _TABLE[domain, op_type] = Kernel(op_type, domain, _checked(fn), wants_outputs, wants_constants, continues or {})
        return fn

    return register


def find(domain: str, op_type: str) -> Kernel | None:
    """Kernel registered for an operator, or None. ``ai.onnx`` and the empty domain are the same."""
    return _TABLE.get(("" if domain == "ai.onnx" else domain, op_type))


def registered() -> list[tuple[str, str]]:
    """The (domain, operator) pairs that have a kernel, sorted."""
    return sorted(_TABLE)


def _checked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make NumPy quiet about overflow and division by zero, which ONNX defines, and scalars into 0-d arrays."""

    @functools.wraps(fn)
    def run(*args: Any, **attributes: Any) -> Any:
        with np.errstate(all="ignore"):
            result = fn(*args, **attributes)
        if isinstance(result, tuple):
            return tuple(np.asarray(r) if isinstance(r, np.generic) else r for r in result)
        return np.asarray(result) if isinstance(result, np.generic) else result

    return run
