"""Element types of tensors in registers of kernels: as what a value is held, and how one becomes another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import ml_dtypes
import numpy as np

from gpurt.dtypes import kernel_name

F16: Final = np.dtype(np.float16)
F32: Final = np.dtype(np.float32)
F64: Final = np.dtype(np.float64)
BOOL: Final = np.dtype(np.bool_)
BF16: Final = np.dtype(ml_dtypes.bfloat16)
FLOAT8: Final[Mapping[np.dtype, str]] = {
    np.dtype(ml_dtypes.float8_e4m3fn): "e4m3fn",
    np.dtype(ml_dtypes.float8_e4m3fnuz): "e4m3fnuz",
    np.dtype(ml_dtypes.float8_e5m2): "e5m2",
    np.dtype(ml_dtypes.float8_e5m2fnuz): "e5m2fnuz",
    np.dtype(ml_dtypes.float8_e8m0fnu): "e8m0",
    np.dtype(ml_dtypes.float4_e2m1fn): "e2m1",
}
"""Names in narrow.h of those that are stored in a byte."""

NARROW_FLOATS: Final = frozenset([BF16, *FLOAT8])
SUBBYTE: Final[Mapping[np.dtype, tuple[np.dtype, int]]] = {
    np.dtype(ml_dtypes.int4): (np.dtype(np.int8), 4),
    np.dtype(ml_dtypes.uint4): (np.dtype(np.uint8), 4),
    np.dtype(ml_dtypes.int2): (np.dtype(np.int8), 2),
    np.dtype(ml_dtypes.uint2): (np.dtype(np.uint8), 2),
}
"""What an integer of fewer than eight bits is stored as, and its bits."""

_LITERAL: Final = re.compile(r"(?<![\w.])(\d+\.\d*(?:e[-+]?\d+)?)")
_VECTORS: Final = {
    "i8": "char8", "u8": "uchar8", "i16": "short8", "u16": "ushort8", "i32": "int8", "u32": "uint8", "i64": "long8",
    "u64": "ulong8", "float": "float8", "double": "double8",
}  # fmt: skip


def register(dtype: np.dtype, vector: bool) -> str:
    """Type of a variable that holds a value: narrow floats as float, bool as i32 of 0 and 1 (eight-wide: 0 and -1)."""
    name = "float" if dtype == F16 or dtype in NARROW_FLOATS else "i32" if dtype == BOOL else kernel_name(dtype)
    return _VECTORS[name] if vector else name


def prefix(dtype: np.dtype, vector: bool) -> str:
    """Prefix of the helper functions for reals of a type."""
    return ("f64" if dtype == F64 else "f32") + ("x8_" if vector else "_")


def width(dtype: np.dtype) -> int:
    """Bytes of one element of a value's register: conditions have the width of what was compared."""
    return 4 if dtype in (BOOL, F16) or dtype in NARROW_FLOATS else dtype.itemsize


def literals(text: str, dtype: np.dtype) -> str:
    """Text with its real constants in the precision of a type."""
    return text if dtype == F64 else _LITERAL.sub(r"\1f", text)


def unsigned(dtype: np.dtype, vector: bool) -> str:
    """What turns an integer into the unsigned type that sums and products wrap in; scalars have 32 bits at least."""
    if vector:
        return "as_" + register(np.dtype(f"u{dtype.itemsize}"), True)
    return "(u64)" if dtype.itemsize == 8 else "(u32)"


def cast(text: str, source: np.dtype, target: np.dtype, vector: bool, flags: int = 1) -> str:
    """A value converted as NumPy's astype does: reals to integers towards zero, integers modulo 2^bits.

    The flags are for float8: 1 where what is over the greatest becomes that, not infinity or NaN; plus 2 to round
    powers of two to the nearest instead of up, or 4 to round them down.
    """
    to = register(target, vector)
    if target == source:
        return text
    if source in NARROW_FLOATS:
        source = F32
    elif source in SUBBYTE:
        text, source = _low_bits(text, source, vector), np.dtype(np.int32)
    if target in NARROW_FLOATS:
        single = cast(text, source, F32, vector)
        if target == BF16:
            x8 = "x8" if vector else ""
            return f"bf16{x8}_to_float(bf16{x8}_bits({single}))"
        name = FLOAT8[target]
        return f"{name}_to_float({name}_bits({single}, {flags}))"
    if target in SUBBYTE:
        low = _low_bits(cast(text, source, np.dtype(np.int32), vector), target, vector)
        return f"convert_{to}({low})" if vector else f"({to}){low}"
    if target == BOOL:
        zero = f"({register(source, True)})(0)" if vector else "0"
        mask = f"{text} != {zero}"
        return f"convert_int8({mask})" if vector and width(source) != 4 else f"({mask})"
    convert = f"convert_{to}" if vector else f"({to})"
    if source == BOOL:
        return f"{convert}(-({text}))" if vector else f"{convert}({text})"
    if target == F16:
        if source == F64:
            return f"f32_round_half(to_odd({text}))"
        single = text if source == F32 else f"{convert}({text})"
        return f"{prefix(F32, vector)}round_half({single})"
    if register(source, vector) == to:
        return text
    if source.kind == "f" and target.kind in "iu":
        # Negative numbers become unsigned ones by way of a signed type, as on every host that NumPy runs on.
        if target == np.uint64:
            return f"({text} < 9223372036854775808.0 ? (u64)(i64){text} : (u64){text})"
        via = np.dtype(np.int64) if target == np.uint32 else np.dtype(np.int32) if target.itemsize < 4 else target
        if via != target:
            by = register(via, vector)
            text = f"convert_{by}({text})" if vector else f"({by})({text})"
    return f"{convert}({text})"


def _low_bits(text: str, dtype: np.dtype, vector: bool) -> str:
    """An integer of fewer than eight bits as an i32; what stands in the other bits of its byte does not matter."""
    stored, bits = SUBBYTE[dtype]
    low = f"({'convert_int8' if vector else '(i32)'}({text}) & {(1 << bits) - 1})"
    return low if stored.kind == "u" else f"(({low} ^ {1 << (bits - 1)}) - {1 << (bits - 1)})"
