"""What gpurt knows of ONNX's versions: the canonical opset of each domain, and ONNX's schemas as of then.

The constants do not follow the installed onnx: an onnx that is newer than gpurt may define forms that no kernel knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import onnx

CANONICAL_OPSETS: Final[dict[str, int]] = {
    "": 28,
    "ai.onnx.ml": 5,
    "ai.onnx.preview": 1,
    "ai.onnx.preview.training": 1,
    "ai.onnx.training": 1,
}
"""The newest opset of each of ONNX's own domains that gpurt knows; every loaded node has the form of this opset."""

NEWEST_IR: Final = 14
"""The newest IR version that gpurt knows."""


def canonical_domain(domain: str) -> str:
    """``ai.onnx`` is another spelling of the empty domain."""
    return "" if domain == "ai.onnx" else domain


def merged(declared: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Opset imports by canonical domain; the highest where a domain is imported twice."""
    versions: dict[str, int] = {}
    for domain, version in declared:
        name = canonical_domain(domain)
        versions[name] = max(version, versions.get(name, 0))
    return versions


def is_standard(domain: str) -> bool:
    """Whether ONNX defines the domain, so that an operator that it does not know is an error."""
    return domain in CANONICAL_OPSETS


@lru_cache(maxsize=4096)
def schema(op_type: str, domain: str = "", version: int = 0) -> Any:
    """ONNX's schema of an operator as of an opset (default: the canonical one), or None where it has none.

    Untyped, because onnx's stubs lack half of what a schema has.
    """
    known = version or CANONICAL_OPSETS.get(domain, 1)
    try:
        return onnx.defs.get_schema(op_type, known, domain)
    except onnx.defs.SchemaError:
        return None


@lru_cache(maxsize=4096)
def since(op_type: str, domain: str = "", version: int = 0) -> int:
    """Version that brought the form of an operator that an opset uses; 0 for operators that ONNX does not know."""
    found = schema(op_type, domain, version)
    return int(found.since_version) if found else 0


@lru_cache(maxsize=8)
def op_names(domain: str) -> tuple[str, ...]:
    """Names of all operators of one of ONNX's domains, for suggestions."""
    return tuple(sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == domain}))


@lru_cache(maxsize=1024)
def first_version(op_type: str, domain: str = "") -> int:
    """Opset in which an operator first appeared; 0 if it never did."""
    versions = [
        s.since_version for s in onnx.defs.get_all_schemas_with_history() if (s.domain, s.name) == (domain, op_type)
    ]
    return min(versions, default=0)
