"""A launch that is part of a persistent kernel's table, or, while it is in none, a launch of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gpurt.device.driver import Driver, Launcher, TensorArg
from gpurt.device.persistent.text import TENSOR, Kind

if TYPE_CHECKING:
    from gpurt.device.persistent.table import Table

_TYPES: Final[Mapping[np.dtype, str]] = {
    np.dtype(np.float32): "float", np.dtype(np.float64): "double", np.dtype(np.bool_): "u8",
    **{np.dtype(f"{kind}{size}"): f"{kind}{size * 8}" for kind in "iu" for size in (1, 2, 4, 8)},
}  # fmt: skip
"""NumPy's number types in the words of the dialect header."""

Arg = TensorArg | np.generic


class Part:
    """A bound kernel whose groups have one item; see Launcher.

    Args:
        driver: of the device.
        build: makes the kernel's own program, for when it is launched outside any table.
        text: of that program.
        entry: the kernel's name.
        args: tensors and numbers in the kernel's order.
        grid: groups along three axes.

    Attributes:
        kind: what a persistent kernel has to know of it; None if it cannot be part of one.
    """

    __slots__ = ("_alone", "_build", "_driver", "_entry", "_table", "args", "grid", "kind", "number")

    block = (1, 1, 1)

    def __init__(
        self,
        driver: Driver,
        build: Callable[[], Any],
        text: str,
        entry: str,
        args: Sequence[Arg],
        grid: tuple[int, int, int],
    ) -> None:
        self._driver, self._build, self._entry = driver, build, entry
        self.args, self.grid = list(args), grid
        params = [TENSOR if isinstance(a, TensorArg) else _TYPES.get(a.dtype) for a in args]
        known = tuple(p for p in params if p is not None)
        self.kind = Kind(text, entry, known) if len(known) == len(params) else None
        self.number = 0
        self._alone: Launcher | None = None
        self._table: Table | None = None

    def join(self, table: Table, number: int) -> None:
        """Be launched by a table from now on, which has the arguments so far."""
        self._table, self.number, self._alone = table, number, None

    def set(self, position: int, arg: Arg) -> None:
        """See Launcher."""
        self.args[position] = arg
        if self._table is not None:
            self._table.set(self.number, position, arg)
        elif self._alone is not None:
            self._alone.set(position, arg)

    def resize(self, grid: tuple[int, int, int]) -> None:
        """See Launcher."""
        self.grid = grid
        if self._table is not None:
            self._table.resize(self.number, grid)
        elif self._alone is not None:
            self._alone.resize(grid)

    def __call__(self, stream: Any) -> Any:
        if self._table is not None:
            return self._table.launch(stream, self.number, 1)
        if self._alone is None:
            self._alone = self._driver.prepare(self._build(), self._entry, self.args, self.grid, self.block)
        return self._alone(stream)
