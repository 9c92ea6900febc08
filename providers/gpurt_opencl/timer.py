"""Device times of what is enqueued, from the events of a profiling queue."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Final

import pyopencl as cl

_TRIES: Final = 3


class OpenCLTimer:
    """gpurt.provider.DeviceTimer over a queue of its own with profiling switched on (OpenCL 1.2, section 5.12).

    Args:
        context: the device's context.
        device: the device, which may be a part of the one that PoCL would take.
    """

    def __init__(self, context: cl.Context, device: cl.Device) -> None:
        self.stream = cl.CommandQueue(context, device, cl.command_queue_properties.PROFILING_ENABLE)
        self._shift = 0  # from the device's clock to the host's, in nanoseconds

    def align(self) -> None:
        """Enclose an empty command between two looks at the host's clock; the narrowest of three tries counts."""
        narrowest = 1 << 62
        for _ in range(_TRIES):
            before = perf_counter_ns()
            event = cl.enqueue_marker(self.stream)
            event.wait()
            after = perf_counter_ns()
            high = after - event.profile.end
            # Intel's runtime does not say when a marker was enqueued: then only its end is known.
            low = before - event.profile.queued if event.profile.queued else high
            if high - low < narrowest:
                narrowest, self._shift = high - low, (low + high) // 2

    def time(self, work: Callable[[Any], Any]) -> cl.Event | None:
        """See DeviceTimer: the event that the work returns."""
        event = work(self.stream)
        return event if isinstance(event, cl.Event) else None

    def span(self, token: cl.Event) -> tuple[int, int]:
        """See DeviceTimer."""
        return token.profile.start + self._shift, token.profile.end + self._shift
