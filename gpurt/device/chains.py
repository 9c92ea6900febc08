"""Elementwise nodes around a reduction or normalisation, in its kernel: what chains.h wants."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

import gpurt_kernels
from gpurt.device.epilogue import Epilogue
from gpurt.device.helpers import helper_text
from gpurt.device.lowering import Ref
from gpurt.device.prologue import Prologue
from gpurt.device.scalars import i64


@dataclass(slots=True)
class Chains:
    """What is done to a kernel's data and results.

    Attributes:
        text: head of the kernel's text.
        data: arguments in place of the tensor of the data.
        results: arguments that follow the tensor of the results.
        kind: what of it a choice of the kernel's parameters depends on.
    """

    text: str
    data: list[Ref | np.generic]
    results: list[Ref | np.generic] = field(default_factory=list)
    kind: str = ""


def chains(
    x: Ref,
    r: int,
    inner: int,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
    columns: int = 1,
) -> Chains:
    """What of the nodes around it a kernel can take, which those note as used.

    Args:
        x: the data, read where no prologue can compute them.
        r: elements of a row, or of a column: the data are walked as [outer, r, inner].
        inner: columns side by side.
        prologue: computes the data.
        epilogue: is computed of the results, float32.
        columns: results side by side of which a vector may be stored at once; nothing else changes between them.
    """
    made = None if prologue is None else prologue.over(r, inner)
    text, data = made or ("", [x])
    found = Chains("", data, kind=" prologue" if made else "")
    more, found.results = behind(epilogue, columns)
    if found.results:
        found.kind += " epilogue"
    found.text = chained_text(text + more, "chains.h")
    return found


def behind(epilogue: Epilogue | None, columns: int, first: int = 0) -> tuple[str, list[Ref | np.generic]]:
    """Functions of what follows a kernel's results, and the arguments for EPILOGUE_PARAMS; none where it does not fit.

    Args:
        epilogue: notes as used that the kernel takes it.
        columns: see chains.
        first: position in the epilogue's result of the kernel's first one.
    """
    if epilogue is None or not epilogue.fits(columns):
        return "", []
    text, args = epilogue.functions()
    return text, [i64(first), *args]


def chained_text(functions: str, *files: str) -> str:
    """A kernel's text: functions of the nodes around it, with the helpers that these call, then files of kernels."""
    return helper_text(functions) + functions + "".join(map(gpurt_kernels.text, files))
