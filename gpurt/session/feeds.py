"""Checks of what the caller passes to run: names, dtypes, ranks and dimensions; errors say what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpurt import dtypes
from gpurt.errors import InvalidArgument, suggest
from gpurt.loader import GraphInput


def check_feeds(feeds: Mapping[str, Any], inputs: Sequence[GraphInput], optional: frozenset[str]) -> dict[str, Any]:
    """Feeds as the runtime wants them: native byte order, C-contiguous arrays. Raises InvalidArgument."""
    if not isinstance(feeds, Mapping):
        raise InvalidArgument(f"the feeds are a {type(feeds).__name__}", remedy='Give a dictionary: {"x": array}')
    known = {i.name: i for i in inputs}
    for name in feeds:
        if name not in known:
            raise InvalidArgument(
                f"the model has no input {name!r}{suggest(str(name), known)}",
                remedy=f"Its inputs are {', '.join(known) or 'none'}",
            )
    checked: dict[str, Any] = {}
    for info in inputs:
        if info.name not in feeds:
            if info.name in optional or info.type.startswith("optional"):
                continue
            raise InvalidArgument(f"input {info.name!r} is missing", remedy=f"Feed {_describe(info)}")
        checked[info.name] = _check(info, feeds[info.name])
    return checked


def _check(info: GraphInput, value: Any) -> Any:
    if not info.type.startswith("tensor("):
        return _check_container(info, value)
    expected = dtypes.from_name(info.type[len("tensor(") : -1])
    if isinstance(value, (str, bytes)) or (expected.kind == "O" and not isinstance(value, np.ndarray)):
        value = np.asarray(value, dtype=object)
    array = np.asarray(value)
    if expected.kind == "O":
        if array.dtype.kind not in "OUST":
            raise InvalidArgument(
                f"input {info.name!r} is {array.dtype}, not strings", remedy=f"Feed {_describe(info)}"
            )
        array = array.astype(object)
    else:
        if array.dtype.byteorder not in "=|" and array.dtype.newbyteorder("=") == expected:
            array = array.astype(expected)
        if array.dtype != expected:
            raise InvalidArgument(
                f"input {info.name!r} is {array.dtype}, the model wants {expected}",
                remedy=f"Feed {_describe(info)}; for example array.astype({expected.name!r})",
            )
    if info.shape is not None:
        if array.ndim != len(info.shape):
            raise InvalidArgument(
                f"input {info.name!r} has rank {array.ndim} (shape {list(array.shape)}), the model wants rank "
                f"{len(info.shape)}",
                remedy=f"Feed {_describe(info)}",
            )
        for axis, (want, got) in enumerate(zip(info.shape, array.shape, strict=True)):
            if isinstance(want, int) and want >= 0 and want != got:
                raise InvalidArgument(
                    f"input {info.name!r} has {got} at dimension {axis} (shape {list(array.shape)}), the model wants "
                    f"{want}",
                    remedy=f"Feed {_describe(info)}",
                )
    return array if array.ndim == 0 else np.ascontiguousarray(array)


def _check_container(info: GraphInput, value: Any) -> Any:
    if info.type.startswith("seq(") and not isinstance(value, (list, tuple)):
        raise InvalidArgument(
            f"input {info.name!r} is a {type(value).__name__}", remedy=f"Feed {_describe(info)}: a list"
        )
    if info.type.startswith("optional(") and isinstance(value, (int, float, np.generic)):
        return np.asarray(value)
    return list(value) if isinstance(value, tuple) else value


def _describe(info: GraphInput) -> str:
    shape = "" if info.shape is None else f" of shape [{', '.join('?' if d is None else str(d) for d in info.shape)}]"
    return f"{info.name!r} as {info.type}{shape}"
