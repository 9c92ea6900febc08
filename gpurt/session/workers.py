"""The threads of run_async."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from gpurt import logs

logger = logs.get(__name__)

WORKERS: Final = 4
"""Threads of a session; work beyond that waits."""


class Workers:
    """A session's worker threads, started when they are first needed; they end with the session."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def submit(
        self, work: Callable[[], list[Any]], callback: Callable[[list[Any], Any, str], None], user_data: Any
    ) -> None:
        """Do the work on a thread, then call ``callback(results, user_data, error)`` there; errors are texts."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="gpurt")
        self._pool.submit(_work, work, callback, user_data)

    def shutdown(self) -> None:
        """Wait for all work."""
        if self._pool is not None:
            self._pool.shutdown()


def _work(work: Callable[[], list[Any]], callback: Callable[[list[Any], Any, str], None], user_data: Any) -> None:
    results, error = [], ""
    try:
        results = work()
    except Exception as e:  # noqa: BLE001 - whatever run raises is the callback's to know
        error = str(e) or type(e).__name__
    try:
        callback(results, user_data, error)
    except Exception as e:
        logger.error("the callback of run_async failed: %s: %s", type(e).__name__, e, exc_info=e)
