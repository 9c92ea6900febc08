"""Checks of what the caller passes to run: names, dtypes, ranks and dimensions; errors say what was expected.

Values may be NumPy arrays, gpurt.Tensors, other libraries' arrays on the host or on a device, scalars and lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from gpurt import dtypes
from gpurt.errors import InvalidArgument, suggest
from gpurt.loader import GraphInput
from gpurt.tensor import Tensor
from gpurt.tensor.foreign import device_of, to_host


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another library's array on a device; whether the session can use it there is seen when it runs."""

    value: Any
    device: str


def open_sizes(feeds: Mapping[str, Any], inputs: Sequence[GraphInput]) -> str:
    """The sizes that the model leaves open, as feeds have them: ``batch = 8 ('x' is [8, 3, 224, 224])``; or ""."""
    found: dict[str, str] = {}
    for info in inputs:
        value = feeds.get(info.name)
        shape = getattr(value.value if isinstance(value, Elsewhere) else value, "shape", None)
        if shape is None or info.shape is None:
            continue
        for axis, (declared, size) in enumerate(zip(info.shape, shape, strict=False)):
            if not isinstance(declared, int):
                name = declared or f"dimension {axis} of {info.name!r}"
                found.setdefault(name, f"{name} = {size} ({info.name!r} is {list(shape)})")
    return ", ".join(found.values())


def check_names(names: Iterable[str], inputs: Sequence[GraphInput]) -> None:
    """Raise InvalidArgument for a name that is none of the model's inputs."""
    known = {i.name: None for i in inputs}
    for name in names:
        if name not in known:
            raise InvalidArgument(
                f"the model has no input {name!r}{suggest(str(name), known)}",
                remedy=f"Its inputs are {', '.join(known) or 'none'}",
            )


def check_mapping(feeds: Any, inputs: Sequence[GraphInput]) -> None:
    """Raise InvalidArgument for feeds that are no dictionary, and for names that are none of the model's inputs."""
    if not isinstance(feeds, Mapping):
        raise InvalidArgument(f"the feeds are a {type(feeds).__name__}", remedy='Give a dictionary: {"x": array}')
    check_names(feeds, inputs)


def check_feeds(feeds: Mapping[str, Any], inputs: Sequence[GraphInput], optional: frozenset[str]) -> dict[str, Any]:
    """Feeds as the runtime wants them: native byte order, C-contiguous arrays on the host.

    What is on a device stays there: a Tensor, or an Elsewhere, whose dtype and shape are not checked yet.

    Raises InvalidArgument.
    """
    check_mapping(feeds, inputs)
    checked: dict[str, Any] = {}
    for info in inputs:
        if info.name not in feeds:
            if info.name in optional or info.type.startswith("optional"):
                continue
            raise InvalidArgument(f"input {info.name!r} is missing", remedy=f"Feed {_describe(info)}")
        checked[info.name] = _check(info, feeds[info.name])
    return checked


def _check(info: GraphInput, value: Any) -> Any:
    if isinstance(value, Elsewhere):
        return value
    if not info.type.startswith("tensor("):
        return _check_container(info, value)
    if type(value) is np.ndarray and value.flags.c_contiguous and _is(value.dtype, info.type):
        check_fit(f"input {info.name!r}", info, value.dtype, value.shape)
        return value
    expected = dtypes.from_name(info.type[len("tensor(") : -1])
    if isinstance(value, Tensor):
        check_fit(f"input {info.name!r}", info, value.dtype, value.shape)
        return value.numpy() if value.storage is None else value
    if not isinstance(value, np.ndarray):
        if isinstance(value, (str, bytes)) or expected.kind == "O":
            value = np.asarray(value, dtype=object)
        device = device_of(value)
        if device is not None:
            return Elsewhere(value, device)
    array = to_host(value)
    if expected.kind == "O":
        if array.dtype.kind not in "OUST":
            raise InvalidArgument(
                f"input {info.name!r} is {array.dtype}, not strings", remedy=f"Feed {_describe(info)}"
            )
        array = array.astype(object)
    elif array.dtype.byteorder not in "=|" and array.dtype.newbyteorder("=") == expected:
        array = array.astype(expected)
    check_fit(f"input {info.name!r}", info, array.dtype, array.shape)
    return array if array.ndim == 0 else np.ascontiguousarray(array)


def _is(dtype: np.dtype, text: str) -> bool:
    """Whether a dtype is that of a tensor's type without a look at it; what is not may be equal still."""
    return dtype is _builtin(text)


@cache
def _builtin(text: str) -> np.dtype | None:
    """The dtype of a tensor's type, of which NumPy has one object only; None for strings and what others register."""
    dtype = dtypes.from_name(text[len("tensor(") : -1])
    return np.dtype(dtype.char) if dtype.isbuiltin == 1 and dtype.kind != "O" else None


def check_fit(what: str, info: GraphInput, dtype: np.dtype, shape: Sequence[int]) -> None:
    """Raise InvalidArgument unless a tensor of this dtype and shape fits an input or output of the model."""
    expected = dtypes.from_name(info.type[len("tensor(") : -1])
    if dtype is not expected and dtype != expected:
        narrow = expected.isbuiltin == 2 and dtype.kind in "iu" and dtype.itemsize == expected.itemsize
        cast = f"gpurt.Tensor.from_dlpack(x, dtype={expected.name!r})" if narrow else f"array.astype({expected.name!r})"
        raise InvalidArgument(
            f"{what} is {dtype}, the model wants {expected}", remedy=f"Give {_describe(info)}; for example {cast}"
        )
    if info.shape is None or info.shape == shape:
        return
    if len(shape) != len(info.shape):
        raise InvalidArgument(
            f"{what} has rank {len(shape)} (shape {list(shape)}), the model wants rank {len(info.shape)}",
            remedy=f"Give {_describe(info)}",
        )
    for axis, (want, got) in enumerate(zip(info.shape, shape, strict=True)):
        if isinstance(want, int) and want >= 0 and want != got:
            raise InvalidArgument(
                f"{what} has {got} at dimension {axis} (shape {list(shape)}), the model wants {want}",
                remedy=f"Give {_describe(info)}",
            )


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
