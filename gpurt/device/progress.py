"""A line on the terminal while programs are compiled for long, as in the first session with a model on a device."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

from gpurt import logs

logger = logs.get(__name__)

PATIENCE: Final = 2.0
"""Seconds of compiling, in all, after which the line appears."""


class Progress:
    """Counts what is compiled for one device, one program at a time; silent before PATIENCE, and off a terminal.

    Args:
        device: ``opencl:0``.

    Attributes:
        built: programs.
        seconds: that they took.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.built = 0
        self.seconds = 0.0

    @contextmanager
    def compiling(self, name: str) -> Iterator[None]:
        """While this is open, a program for a node is compiled; the line is there no longer than that."""
        so_far = f"{self._device}: compiling kernels, {self.built} done in {self.seconds:.0f} s, now {name}"
        start = time.perf_counter()
        with _line(so_far) if self.seconds >= PATIENCE and _watched() else nullcontext():
            yield
        seconds = time.perf_counter() - start
        self.built += 1
        self.seconds += seconds
        logger.info(
            "%s: kernel for %s compiled in %.2f s; %d programs, %.1f s so far",
            self._device, name, seconds, self.built, self.seconds,
        )  # fmt: skip


def _watched() -> bool:
    """Whether there is somebody to tell, who has not asked for silence."""
    return sys.stderr is not None and sys.stderr.isatty() and logger.isEnabledFor(logging.WARNING)


def _line(text: str) -> Any:
    from rich.console import Console
    from rich.markup import escape

    return Console(stderr=True).status(escape(text))
