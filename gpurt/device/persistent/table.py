"""The table of a persistent kernel in memory that host and device share: launches, and their parameters as words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gpurt.device.driver import AddressingDriver, Launcher, TensorArg
from gpurt.device.persistent.part import Arg, Part
from gpurt.device.persistent.text import ENTRY, TENSOR, WORDS, Kind
from gpurt.provider import BufferRef
from gpurt.spec import aligned_zeros

MOST_COPIES: Final = 8
"""Of a table, for launches that are under way while parameters are set for the next one."""

_LINE: Final = 16  # see persistent.cl


class Table:
    """Launches one after another, of which any stretch can be launched as one.

    Args:
        driver: of a device that computes in the host's memory.
        program: of a persistent kernel.
        numbers: the number of each kernel in the program.
        parts: the launches.
        walkers: work-groups to launch: the cores.
    """

    def __init__(
        self,
        driver: AddressingDriver,
        program: Any,
        numbers: dict[Kind, int],
        parts: Sequence[Part],
        walkers: int,
    ) -> None:
        self._driver = driver
        self._parts = list(parts)
        head = len(parts) * WORDS
        self._starts: list[list[int]] = []
        word = head
        for part in parts:
            starts = []
            for param in part.kind.params if part.kind is not None else ():
                starts.append(word)
                word += 2 if param == TENSOR else 1
            self._starts.append(starts)
        self._words = aligned_zeros(word * 8).view(np.uint64)
        counters = aligned_zeros((1 + len(parts) * (1 + walkers)) * _LINE * 4).view(np.int32)
        for number, part in enumerate(parts):
            first = (self._starts[number] or [head])[0] - head
            assert part.kind is not None, "only parts with a kind come here"
            self._words[number * WORDS : number * WORDS + 5] = [numbers[part.kind], first, *part.grid]
            for position, arg in enumerate(part.args):
                self._write(number, position, arg)
        # Copies of the words, each with what waits for the launch that read it last.
        self._copies: list[tuple[np.ndarray, TensorArg]] = [(self._words, _tensor(driver, self._words))]
        self._tokens: list[Any] = [None]
        self._current = 0
        self._stretch = (0, len(parts))
        self._counters = _tensor(driver, counters)  # a kernel does not keep its arguments
        args: list[Arg] = [self._copies[0][1], np.int64(head), np.int32(0), np.int32(len(parts)), self._counters]
        self._launcher: Launcher = driver.prepare(program, ENTRY, args, (walkers, 1, 1), (1, 1, 1))

    def __call__(self, stream: Any) -> Any:
        return self.launch(stream, 0, len(self._parts))

    def launch(self, stream: Any, first: int, count: int) -> Any:
        """Launch a stretch of the table."""
        if self._stretch != (first, count):
            self._launcher.set(2, np.int32(first))
            self._launcher.set(3, np.int32(count))
            self._stretch = (first, count)
        token = self._tokens[self._current] = self._launcher(stream)
        return token

    def set(self, number: int, position: int, arg: Arg) -> None:
        """Replace an argument of a launch."""
        self._settle()
        self._write(number, position, arg)

    def resize(self, number: int, grid: tuple[int, int, int]) -> None:
        """Change the groups of a launch."""
        self._settle()
        self._words[number * WORDS + 2 : number * WORDS + 5] = grid

    def _write(self, number: int, position: int, arg: Arg) -> None:
        word = self._starts[number][position]
        if isinstance(arg, TensorArg):
            self._words[word] = self._driver.address(arg.ref.buffer)
            self._words[word + 1] = arg.ref.offset // arg.itemsize
        else:
            one = self._words[word : word + 1]
            one[0] = 0
            one.view(arg.dtype)[0] = arg

    def _settle(self) -> None:
        """Have words that no launch under way reads."""
        token = self._tokens[self._current]
        if token is None:
            return
        if self._driver.done(token):
            self._tokens[self._current] = None
            return
        old = self._words
        for i, other in enumerate(self._tokens):
            if other is None or self._driver.done(other):
                self._current = i
                break
        else:
            if len(self._tokens) < MOST_COPIES:
                words = aligned_zeros(old.nbytes).view(np.uint64)
                self._copies.append((words, _tensor(self._driver, words)))
                self._tokens.append(None)
                self._current = len(self._tokens) - 1
            else:
                self._current = (self._current + 1) % MOST_COPIES
                self._driver.wait(self._tokens[self._current])
        self._words, tensor = self._copies[self._current]
        self._tokens[self._current] = None
        self._words[:] = old
        self._launcher.set(0, tensor)


def _tensor(driver: AddressingDriver, array: np.ndarray) -> TensorArg:
    return TensorArg(BufferRef(driver.wrap(array), 0, array.nbytes), array.itemsize)
