"""Kernel source as text: dialect header, macros for element types and sizes, a file of gpurt_kernels or a body."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

import gpurt_kernels
from gpurt.device.driver import DeviceInfo
from gpurt.dtypes import kernel_name

_SMALL = {np.dtype(t) for t in (np.int8, np.uint8, np.int16, np.uint16)}


def type_macros(role: str, dtype: np.dtype) -> str:
    """Macros for one element type: ``T`` as stored, ``T_ACC`` as computed, ``LD_T(p, i)`` and ``ST_T(p, i, value)``.

    float16 is stored as half and computed in float, which needs no device extension; bool is stored as u8 and computed
    as i32; integers under 32 bits are computed as i32 and wrap when stored.
    """
    stored = kernel_name(dtype)
    acc = "float" if dtype == np.float16 else "i32" if dtype in _SMALL or dtype == np.bool_ else stored
    if dtype == np.float16:
        load, store = "LD_HALF(p, i)", "ST_HALF(p, i, v)"
    elif dtype == np.bool_:
        load, store = "((p)[i])", "((p)[i] = (v) != 0)"
    else:
        load, store = "((p)[i])", f"((p)[i] = ({stored})(v))"
    return (
        f"#define {role} {stored}\n#define {role}_ACC {acc}\n"
        f"#define LD_{role}(p, i) {load}\n#define ST_{role}(p, i, v) {store}\n"
    )


def program_text(
    info: DeviceInfo, body: str, types: Mapping[str, np.dtype], defines: Mapping[str, int | float | str]
) -> str:
    """The whole text of a program for one device; equal texts are one program."""
    lines = []
    if info.fp64:
        lines.append("#define GP_FP64 1\n")
    lines.append(f"#define GP_{info.kernel_class.upper()}_CLASS 1\n")
    lines.append(gpurt_kernels.header(info.dialect))
    lines.extend(type_macros(role, dtype) for role, dtype in types.items())
    lines.extend(f"#define {name} {value}\n" for name, value in defines.items())
    lines.append(body)
    return "".join(lines)
