"""Every ONNX operator in NumPy. ``lookup`` finds a kernel; the families are imported when it is first called."""

from __future__ import annotations

import functools
import importlib

from gpurt_cpu.ops.table import Kernel, find, registered

__all__ = ["Kernel", "lookup", "operators"]

_FAMILIES = (
    "activation",
    "attention",
    "cast",
    "channels_last",
    "contrib_attention",
    "contrib_fused",
    "contrib_gqa",
    "contrib_lstm",
    "contrib_misc",
    "contrib_nbits",
    "contrib_norm",
    "contrib_quantized",
    "conv",
    "create",
    "elementwise",
    "image",
    "linalg",
    "linear_attention",
    "logic",
    "loss",
    "ml",
    "ml_linear",
    "ml_trees",
    "movement",
    "norm",
    "pool",
    "quantize",
    "random",
    "reduce",
    "resize",
    "rnn",
    "sampling",
    "scatter",
    "select",
    "sequence",
    "signal",
    "string",
    "training",
)


@functools.cache
def _load() -> None:
    for family in _FAMILIES:
        importlib.import_module(f"{__name__}.{family}")


def lookup(domain: str, op_type: str) -> Kernel | None:
    """Kernel of an operator, or None if there is none (control flow, or a name that ONNX does not have)."""
    _load()
    return find(domain, op_type)


def operators() -> list[tuple[str, str]]:
    """The (domain, operator) pairs that have a kernel, sorted."""
    _load()
    return registered()
