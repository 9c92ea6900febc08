"""Which operator runs where: a table over all operators and providers, for the command line and the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx.defs

from gpurt import registry
from gpurt.graph import channels_last
from gpurt.loader import CANONICAL_OPSETS, has_body
from gpurt.loader.opsets import op_names, schema, since
from gpurt.provider import SupportInfo

CORE: Final[Mapping[tuple[str, str], str]] = {
    ("", "If"): "the core runs it, and its bodies run wherever their nodes can",
    ("", "Loop"): "the core runs it, and its bodies run wherever their nodes can",
    ("", "Scan"): "the core runs it, and its bodies run wherever their nodes can",
    ("", "Constant"): "it becomes an initializer when the model is loaded",
    ("ai.onnx.preview.training", "Gradient"): "it becomes ordinary nodes when the model is loaded",
}
"""What needs no provider, and why."""

DOMAINS: Final = (*CANONICAL_OPSETS, "com.microsoft")
HOST_NAME: Final = "cpu"

# Element types that a kernel takes, by the word that stands for them in tables.
_FLOATS: Final = ("double", "float", "float16")
_INTS: Final = ("int16", "int32", "int64", "int8", "uint16", "uint32", "uint64", "uint8")
_NARROW: Final = (
    *("bfloat16", "float4e2m1", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float8e8m0"),
    *("int2", "int4", "uint2", "uint4"),
)
_SETS: Final[Mapping[str, tuple[str, ...]]] = {
    "all": (*_FLOATS, *_INTS, *_NARROW, "bool"),
    "any": (*_FLOATS, *_INTS, "bool"),
    "numbers": (*_FLOATS, *_INTS),
    "floats": _FLOATS,
    "integers": _INTS,
}
LEGEND: Final = (
    "floats: float16, float, double; integers: signed and unsigned of 8 to 64 bits; numbers: both; "
    "any: numbers and bool; all: any and the narrow types (bfloat16, float8, float4, int4, int2). Where a narrow float "
    "is not listed, it is computed in a wider one, with casts."
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One operator on one provider.

    Attributes:
        status: "native", "function" (runs as its function body), "core", "handed on" (the host runs it), "no", or
            "unknown" for providers that do not say.
        types: element types in words, empty where they are all that the standard allows.
        note: conditions, or the reason why it is not native.
    """

    status: str
    types: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator: the version of its canonical form (0 where ONNX does not define it), and a cell by provider."""

    domain: str
    name: str
    version: int
    cells: Mapping[str, Cell]

    @property
    def label(self) -> str:
        """Name with its domain where that is not ai.onnx."""
        return f"{self.domain}.{self.name}" if self.domain else self.name


def operators(providers: Sequence[str]) -> list[Operator]:
    """All operators that ONNX defines or a provider says it has, by domain and name.

    Raises InvalidArgument for a provider that is not installed, ProviderError for a broken one.
    """
    said = {name: registry.provider_class(name).supported() for name in providers}
    host = registry.provider_class(HOST_NAME).supported() or {}
    known = {(d, name) for d in CANONICAL_OPSETS for name in op_names(d) if schema(name, d) is not None}
    known |= {key for found in (*said.values(), host) for key, info in (found or {}).items() if info.kernel}
    known = {key for key in known if key[0] != channels_last.DOMAIN and not _replaced(*key)}
    order = {domain: i for i, domain in enumerate(DOMAINS)}
    return [
        Operator(d, name, since(name, d), {p: _cell((d, name), p, said[p], host) for p in providers})
        for d, name in sorted(known, key=lambda k: (order.get(k[0], len(order)), *k))
    ]


def _replaced(domain: str, name: str) -> bool:
    """Whether the loader puts other operators in the place of one that ONNX has deprecated."""
    found = schema(name, domain)
    return domain == "" and found is not None and bool(found.deprecated)


def _cell(
    key: tuple[str, str],
    provider: str,
    said: Mapping[tuple[str, str], SupportInfo] | None,
    host: Mapping[tuple[str, str], SupportInfo],
) -> Cell:
    if key in CORE:
        return Cell("core", note=CORE[key])
    if said is None:
        return Cell("unknown", note="asked for each node")
    info = said.get(key)
    if info is not None and info.kernel:
        return Cell("native", _types(info), info.note)
    on_host = provider != HOST_NAME and key in host and host[key].kernel
    if info is not None and on_host:
        return Cell("handed on", note=info.note)
    if has_body(key[1], key[0]):
        return Cell("function", note="from its definition")
    return Cell("handed on" if on_host else "no", note="" if info is None else info.note)


def _types(info: SupportInfo) -> str:
    words = {at: _words(names) for at, names in info.dtypes.items()}
    rest = words.pop(None, "")
    words = {at: word for at, word in words.items() if word != rest}
    if not words:
        return rest
    if rest and len(words) == 1 and 0 in words:
        return f"{words[0]}; others {rest}"
    parts = [f"{at}: {word}" for at, word in sorted(words.items(), key=lambda item: item[0] or 0)]
    return "; ".join(parts + ([f"others: {rest}"] if rest else []))


def _words(names: Sequence[str]) -> str:
    left, words = set(names), []
    for word, members in _SETS.items():
        if left.issuperset(members):
            words.append(word)
            left.difference_update(members)
    return ", ".join(words + sorted(left))


def newest_opset() -> int:
    """The newest opset of ai.onnx whose forms gpurt knows and the installed onnx has."""
    return min(CANONICAL_OPSETS[""], onnx.defs.onnx_opset_version())
