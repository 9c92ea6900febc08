"""Tables of choices and the files that hold them: JSON of one form, for caches, applications and the package."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from gpurt import caches
from gpurt.device.driver import DeviceInfo
from gpurt.device.tuning.choices import Key, Value
from gpurt.errors import InvalidArgument

VERSION: Final = 1
"""Of the files' form; files of another one are refused."""

NEAR: Final = 2.0
"""A size may be so many times as large or small as the one that was measured."""

_FACTS: Final = ("name", "kind", "dialect", "kernel_class", "vendor", "driver", "compute_units", "vector_width")


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice that was made, with the evidence.

    Attributes:
        key: what it is for; without sizes it holds for any.
        value: the winner.
        seconds: device time of the unit with the winner, 0 where it was not measured here.
        default_seconds: with the heuristic's choice.
    """

    key: Key
    value: Value
    seconds: float = 0.0
    default_seconds: float = 0.0


@dataclass(slots=True)
class Table:
    """Choices for the devices that match.

    Attributes:
        match: fact of DeviceInfo -> what it must be; texts must contain it, case aside.
        choices: by key.
        source: where the choices are from, for people.
    """

    match: Mapping[str, str | int]
    choices: dict[Key, Choice] = field(default_factory=dict)
    source: str = ""

    def fits(self, info: DeviceInfo) -> bool:
        """Whether the table is for a device."""
        for fact, wanted in self.match.items():
            actual = getattr(info, fact)
            same = actual == wanted if isinstance(wanted, int) else wanted.lower() in str(actual).lower()
            if not same:
                return False
        return True

    def add(self, choice: Choice) -> None:
        """Add a choice, in place of one with the same key."""
        self.choices[choice.key] = choice

    def exact(self, key: Key) -> Value | None:
        """What is known for a key."""
        found = self.choices.get(key)
        return None if found is None else found.value

    def nearest(self, key: Key, candidates: Sequence[Value]) -> Value | None:
        """What is known for the nearest sizes, none of them further than NEAR; else what holds for any sizes."""
        best, least = None, math.inf
        for other, choice in self.choices.items():
            if (other.family, other.kind) != (key.family, key.kind) or choice.value not in candidates:
                continue
            distance = _distance(key.sizes, other.sizes)
            if distance < least:
                best, least = choice.value, distance
        return best


def _distance(one: Sequence[int], other: Sequence[int]) -> float:
    """Sum of the sizes' ratios as logarithms; infinite where one is too far off, large where `other` is empty."""
    if not other:
        return 1e6
    if len(one) != len(other):
        return math.inf
    steps = [abs(math.log2(max(a, 1) / max(b, 1))) for a, b in zip(one, other, strict=True)]
    return math.inf if any(s > math.log2(NEAR) for s in steps) else sum(steps)


def facts(info: DeviceInfo) -> dict[str, str | int]:
    """The match of a table for this one device, with its driver's version."""
    return {name: getattr(info, name) for name in _FACTS}


def read_tables(path: Path) -> list[Table]:
    """The tables of a file. Raises OSError, and InvalidArgument where it is not of this form or version."""
    return _tables(path.read_bytes(), str(path))


def write_tables(path: Path, tables: Iterable[Table]) -> None:
    """Write a file of tables, whole or not at all. Raises OSError."""
    content = {
        "version": VERSION,
        "tables": [
            {
                "match": dict(t.match),
                "source": t.source,
                "choices": [{**c.key._asdict(), **_evidence(c)} for _, c in sorted(t.choices.items())],
            }
            for t in tables
        ],
    }
    caches.write(path, json.dumps(content, indent=1).encode())


def package_tables() -> list[Table]:
    """What ships with gpurt: measured on CPU devices, and tiles of classes of GPUs from published tuning results."""
    resource = files("gpurt.device.tuning").joinpath("package.json")
    return _tables(resource.read_bytes(), "the package's table")


def _tables(content: bytes, where: str) -> list[Table]:
    remedy = "Delete it, or write it again with gpurt tune"
    try:
        found: dict[str, Any] = json.loads(content)
        version = found["version"]
        if version != VERSION:
            raise InvalidArgument(f"{where} has version {version!r} of tuning tables, not {VERSION}", remedy=remedy)
        return [_table(t) for t in found["tables"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        if isinstance(e, InvalidArgument):
            raise
        raise InvalidArgument(f"{where} is no file of tuning tables: {type(e).__name__}: {e}", remedy=remedy) from e


def _table(content: dict[str, Any]) -> Table:
    match = {str(k): v for k, v in content["match"].items()}
    for fact, wanted in match.items():
        if fact not in _FACTS or not isinstance(wanted, (str, int)):
            raise ValueError(f"match has {fact!r}: {wanted!r}")
    table = Table(match, source=str(content.get("source", "")))
    for c in content["choices"]:
        sizes = c["sizes"]
        if not isinstance(sizes, list) or not all(isinstance(s, int) and s >= 0 for s in sizes):
            raise ValueError(f"sizes are {sizes!r}")
        key = Key(str(c["family"]), str(c["kind"]), tuple(sizes))
        seconds = [float(c.get(name, 0.0)) for name in ("seconds", "default_seconds")]
        table.add(Choice(key, _value(c["value"]), *seconds))
    return table


def _value(content: Any) -> Value:
    if isinstance(content, list) and all(isinstance(v, int) for v in content):
        return tuple(content)
    if isinstance(content, (int, str)):
        return content
    raise ValueError(f"a choice is {content!r}")


def _evidence(choice: Choice) -> dict[str, Any]:
    evidence = asdict(choice)
    del evidence["key"]
    return {name: v for name, v in evidence.items() if name == "value" or v}
