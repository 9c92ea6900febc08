"""One table of the element types: ONNX code and name, NumPy dtype, name in kernels, and what each widens to."""

from __future__ import annotations

from typing import Final

import ml_dtypes
import numpy as np

# ONNX TensorProto code -> (name in type strings, NumPy dtype); strings are of dtype object
_TABLE: Final[dict[int, tuple[str, np.dtype]]] = {
    1: ("float", np.dtype(np.float32)),
    2: ("uint8", np.dtype(np.uint8)),
    3: ("int8", np.dtype(np.int8)),
    4: ("uint16", np.dtype(np.uint16)),
    5: ("int16", np.dtype(np.int16)),
    6: ("int32", np.dtype(np.int32)),
    7: ("int64", np.dtype(np.int64)),
    8: ("string", np.dtype(object)),
    9: ("bool", np.dtype(np.bool_)),
    10: ("float16", np.dtype(np.float16)),
    11: ("double", np.dtype(np.float64)),
    12: ("uint32", np.dtype(np.uint32)),
    13: ("uint64", np.dtype(np.uint64)),
    14: ("complex64", np.dtype(np.complex64)),
    15: ("complex128", np.dtype(np.complex128)),
    16: ("bfloat16", np.dtype(ml_dtypes.bfloat16)),
    17: ("float8e4m3fn", np.dtype(ml_dtypes.float8_e4m3fn)),
    18: ("float8e4m3fnuz", np.dtype(ml_dtypes.float8_e4m3fnuz)),
    19: ("float8e5m2", np.dtype(ml_dtypes.float8_e5m2)),
    20: ("float8e5m2fnuz", np.dtype(ml_dtypes.float8_e5m2fnuz)),
    21: ("uint4", np.dtype(ml_dtypes.uint4)),
    22: ("int4", np.dtype(ml_dtypes.int4)),
    23: ("float4e2m1", np.dtype(ml_dtypes.float4_e2m1fn)),
    24: ("float8e8m0", np.dtype(ml_dtypes.float8_e8m0fnu)),
    25: ("uint2", np.dtype(ml_dtypes.uint2)),
    26: ("int2", np.dtype(ml_dtypes.int2)),
}
_CODE: Final = {dtype: code for code, (_, dtype) in _TABLE.items()}
_BY_NAME: Final = dict(_TABLE.values())

# OpenCL C and CUDA spell these alike through the dialect headers of gpurt_kernels.
_KERNEL_NAMES: Final = {
    np.dtype(np.float32): "float",
    np.dtype(np.float64): "double",
    np.dtype(np.float16): "half",
    np.dtype(np.int8): "i8",
    np.dtype(np.uint8): "u8",
    np.dtype(np.int16): "i16",
    np.dtype(np.uint16): "u16",
    np.dtype(np.int32): "i32",
    np.dtype(np.uint32): "u32",
    np.dtype(np.int64): "i64",
    np.dtype(np.uint64): "u64",
    np.dtype(np.bool_): "u8",
    np.dtype(ml_dtypes.bfloat16): "u16",
    np.dtype(ml_dtypes.float8_e4m3fn): "u8",
    np.dtype(ml_dtypes.float8_e4m3fnuz): "u8",
    np.dtype(ml_dtypes.float8_e5m2): "u8",
    np.dtype(ml_dtypes.float8_e5m2fnuz): "u8",
    np.dtype(ml_dtypes.float8_e8m0fnu): "u8",
    np.dtype(ml_dtypes.float4_e2m1fn): "u8",
    np.dtype(ml_dtypes.int4): "i8",
    np.dtype(ml_dtypes.uint4): "u8",
    np.dtype(ml_dtypes.int2): "i8",
    np.dtype(ml_dtypes.uint2): "u8",
}

# What a dtype may be computed in where a provider lacks it: exact for every value of the narrow type.
WIDER: Final[dict[np.dtype, tuple[np.dtype, ...]]] = {
    np.dtype(np.float16): (np.dtype(np.float32), np.dtype(np.float64)),
    np.dtype(ml_dtypes.bfloat16): (np.dtype(np.float32), np.dtype(np.float64)),
    np.dtype(np.float32): (np.dtype(np.float64),),
    np.dtype(np.int8): (np.dtype(np.int16), np.dtype(np.int32), np.dtype(np.int64)),
    np.dtype(np.uint8): (np.dtype(np.int16), np.dtype(np.int32), np.dtype(np.int64)),
    np.dtype(np.int16): (np.dtype(np.int32), np.dtype(np.int64)),
    np.dtype(np.uint16): (np.dtype(np.int32), np.dtype(np.int64)),
    np.dtype(np.int32): (np.dtype(np.int64),),
    np.dtype(np.uint32): (np.dtype(np.int64),),
}


def from_onnx(code: int) -> np.dtype:
    """NumPy dtype of an ONNX TensorProto data type code; strings are ``object``. Raises KeyError on an unknown code."""
    return _TABLE[code][1]


def to_onnx(dtype: np.dtype) -> int:
    """ONNX TensorProto data type code of a NumPy dtype. Raises KeyError on one that ONNX does not have."""
    if dtype.kind in "UST":
        return 8
    return _CODE[dtype]


def onnx_name(dtype: np.dtype) -> str:
    """Name in ONNX type strings: float32 is ``float``, float64 ``double``, object ``string``."""
    return _TABLE[to_onnx(dtype)][0]


def from_name(name: str) -> np.dtype:
    """Inverse of :func:`onnx_name`; NumPy's names are understood too. Raises KeyError on an unknown name."""
    aliases = {"float32": "float", "float64": "double"}
    return _BY_NAME[aliases.get(name, name)]


def kernel_name(dtype: np.dtype) -> str:
    """Name of the element type in kernel source, as stored: bool is u8, bfloat16 u16.

    Raises KeyError if kernels do not know it.
    """
    return _KERNEL_NAMES[dtype]


def is_float(dtype: np.dtype) -> bool:
    """Whether the dtype is a real floating type, the narrow ones of ml_dtypes included."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype in _CODE and "float" in _TABLE[_CODE[dtype]][0])
