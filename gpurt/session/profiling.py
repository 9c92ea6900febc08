"""Profiles: what a session and its runs did and when, as a trace that Perfetto, Chrome and ONNX Runtime's tools read.

The file is a list of events in the Trace Event Format (Google, 2016): ``ph`` X with ``ts`` and ``dur`` in whole
microseconds, ``cat`` Session, Node or Kernel, numbers in ``args`` as strings, as ONNX Runtime writes them. Node events
are steps as the host sees them; for a device that is the launch. Kernel events are the device's own times.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final

from gpurt import logs
from gpurt.errors import InvalidArgument
from gpurt.plan.trace import Event, Trace
from gpurt.provider import DeviceTimer
from gpurt.run_options import RunOptions

logger = logs.get(__name__)

MOST_EVENTS: Final = 1_000_000
_DEVICE_LANES: Final = 1 << 24  # above the ids of threads


class Profile:
    """Collects events until it is written.

    Attributes:
        start_time_ns: when it began, in nanoseconds since 1970.
    """

    def __init__(self) -> None:
        self.start_time_ns = time.time_ns()
        self._zero = perf_counter_ns()
        self._events: list[Event] = []
        self._full = False
        self._closed = False
        self._name = ""
        self._idle: list[tuple[int, dict[int, DeviceTimer | None]]] = []
        self._sets = 0
        self._lock = threading.Lock()

    def created(self, marks: Sequence[tuple[str, float]], *, from_file: bool) -> None:
        """The phases of the session's creation: each name with the end of that phase, in seconds of perf_counter.

        The first mark is the beginning. ONNX Runtime's two events come first: loading, and all the rest.
        """
        thread = threading.get_native_id()
        loaded = f"model_loading_{'uri' if from_file else 'array'}"
        spans = [(loaded, marks[0][1], marks[1][1]), ("session_initialization", marks[1][1], marks[-1][1])]
        spans += [(b[0], a[1], b[1]) for a, b in pairwise(marks[1:])]
        self._add([Event("Session", name, thread, int(1e9 * a), int(1e9 * b), {}) for name, a, b in spans])

    @contextmanager
    def trace(self, devices: Sequence[str], options: RunOptions) -> Iterator[Trace]:
        """The trace of a run, on queues of its own; when the run has ended, its events belong to the profile."""
        with self._lock:
            if not self._idle:
                self._idle.append((self._sets, {}))
                self._sets += 1
            number, timers = self._idle.pop()
        for timer in timers.values():
            if timer is not None:
                timer.align()
        trace = Trace(devices, number, timers)
        start = perf_counter_ns()
        try:
            yield trace
        finally:
            tag = {"run_tag": options.logid} if options.logid else {}
            trace.host("Session", "model_run", start, tag)
            trace.settle()
            self._add(trace.events)
            with self._lock:
                self._idle.append((number, timers))

    def events(self) -> list[dict[str, Any]]:
        """All events so far, as the file will have them."""
        with self._lock:
            events = list(self._events)
        lanes: dict[str, int] = {}
        index: dict[str, int] = {}
        pid = os.getpid()
        found = []
        for event in events:
            lane = event.lane
            if isinstance(lane, str):
                lane = _DEVICE_LANES + lanes.setdefault(lane, len(lanes))
            args = dict(event.args if isinstance(event.args, Mapping) else event.args())
            if event.category == "Node":
                args["node_index"] = str(index.setdefault(event.name, len(index)))
            begin, end = (round((t - self._zero) / 1000) for t in (event.start, event.end))
            found.append(
                {"cat": event.category, "pid": pid, "tid": lane, "dur": end - begin, "ts": begin, "ph": "X",
                 "name": event.name, "args": args}
            )  # fmt: skip
        threads = dict.fromkeys(e.lane for e in events if isinstance(e.lane, int))
        names = {tid: f"host thread {number}" for number, tid in enumerate(threads)}
        names |= {_DEVICE_LANES + number: name for name, number in lanes.items()}
        return [_metadata(pid, 0, "process_name", "gpurt"),
                *(_metadata(pid, tid, "thread_name", name) for tid, name in names.items()), *found]  # fmt: skip

    def close(self, prefix: str) -> str:
        """Write the profile unless it has been written, and return its file's name."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._name = self.write(prefix)
            self._events.clear()
        return self._name

    def close_late(self, prefix: str) -> None:
        """As close, for a session that nobody has any more: what goes wrong can only be logged."""
        try:
            self.close(prefix)
        except InvalidArgument as e:
            logger.warning("%s", e)

    def write(self, prefix: str) -> str:
        """Write ``<prefix>_<date>_<time>.json`` and return its name. Raises InvalidArgument where that fails."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(now)) + f"_{int(1000 * now) % 1000:03}"
        text = json.dumps(self.events(), separators=(",", ":")).replace('},{"cat"', '},\n{"cat"')
        number = 0
        while True:
            path = Path(f"{prefix}_{stamp}{f'_{number}' if number else ''}.json")
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                number += 1
                continue
            except OSError as e:
                raise InvalidArgument(
                    f"the profile {str(path)!r} cannot be written: {e.strerror}",
                    remedy="Set profile_file_prefix to a path in a folder that exists and can be written to",
                ) from e
            logger.info("profile written: %s", path)
            return str(path)

    def _add(self, events: Sequence[Event]) -> None:
        with self._lock:
            if self._closed:
                return  # of a run that was going on when the profile was written
            room = max(MOST_EVENTS - len(self._events), 0)
            self._events.extend(events[:room])
            if len(events) > room and not self._full:
                self._full = True
                logger.warning("the profile is full: of later runs nothing is kept after %d events", MOST_EVENTS)


def _metadata(pid: int, tid: int, kind: str, name: str) -> dict[str, Any]:
    return {"cat": "__metadata", "pid": pid, "tid": tid, "ts": 0, "ph": "M", "name": kind, "args": {"name": name}}
