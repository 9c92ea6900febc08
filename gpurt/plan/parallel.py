"""Runs the lanes of a plan: the caller's thread has the first, threads that the session keeps have the others.

Lanes signal to one another by locks that are made for each run: held until what others wait for is done. A run that
finds too few idle threads does all steps itself, in the order of the plan, so that runs of many threads neither wait
for one another nor start ever more threads.
"""

from __future__ import annotations

import os
import threading
import weakref
from _thread import LockType, allocate_lock
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from operator import itemgetter
from queue import SimpleQueue
from typing import Any

from gpurt.plan.lanes import Lanes, segments
from gpurt.plan.replay import BoundStep, Op, Variant, plain
from gpurt.plan.values import Run
from gpurt.provider import DeviceMemory

Task = Callable[[], None]


class Worker:
    """A thread that does one task after the other."""

    def __init__(self, name: str) -> None:
        self._inbox: SimpleQueue[Task | None] = SimpleQueue()
        threading.Thread(target=_serve, args=(self._inbox,), name=name, daemon=True).start()

    def give(self, task: Task | None) -> None:
        """Do a task once those before are done; None ends the thread."""
        self._inbox.put(task)


def _serve(inbox: SimpleQueue[Task | None]) -> None:
    while True:
        task = inbox.get()
        if task is None:
            return
        task()
        del task  # it knows of a run's values


class Threads:
    """A session's threads for lanes, started when they are first needed; they end with the session.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._all: list[Worker] = []
        self._process = os.getpid()
        weakref.finalize(self, _stop, self._all).atexit = False

    def take(self, count: int) -> list[Worker] | None:
        """So many threads; None if not all of them can be had now."""
        with self._lock:
            if self._process != os.getpid():  # threads do not survive a fork
                self._process = os.getpid()
                self._idle.clear()
                self._all.clear()
            if count > len(self._idle) + self._most - len(self._all):
                return None
            while len(self._idle) < count:
                self._all.append(Worker(f"gpurt lane {len(self._all) + 1}"))
                self._idle.append(self._all[-1])
            return [self._idle.pop() for _ in range(count)]

    def give_back(self, worker: Worker) -> None:
        """A thread's last task is about to end."""
        with self._lock:
            self._idle.append(worker)


def _stop(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.give(None)


BoundSegment = tuple[Sequence[int], Sequence[Op], Sequence[int]]
"""Signals to wait for, what to do, signals to give."""


class BoundLanes:
    """The lanes of a plan over the bound steps of one of its states."""

    def __init__(self, lanes: Lanes, steps: Sequence[BoundStep], memories: Sequence[DeviceMemory | None]) -> None:
        self._lanes, self._signals = segments([step for step, _ in steps], lanes)
        self._spaces = tuple(lanes.spaces)
        self._steps = steps
        self._plain = self._bound(partial(plain, memories=memories))
        self._variants: dict[Variant, list[list[BoundSegment]]] = {}

    @property
    def ops(self) -> Sequence[Op]:
        """All of it for one thread."""
        first = [s.steps[0] for lane in self._lanes for s in lane]
        bound = [ops for lane in self._plain for _, ops, _ in lane]
        # A segment waits for ends of others, which begin earlier in the plan than it does.
        return [op for _, ops in sorted(zip(first, bound, strict=True), key=itemgetter(0)) for op in ops]

    def replay(self, run: Run, registers: list[Any]) -> bool:
        """Run all steps; False, with nothing done, where there are not enough idle threads.

        Raises what the first step that failed has raised, after all lanes have stopped.
        """
        lanes = self._plain if run.variant is None else self._variants.get(run.variant)
        if lanes is None:
            assert run.variant is not None, "the plain way is there"
            lanes = self._variants[run.variant] = self._bound(run.variant)
        for space in self._spaces:
            run.stream(space)  # so that no lane adds to the queues that another one counts
        threads = run.threads
        workers = None if threads is None else threads.take(len(lanes) - 1)
        if threads is None or workers is None:
            return False
        turn = _Turn(run, registers, self._signals, lanes)
        if run.trace is None:
            turn.go(threads, workers)
            return True
        run.trace.apart = True  # a device's times cannot be asked for while another lane adds to its queue
        try:
            turn.go(threads, workers)
        finally:
            run.trace.apart = False
        return True

    def _bound(self, variant: Variant) -> list[list[BoundSegment]]:
        return [
            [(s.waits, variant([self._steps[i] for i in s.steps]), s.signals) for s in lane] for lane in self._lanes
        ]


class _Turn:
    """One replay of all lanes."""

    def __init__(self, run: Run, registers: list[Any], signals: int, lanes: Sequence[Sequence[BoundSegment]]) -> None:
        self._run = run
        self._registers = registers
        self._lanes = lanes
        self._signals: list[LockType] = [_held() for _ in range(signals)]
        self._ended: list[LockType] = []
        self._failed = False
        self._error: BaseException | None = None
        self._lock = allocate_lock()

    def go(self, threads: Threads, workers: Sequence[Worker]) -> None:
        started = 0
        try:
            for worker, lane in zip(workers, self._lanes[1:], strict=True):
                ended = _held()
                task = partial(self._serve, copy_context(), lane, threads, worker, ended)
                self._ended.append(ended)
                worker.give(task)
                started += 1
        except BaseException as e:  # noqa: BLE001 - raised below, when nobody works on this run any more
            self._fail(e)
            del self._ended[started:]
            for worker, lane in zip(workers[started:], self._lanes[1 + started :], strict=True):
                self._release(lane)
                threads.give_back(worker)
        self._lane(self._lanes[0])
        for ended in self._ended:
            while True:
                try:
                    ended.acquire()
                    break
                except BaseException as e:  # noqa: BLE001 - a signal's; the others stop at their next step
                    self._fail(e)
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it knows of this frame

    def _serve(
        self, context: Context, lane: Sequence[BoundSegment], threads: Threads, worker: Worker, ended: LockType
    ) -> None:
        context.run(self._lane, lane)
        threads.give_back(worker)
        ended.release()

    def _lane(self, lane: Sequence[BoundSegment]) -> None:
        run, registers, signals = self._run, self._registers, self._signals
        done = 0
        try:
            for waits, ops, gives in lane:
                for number in waits:
                    signals[number].acquire()
                for op in ops:
                    if self._failed:
                        return
                    op(run, registers)
                for number in gives:
                    signals[number].release()
                done += 1
        except BaseException as e:  # noqa: BLE001 - raised on the caller's thread
            self._fail(e)
        finally:
            self._release(lane[done:])

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if not self._failed:
                self._failed, self._error = True, error

    def _release(self, lane: Sequence[BoundSegment]) -> None:
        """Let those go on who wait for what will not be done: they see that the run has failed."""
        for _, _, gives in lane:
            for number in gives:
                with suppress(RuntimeError):  # it was given before
                    self._signals[number].release()


def _held() -> LockType:
    lock = allocate_lock()
    lock.acquire()
    return lock
