"""Pins: where the user wants nodes to run, by name, metadata, pattern or operator."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from gpurt import logs
from gpurt.errors import InvalidArgument, suggest
from gpurt.provider import Provider

logger = logs.get(__name__)


class Pins:
    """Pins of a session.

    A key is a node's name, ``meta:key=value`` (an entry of its metadata_props), a pattern over names with ``*``, ``?``
    or ``[...]``, or ``op:Conv`` (``op:domain.Name`` outside of ai.onnx). That is also the order in which they win:
    name, metadata, pattern, operator; within one kind the first in the mapping.

    Args:
        wanted: key -> device as in the session's list: ``"opencl:1"``, or ``"opencl"`` for its first.
        providers: in the session's order.

    Raises:
        InvalidArgument: a device that the session does not have, or a key that is none.
    """

    def __init__(self, wanted: Mapping[str, str], providers: Sequence[Provider]) -> None:
        self._names: dict[str, tuple[str, int]] = {}
        self._metadata: list[tuple[str, str, str, int]] = []
        self._patterns: list[tuple[str, int]] = []
        self._operators: dict[str, tuple[str, int]] = {}
        self._unused = set(wanted)
        for key, device in wanted.items():
            position = _position(key, device, providers)
            if key.startswith("op:"):
                self._operators[key.removeprefix("op:").removeprefix("ai.onnx.")] = (key, position)
            elif key.startswith("meta:"):
                name, separator, value = key.removeprefix("meta:").partition("=")
                if not separator or not name:
                    raise InvalidArgument(f"the pin {key!r} names no value", remedy="Write it as meta:key=value")
                self._metadata.append((name, value, key, position))
            else:
                self._names[key] = (key, position)
                if any(c in key for c in "*?["):
                    self._patterns.append((key, position))

    def find(self, node: ir.Node) -> tuple[str, int] | None:
        """The pin that holds for a node: its key and the provider's position."""
        found = list(self._fitting(node))
        self._unused.difference_update(key for key, _ in found)
        return found[0] if found else None

    def exact(self, key: str) -> bool:
        """Whether a key is one node's name, and no group's."""
        return key in self._names and all(key != p for p, _ in self._patterns)

    def report(self) -> None:
        """Warn of pins that no node answers to; the optimizer may have removed theirs."""
        for key in sorted(self._unused):
            logger.warning("the pin %r fits no node of the optimized model", key)

    def _fitting(self, node: ir.Node) -> Iterator[tuple[str, int]]:
        """All pins that a node answers to, the one that wins first."""
        name = node.name or ""
        if name in self._names:
            yield self._names[name]
        for key, value, pin, position in self._metadata:
            if node.metadata_props.get(key) == value:
                yield pin, position
        for pattern, position in self._patterns:
            if pattern != name and fnmatch.fnmatchcase(name, pattern):
                yield pattern, position
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if operator in self._operators:
            yield self._operators[operator]


def _position(key: str, device: str, providers: Sequence[Provider]) -> int:
    for position, provider in enumerate(providers):
        if device == provider.device:
            return position
    for position, provider in enumerate(providers):
        if device == provider.name:
            return position
    devices = [p.device for p in providers]
    raise InvalidArgument(
        f"the pin {key!r} asks for {device!r}, which is not in the session's list{suggest(str(device), devices)}",
        remedy=f"The devices are {', '.join(devices)}",
    )
