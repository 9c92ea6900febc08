"""Numbers as kernels take them. A size of a plan template stays an expression until the launch is bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpurt.symbolic import Size


@dataclass(frozen=True, slots=True, eq=False)
class SizedScalar:
    """A kernel argument of a NumPy type whose value is a size."""

    kind: type[np.generic]
    size: Size


def i32(value: Any) -> Any:
    """A 32-bit argument: np.int32, or a SizedScalar of it where the value is a Size."""
    return SizedScalar(np.int32, value) if isinstance(value, Size) else np.int32(value)


def i64(value: Any) -> Any:
    """A 64-bit argument: np.int64, or a SizedScalar of it where the value is a Size."""
    return SizedScalar(np.int64, value) if isinstance(value, Size) else np.int64(value)


def scalar(dtype: np.dtype, value: Any) -> Any:
    """An argument of a dtype, kept as a SizedScalar where the value is a Size."""
    return SizedScalar(dtype.type, value) if isinstance(value, Size) else dtype.type(value)


def u32(value: Any) -> Any:
    """An unsigned 32-bit argument: np.uint32, or a SizedScalar of it where the value is a Size."""
    return SizedScalar(np.uint32, value) if isinstance(value, Size) else np.uint32(value)
