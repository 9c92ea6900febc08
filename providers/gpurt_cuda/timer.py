"""Device times of what is enqueued, from a CUDA event before it and one after it."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import cupy
from cupy.cuda import runtime

from gpurt_cuda.driver import CudaDriver, CudaStream


class CudaTimer:
    """gpurt.provider.DeviceTimer over a stream of its own.

    CUDA tells times between events only, in milliseconds as float32: so all are measured from an event that `align`
    records, and a run of a second is still told in steps of 60 nanoseconds.
    """

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self.stream: CudaStream = driver.stream()
        self._zero: Any = None
        self._host = 0  # of the zero event, in nanoseconds of time.perf_counter_ns

    def align(self) -> None:
        """Record the zero event on the empty stream; for the host it happens midway between before and after."""
        self._driver.synchronize(self.stream)
        before = perf_counter_ns()
        self._zero = self._record()
        self._zero.synchronize()
        self._host = (before + perf_counter_ns()) // 2

    def time(self, work: Callable[[Any], Any]) -> tuple[Any, Any]:
        """See DeviceTimer: the events before and after the work."""
        start = self._record()
        work(self.stream)
        return start, self._record()

    def span(self, token: tuple[Any, Any]) -> tuple[int, int]:
        """See DeviceTimer."""
        with self._driver.device:
            start, end = (round(1e6 * runtime.eventElapsedTime(self._zero.ptr, event.ptr)) for event in token)
        return self._host + start, self._host + end

    def _record(self) -> Any:
        with self._driver.device:
            event = cupy.cuda.Event()
            event.record(self.stream.cupy)
        return event
