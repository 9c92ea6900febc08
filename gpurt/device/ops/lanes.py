"""What reductions, normalisations and pools share: eight lanes for the CPU class, and how work is cut into items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from gpurt.device.lowering import Lowering, Ref
from gpurt.device.scalars import i64
from gpurt.dtypes import kernel_name
from gpurt.symbolic import Size

F32: Final = np.dtype(np.float32)
F64: Final = np.dtype(np.float64)
I32: Final = np.dtype(np.int32)
I64: Final = np.dtype(np.int64)

ITEM_WORK: Final = 16384
"""Elements that a work-item of the CPU class gets where there are so many: below it, starting one costs more."""

WORKS: Final = (ITEM_WORK, 4096, 8192, 32768, 65536)
GROUPS: Final = (64, 32, 128, 256, 512)
"""What is tried, the plainest first; trees in local memory want powers of two."""

Args = list[Ref | np.generic]
"""Arguments of a launch while they are put together."""

_VECTOR: Final = {
    "float": "float8", "double": "double8", "i8": "char8", "u8": "uchar8", "i16": "short8", "u16": "ushort8",
    "i32": "int8", "u32": "uint8", "i64": "long8", "u64": "ulong8",
}  # fmt: skip


def accumulator(dtype: np.dtype) -> np.dtype:
    """The type that a value is computed in, as T_ACC has it: float for half, int32 for the small integers."""
    if dtype == np.float16:
        return F32
    return I32 if dtype.itemsize < 4 else dtype


def lanes(acc: np.dtype, roles: Mapping[str, np.dtype]) -> str:
    """Text that defines A8, eight lanes of acc, the mask type I8, and for each role LD8_role(p, i), ST8_role(p, i, v).

    Any element may be the first: the vector type is told the alignment of one element, which costs nothing on the CPUs
    that the CPU class is for, unlike vload8. The GPU class, and with it CUDA, has no use for this text.
    """
    wide = _VECTOR[kernel_name(acc)]
    lines = [f"typedef {wide} A8;\ntypedef {'long8' if acc.itemsize == 8 else 'int8'} I8;\n"]
    for role, dtype in roles.items():
        if dtype == np.float16:
            load = "vload_half8(0, (p) + (i))" if acc == F32 else "convert_double8(vload_half8(0, (p) + (i)))"
            value = "(v)" if acc == F32 else "convert_float8(v)"
            store = f"vstore_half8_rte({value}, 0, (p) + (i))"
        else:
            stored = _VECTOR[kernel_name(dtype)]
            any8 = f"{role}_any8"
            lines.append(f"typedef {stored} {any8} __attribute__((aligned({dtype.itemsize})));\n")
            load = f"(*(const GLOBAL {any8} *)((p) + (i)))"
            store = f"(*(GLOBAL {any8} *)((p) + (i)) = {'(v)' if stored == wide else f'convert_{stored}(v)'})"
            if stored != wide:
                load = f"convert_{wide}{load}"
        lines.append(f"#define LD8_{role}(p, i) {load}\n#define ST8_{role}(p, i, v) {store}\n")
    return "".join(lines)


def share(tasks: int, cost: int, work: int = ITEM_WORK) -> tuple[int, np.int64]:
    """Work-items of the CPU class for equal tasks of `cost` elements: how many items, and tasks for each."""
    per = min(max(1, work // max(cost, 1)), max(tasks, 1))
    return -(-tasks // per), i64(per)


def measured_share(c: Lowering, family: str, kind: str, tasks: int, cost: int) -> tuple[int, np.int64]:
    """As share(), the elements of an item by what was measured: the parameter `work` of a family of kernels."""
    if isinstance(tasks, Size) or isinstance(cost, Size):
        return share(tasks, cost)
    different = {min(max(1, work // max(cost, 1)), max(tasks, 1)): work for work in reversed(WORKS)}
    works = [work for work in WORKS if work in different.values()]
    return share(tasks, cost, c.choose(f"{family}.work", (tasks, cost), works, ITEM_WORK, kind))


def measured_group(c: Lowering, family: str, kind: str, rows: int, length: int) -> int:
    """As group_size(), by what was measured: the parameter `group` of a family of kernels."""
    groups = [n for n in GROUPS if n <= c.info.max_group]
    return c.choose(f"{family}.group", (rows, length), groups, group_size(c, length), kind)


def group_size(c: Lowering, length: int) -> int:
    """Items of a GPU-class group that works on one row together."""
    return min(64 if length <= 1024 else 256, c.info.max_group)


def flat_group(c: Lowering) -> int:
    """Items of a GPU-class group whose items have nothing to do with each other."""
    return min(128, c.info.max_group)


def collapse(shape: Sequence[int], axes: Sequence[int]) -> list[tuple[int, bool]]:
    """The shape as alternating runs (size, reduced): neighbours of a kind are merged, axes of size 1 belong to any."""
    runs: list[tuple[int, bool]] = []
    for i, size in enumerate(shape):
        reduced = i in axes
        if size == 1:
            continue
        if runs and runs[-1][1] == reduced:
            runs[-1] = (runs[-1][0] * size, reduced)
        else:
            runs.append((size, reduced))
    return runs


def around(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Sizes before, at and after an axis counted from the front; a scalar has one element in each."""
    if not shape:
        return 1, 1, 1
    outer = inner = 1
    for size in shape[:axis]:
        outer *= size
    for size in shape[axis + 1 :]:
        inner *= size
    return outer, shape[axis], inner
