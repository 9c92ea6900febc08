"""The files of gpurt_kernels that hold templates of functions, instantiated for the types that a kernel uses."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

import gpurt_kernels
from gpurt.device.ops.registers import register
from gpurt.dtypes import kernel_name

_REALS: Final = {"f32_": "float", "f32x8_": "float8", "f64_": "double", "f64x8_": "double8"}
_DTYPES: Final = {
    kernel_name(np.dtype(t)): np.dtype(t)
    for t in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", np.float32, np.float64)
}


def helper_text(kernel: str) -> str:
    """Definitions of the helper functions that a kernel's text calls, for the types it calls them for."""
    text = []
    for dtype in sorted(set(re.findall(r"\b(?:load|store)_([iu]\d+|float|double)\(", kernel))):
        wide = register(_DTYPES[dtype], True)
        text.append(f"VECTOR_ACCESS({dtype}, {wide})\n")
    if text:
        text.insert(0, gpurt_kernels.text("vector.h"))
    if re.search(r"_to_float\(|_bits\(", kernel):
        text.append("#define GP_NARROW_VECTORS 1\n" if "bf16x8_" in kernel else "")
        text.append(gpurt_kernels.text("narrow.h"))
    whole = sorted(set(re.findall(r"\b([iu]\d+)_(?:div|mod|fmod|pow|shl|shr)\(", kernel)))
    if whole or "to_odd(" in kernel:
        text.append(gpurt_kernels.text("integer.h"))
    for name in whole:
        bits = int(name[1:])
        text.append(f"INTEGER_FUNCTIONS({name}, u{max(bits, 32)}, {bits}, {int(name[0] == 'i')})\n")
    for name in sorted(set(re.findall(r"\b(f(?:32|64)(?:x8)?_)", kernel))):
        macros = {"F": _REALS[name], "N(x)": f"{name}##x", "L(c)": "c##f" if name.startswith("f32") else "c"}
        if name == "f32_":
            macros |= {"GP_SINGLE": "1", "FI": "i32", "AS_FI(x)": "AS_I32(x)", "AS_F(x)": "AS_F32(x)"}
        elif name == "f32x8_":
            macros |= {"GP_SINGLE": "1", "FI": "int8", "AS_FI(x)": "as_int8(x)", "AS_F(x)": "as_float8(x)"}
        if name.endswith("x8_"):
            macros["LANE"] = _REALS[name][:-1]
        text += [f"#define {key} {value}\n" for key, value in macros.items()]
        text.append(gpurt_kernels.text("math.h"))
        text += [f"#undef {key.split('(')[0]}\n" for key in macros]
    return "".join(text)
