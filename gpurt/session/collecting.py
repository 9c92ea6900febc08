"""Python's garbage collector, held back while a session is made."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_depth = 0


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for cycles of garbage meanwhile, in any thread; nothing changes where it is off anyway.

    Making a session makes many objects at once, which sets off searches through all objects of the process, those of
    all imported packages included: a tenth of the time, and hardly anything of it is garbage.
    """
    global _depth  # noqa: PLW0603 - the collector is the process's
    with _lock:
        mine = _depth > 0 or gc.isenabled()
        if mine:
            _depth += 1
            gc.disable()
    try:
        yield
    finally:
        if mine:
            with _lock:
                _depth -= 1
                if _depth == 0:
                    gc.enable()
