"""The matrix product that MatMul, Gemm, Conv, ConvTranspose and the recurrent layers share: y = alpha A B + beta C."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

import gpurt_kernels
from gpurt.device.chains import chained_text
from gpurt.device.epilogue import Epilogue
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.fed_product import Fed, fed_product
from gpurt.device.ops.group_tiles import group_tile, items_of
from gpurt.device.ops.matrices import Columns, Mat, Panels, collapse_batch, moved_by, position_count
from gpurt.device.prologue import Prologue
from gpurt.device.scalars import i32, i64
from gpurt.device.tiles import Tile, tile_for
from gpurt.device.tuning.choices import V
from gpurt.provider import Refused
from gpurt.symbolic import Size

FLOAT32: Final = np.dtype(np.float32)
FLOAT16: Final = np.dtype(np.float16)
I32_MAX: Final = 2**31 - 1
MAX_LAUNCHES: Final = 1024  # of one product whose batch dimensions are too irregular for one launch
_LEVELS: Final = 3  # batch levels that a kernel resolves itself
_MAX_Z: Final = 65535
_MANY: Final = 840  # rows that stand for any number, as many tiles divide it
_AHEAD: Final = 512  # floats of a panel between what one row of A reads of B and what it asks for: 32 steps of the sum
TILES: Final = {
    True: (Tile(4, 1), Tile(8, 1), Tile(12, 1), Tile(8, 2), Tile(6, 2), Tile(4, 4), Tile(6, 4), Tile(5, 5), Tile(8, 3)),
    False: (Tile(4, 1), Tile(5, 1), Tile(6, 1), Tile(2, 2), Tile(3, 2)),
}
"""Register tiles that tuning tries, by whether the device has vectors of 16."""
_REPEATED: Final = 4  # tiles of columns up to which each computes a prologue again: a guess, not measured on a GPU
_SKINNY: Final = 8  # rows up to which a GPU reads B for every column by itself


def gemm(
    c: Lowering,
    a: Mat,
    b: Mat | Panels | Columns,
    y: Mat,
    size: tuple[int, int, int],
    batch: Sequence[int] = (),
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    add: Mat | None = None,
    exact: int = 0,
    epilogue: Epilogue | None = None,
    prologue: Prologue | None = None,
) -> None:
    """Emit y = alpha A B + beta C for all batch indices.

    Args:
        c: the operator's context.
        a: M x K.
        b: K x N; Panels only in the CPU class.
        y: M x N with contiguous columns.
        size: M, N and K.
        batch: sizes of the batch dimensions; outputs of different indices must not overlap.
        alpha: factor of the product.
        beta: factor of C.
        add: C, M x N of y's type, strides 0 where it is broadcast.
        exact: for small integers with an int32 result, neither alpha nor C: so many products add up exactly in float.
        epilogue: what else is done to each element of y, where y's tensor is the epilogue's result.
        prologue: what computes A, if it can be done where A is read; else A has to be stored before.
    """
    m, n, k = size
    if epilogue is not None and not (y.ref.dtype == FLOAT32 and epilogue.fits(n)):
        epilogue = None
    if max(size) > I32_MAX:
        raise Refused(f"{c.node.op}: a product of {m} x {k} by {k} x {n} is too large for the kernel")
    if m == 0 or n == 0 or 0 in batch:
        return
    if beta == 0:
        add = None
    operands: list[Mat | Panels | Columns] = [a, b, y] if add is None else [a, b, y, add]
    sizes, strides = collapse_batch(batch, [o.batch or (0,) * len(batch) for o in operands])
    outer, inner = sizes[: max(len(sizes) - _LEVELS, 0)], sizes[-_LEVELS:]
    if math.prod(outer) > MAX_LAUNCHES:
        raise Refused(f"{c.node.op}: the batch dimensions need more than {MAX_LAUNCHES} launches")
    if outer and c.cpu_class and (exact or y.ref.dtype == FLOAT16):
        # Before the operands become parts of tensors, whose ends are not known any more.
        operands[0] = replace(a, ref=as_float(c, a.ref))
        if isinstance(b, Mat):
            operands[1] = replace(b, ref=as_float(c, b.ref))
    for index in itertools.product(*map(range, outer)):
        moved = []
        for operand, stride in zip(operands, strides, strict=True):
            offset = sum(i * s for i, s in zip(index, stride, strict=False))
            moved.append(moved_by(operand, offset, stride[len(outer) :]))
        fed = prologue if math.prod(batch) == 1 and a.col == 1 and a.row == k else None
        _Product(c, size, inner, alpha, beta, exact, epilogue, fed).emit(*moved)  # type: ignore[arg-type]


@dataclass(slots=True)
class _Product:
    c: Lowering
    size: tuple[int, int, int]
    batch: tuple[int, ...]
    alpha: float
    beta: float
    exact: int = 0
    epilogue: Epilogue | None = None
    prologue: Prologue | None = None
    _text: str = ""  # of the nodes around, for the launch that stores the results

    def emit(self, a: Mat, b: Mat | Panels | Columns, y: Mat, add: Mat | None = None) -> None:
        if not self.c.cpu_class:
            assert not isinstance(b, Panels)
            m, n, k = self.size
            if n == 1 and y.row == 1 and isinstance(b, Mat):  # a matrix times a vector: the long side as columns
                self.size, self.prologue = (n, m, k), None
                a, b, y, add = b.t, a.t, Mat(y.ref, 0, 1, y.batch), add and add.t
            self._gpu(a, b, y, add)
        elif not self.exact and y.ref.dtype not in (FLOAT32, FLOAT16):
            assert isinstance(b, Mat)
            self._plain(a, b, y, add)
        else:
            self._cpu(a, b, y, add)

    def _cpu(self, a: Mat, b: Mat | Panels | Columns, y: Mat, add: Mat | None) -> None:
        m, n, k = self.size
        if isinstance(b, Panels) and self._fed(b, y, add):
            return
        if isinstance(b, Mat) and not self.exact:
            if n == 1 and a.col == 1 and b.row == 1:
                self._rows(a, b, y, y.row, add, 0 if add is None else add.row, m)
                return
            if m == 1 and b.row == 1 and a.col == 1 and b.col != 1:
                self._rows(b.t, a, y, 1, add, 0 if add is None else add.col, n)
                return
        a = Mat(as_float(self.c, a.ref), a.row, a.col, a.batch)
        rows, vectors = self._choose_tile(b)
        if isinstance(b, Mat):
            # Packing pays where B is read often, or where its rows lie so that they crowd the same lines of the cache.
            often = m > 32 * rows or (m > 2 * rows and b.row % 256 == 0)
            direct = b.col == 1 and n >= 16 * vectors
            if direct:
                how = "packed" if often else "in place"
                direct = self._choose("gemm.right", ("in place", "packed"), how) == "in place"
            b = Mat(as_float(self.c, b.ref), b.row, b.col, b.batch) if direct else self._pack(b)
        mode, b_row = (0, 0) if isinstance(b, Panels) else (1, b.row) if isinstance(b, Mat) else (2, 0)
        args: list[Ref | np.generic] = [
            a.ref,
            *_i64(a.row, a.col),
            *self._strides(a),
            b.ref,
            *_i64(b_row),
            *self._strides(b),
        ]
        args += [y.ref, *_i64(y.row), *self._strides(y), *self._added(add, FLOAT32)]
        columns = n
        once = {"AHEAD": _AHEAD} if rows == 1 and mode == 0 and self.c.info.kind == "cpu" else {}
        if isinstance(b, Columns):
            args += [b.table, *_i32(b.plane[1], b.plane[0], b.out[2], b.out[1])]
            columns = position_count(b.out, b.plane)
        tiles = -(-columns // (16 * vectors))
        split = self._row_split(m, rows, tiles, columns, k)
        self._launch(
            "gemm_cpu.cl", "gemm_cpu", self._finished(args, y), [*_i32(split, m, columns, k), np.float32(self.alpha)],
            (tiles, -(-m // split)), (1,), {"T": y.ref.dtype},
            {"MR": rows, "NV": vectors, "B_MODE": mode, "A_CONTIGUOUS": int(a.col == 1), "HAS_C": int(add is not None),
             "T_IS_FLOAT": int(y.ref.dtype == FLOAT32), "EXACT": self.exact, **once},
        )  # fmt: skip

    def _fed(self, b: Panels, y: Mat, add: Mat | None) -> bool:
        """A product whose rows the prologue computes; False if it cannot."""
        m, n, k = self.size
        whole = self.alpha == 1 and (add is None or (self.beta == 1 and add.row == 0 and add.col == 1))
        floats = all(o is None or o.ref.dtype == FLOAT32 for o in (y, add))
        if self.prologue is None or self.exact or n == 1 or not whole or not floats or isinstance(m, Size):
            return False
        panels = -(-n // 16)
        tile, _ = tile_for(m, n, self.c.info.vector_width, lambda vectors: panels % vectors == 0)
        product = Fed(m, n, k, b.ref, panels, y.ref, y.row, None if add is None else add.ref)
        return fed_product(replace(self.c, prologue=self.prologue, epilogue=self.epilogue), product, tile)

    def _choose(self, parameter: str, candidates: Sequence[V], default: V, operand: str = "") -> V:
        """A measured parameter for products of this size, type, batch and epilogue."""
        m, n, k = self.size
        extra = " epilogue" if self.epilogue is not None else ""
        sizes = (math.prod(self.batch), m, n, k)
        return self.c.choose(parameter, sizes, candidates, default, f"float32{extra}{operand}")

    def _choose_tile(self, b: Mat | Panels | Columns) -> tuple[int, int]:
        default = self._tile()
        if self.exact or any(isinstance(s, Size) for s in self.size) or min(self.size) == 1:
            return default
        wide = self.c.info.vector_width >= 16
        panels = -(-self.size[1] // 16)
        tiles = [(t.rows, t.vectors) for t in TILES[wide] if t.vectors <= max(panels, 1)]
        rows, vectors = self._choose("gemm.tile", tiles, tuple(default), f" {type(b).__name__.lower()}")
        return rows, vectors

    def _tile(self) -> tuple[int, int]:
        """Rows and vectors of 16 of the register tile: as many accumulators as the device's registers hold."""
        m, n, _ = self.size
        wide = self.c.info.vector_width >= 16
        if m == 1:
            rows, most = 1, 8 if wide else 4
        elif m <= 4:
            rows, most = 4, 4 if wide else 1
        elif wide and not isinstance(n, Size):
            return tile_for(_MANY if isinstance(m, Size) else m, n, self.c.info.vector_width)[0]
        else:
            rows, most = (8, 2) if wide else (6, 1)
        if isinstance(n, Size):  # one kernel for all sizes of a plan template, with B read in place from 32 columns on
            return rows, min(most, 2)
        needed = 1 << max(-(-n // 16) - 1, 0).bit_length()
        return rows, min(most, needed)

    def _row_split(self, m: int, rows: int, tiles: int, n: int, k: int) -> int:
        """Rows an item computes: all, unless there are too few tiles of columns to keep every core busy."""
        per_core = self._choose("gemm.parts", (1, 2, 4, 8, 16), 8)
        items = min(per_core * self.c.info.compute_units, max(m * n * k // 32768, 1))
        parts = max(-(-items // max(tiles * math.prod(self.batch), 1)), 1)
        return max(-(-m // (parts * rows)), 1) * rows

    def _pack(self, b: Mat) -> Panels:
        _, n, k = self.size
        # Batch dimensions that B does not have are not packed again and again.
        sizes = tuple(size if step else 1 for size, step in zip(self.batch, b.batch, strict=True))
        count = -(-n // 16)
        packed = self.c.temp(FLOAT32, (math.prod(sizes), count, k, 16))
        steps, step = [], count * k * 16
        for size in reversed(sizes):
            steps.append(step if size > 1 else 0)
            step *= size
        depth = max(-(-k // max(self.c.info.compute_units * 4 // count, 1)), 64)
        product = _Product(self.c, self.size, sizes, 1.0, 0.0)
        product._launch(
            "gemm_pack.cl", "gemm_pack", [b.ref, *_i64(b.row, b.col), *product._strides(b), packed],
            _i32(n, k, depth), (count, -(-k // depth)), (1,), {"T": b.ref.dtype}, {"HAS_C": 0},
        )  # fmt: skip
        return Panels(packed, tuple(reversed(steps)))

    def _rows(self, a: Mat, x: Mat, y: Mat, y_step: int, add: Mat | None, c_step: int, m: int) -> None:
        c, k = self.c, self.size[2]
        rows = max(-(-m // (4 * c.info.compute_units)), -(-16384 // max(k, 1)))
        args: list[Ref | np.generic] = [
            as_float(c, a.ref),
            *_i64(a.row),
            *self._strides(a),
            as_float(c, x.ref),
            *self._strides(x),
        ]
        args += [y.ref, *_i64(y_step), *self._strides(y)]
        if add is not None:
            args += [add.ref, *_i64(c_step), *self._strides(add), np.float32(self.beta)]
        self._launch(
            "gemm_pack.cl", "gemv_rows", self._finished(args, y),
            [*_i32(rows, m, k), np.float32(self.alpha)], (-(-m // rows), 1), (1,),
            {"T": y.ref.dtype}, {"HAS_C": int(add is not None)},
        )  # fmt: skip

    def _plain(self, a: Mat, b: Mat, y: Mat, add: Mat | None) -> None:
        m, n, k = self.size
        acc = y.ref.dtype
        args: list[Ref | np.generic] = [
            a.ref,
            *_i64(a.row, a.col),
            *self._strides(a),
            b.ref,
            *_i64(b.row, b.col),
            *self._strides(b),
        ]
        args += [y.ref, *_i64(y.row), *self._strides(y), *self._added(add, acc)]
        self._launch(
            "gemm_plain.cl", "gemm_plain", args, [*_i32(m, n, k), acc.type(self.alpha)], (m, -(-n // 16)), (1,),
            {"T": y.ref.dtype}, {"HAS_C": int(add is not None)},
        )  # fmt: skip

    def _gpu(self, a: Mat, b: Mat | Columns, y: Mat, add: Mat | None) -> None:
        m, n, k = self.size
        acc = FLOAT32 if y.ref.dtype == FLOAT16 else y.ref.dtype
        table = isinstance(b, Columns)
        b_row, b_col = (0, 0) if isinstance(b, Columns) else (b.row, b.col)
        args: list[Ref | np.generic] = [
            a.ref,
            *_i64(a.row, a.col),
            *self._strides(a),
            b.ref,
            *_i64(b_row, b_col),
            *self._strides(b),
        ]
        args += [y.ref, *_i64(y.row), *self._strides(y), *self._added(add, acc)]
        if isinstance(b, Columns):
            args += [b.table, *_i32(b.plane[1], b.plane[0], b.out[2], b.out[1])]
        defines = {"B_TABLE": int(table), "HAS_C": int(add is not None)}
        types = {"T": y.ref.dtype, "TA": a.ref.dtype, "TB": b.ref.dtype}
        numbers = [*_i32(m, n, k), acc.type(self.alpha)]
        if m <= _SKINNY:
            along_k = not table and b_col != 1 and b_row == 1
            slices = 1 if table or k < 32 else 32 if along_k else 8
            items = 64 if n * slices <= 64 else 256
            defines |= {
                "MB": 1 << (m - 1).bit_length(),
                "GROUP_SIZE": items,
                "SLICES": slices,
                "B_K_FAST": int(along_k),
            }
            grid = (-(-n * slices // items), 1)
            args = self._finished(args, y)
            self._launch("gemm_skinny.cl", "gemm_skinny", args, numbers, grid, (items,), types, defines)
            return
        tile = group_tile(self.c, self.size, math.prod(self.batch), y.ref.dtype, acc.itemsize, table=table)
        rows, columns, depth, per_row, per_column = tile
        # Each tile of columns computes what is before the product for itself.
        made = self.prologue.over(k, 1) if self.prologue is not None and n <= _REPEATED * columns else None
        if made is not None:
            args[: 3 + _LEVELS] = made[1]
        args = self._finished(args, y, "" if made is None else made[0])
        defines |= {"TILE_M": rows, "TILE_N": columns, "DEPTH": depth, "ROWS": per_row, "COLUMNS": per_column}
        self._launch(
            "gemm_gpu.cl", "gemm_gpu", args, numbers, (-(-m // rows), -(-n // columns)), (items_of(tile),), types,
            {**defines, "A_K_FAST": int(a.col == 1), "B_N_FAST": int(b_col == 1)},
        )  # fmt: skip

    def _finished(self, args: list[Ref | np.generic], y: Mat, functions: str = "") -> list[Ref | np.generic]:
        """The arguments with the epilogue's; functions are the prologue's."""
        more: list[Ref | np.generic] = []
        if self.epilogue is not None:
            text, operands = self.epilogue.functions()
            functions += text
            more = [i64(y.ref.offset - self.epilogue.begin), *operands]
        self._text = chained_text(functions)
        return [*args, *more]

    def _added(self, add: Mat | None, acc: np.dtype) -> list[Ref | np.generic]:
        if add is None:
            return []
        return [add.ref, *_i64(add.row, add.col), *self._strides(add), acc.type(self.beta)]

    def _strides(self, operand: Mat | Panels | Columns) -> list[np.generic]:
        steps = operand.batch
        return _i64(*(0,) * (_LEVELS - len(steps)), *steps)

    def _launch(
        self, source: str, entry: str, args: Sequence[Ref | np.generic], tail: Sequence[np.generic],
        grid: tuple[int, int], block: Sequence[int], types: dict[str, np.dtype], defines: dict[str, int],
    ) -> None:  # fmt: skip
        """Launch over all batch indices; more than a grid's third dimension takes are done in slices."""
        inner = ((1,) * _LEVELS + self.batch)[-_LEVELS:]
        total = math.prod(inner)
        body = self._text + gpurt_kernels.text("batch.h") + gpurt_kernels.text(source)
        for first in range(0, total, _MAX_Z):
            sizes = _i32(first, inner[1], inner[2])
            self.c.launch(
                body, entry, [*args, *sizes, *tail], (*grid, min(total - first, _MAX_Z)), block, types=types,
                defines=defines,
            )  # fmt: skip


def as_float(c: Lowering, ref: Ref) -> Ref:
    """A tensor as float32 for the kernels of the CPU class; halves are converted into a workspace."""
    if ref.dtype == FLOAT32:
        return ref
    if ref.operand.kind == "const" and ref.operand.array is not None:
        return c.constant(ref.operand.array.astype(FLOAT32)).at(ref.offset, ref.shape)
    converted = c.temp(FLOAT32, ref.shape)
    c.launch(
        gpurt_kernels.text("batch.h") + gpurt_kernels.text("gemm_pack.cl"),
        "to_float",
        [ref, converted, i64(ref.size)],
        [-(-ref.size // 4096)],
        types={"T": ref.dtype},
        defines={"HAS_C": 0},
    )
    return converted


def _i32(*values: int) -> list[np.generic]:
    return [i32(v) for v in values]


def _i64(*values: int) -> list[np.generic]:
    return [i64(v) for v in values]
