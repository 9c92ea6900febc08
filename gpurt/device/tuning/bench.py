"""Units on the device with random inputs, timed by the device's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from gpurt.provider import Bound, BufferRef, DeviceMemory, Operand, UnitPlan
from gpurt.spec import Spec

LEAST: Final = 3  # runs at least, of which the shortest counts
MOST: Final = 20
ENOUGH: Final = 0.02  # seconds of device time after which no further run is made
EVICTED: Final = 16 << 20  # bytes copied before a run whose weights a model's other layers would have driven out
COLD: Final = 1 << 18  # bytes of weights from which on that is done
LAUNCH: Final = 2e-6  # seconds that a launch costs besides, so that one kernel is worth more than three as fast


class Bench:
    """A unit bound to memory of its own.

    Args:
        memory: the device.
        plan: the unit's plan.
        inputs: the specs it was planned for; constants keep their content, floats become random, all else zero.
    """

    def __init__(self, memory: DeviceMemory, plan: UnitPlan, inputs: Sequence[Spec | None]) -> None:
        self._memory, self._plan = memory, plan
        self._taken: list[BufferRef] = []
        self._outs: dict[int, BufferRef] = {}
        self._weights = 0
        timer = memory.timer()
        self._timer = timer
        self._stream: Any = memory.stream() if timer is None else timer.stream
        kept: list[Any] = []
        try:
            refs = [self._ref(o, inputs, kept) for o in plan.operands]
            self._bound: Bound | None = plan.bind(refs) if plan.bind is not None and plan.operands else None
            cold = self._weights >= COLD
            self._evict = [self._alloc(EVICTED) for _ in range(2)] if cold else []
            memory.synchronize(self._stream)
        except BaseException:
            self.close()
            raise

    def _ref(self, operand: Operand, inputs: Sequence[Spec | None], kept: list[Any]) -> BufferRef:
        if operand.kind == "const":
            assert operand.array is not None, "a constant operand without content"
            self._weights += operand.array.nbytes
            return self._memory.constant(operand.array)
        if operand.kind == "in":
            spec = inputs[operand.index]
            assert spec is not None, "an operand for an input that is not there"
            content = _content(spec, operand.index)
            if spec.const is not None:
                self._weights += content.nbytes
            ref = self._alloc(content.nbytes)
            if content.nbytes:
                kept += [content, self._memory.write(ref, content, self._stream)]
            return ref
        spec = self._plan.outputs[operand.index] if operand.kind == "out" else None
        ref = self._alloc(operand.nbytes if spec is None else spec.nbytes)
        if spec is not None:
            self._outs[operand.index] = ref
        return ref

    def _alloc(self, nbytes: int) -> BufferRef:
        ref = self._memory.arena.alloc(max(nbytes, 1))
        self._taken.append(ref)
        return ref

    def seconds(self) -> float:
        """See Prepared."""
        if self._bound is None:
            return LAUNCH
        best, total, runs = float("inf"), 0.0, 0
        while runs < LEAST or (total < ENOUGH and runs < MOST):
            if self._evict:
                self._memory.copy(self._evict[0], self._evict[1], EVICTED, self._stream)
                self._memory.synchronize(self._stream)
            once = self._once(self._bound.steps)
            best, total, runs = min(best, once), total + once, runs + 1
        return best + LAUNCH * len(self._bound.steps)

    def _once(self, steps: Sequence[Callable[[Any], Any]]) -> float:
        timer = self._timer
        if timer is None:
            start = time.perf_counter()
            for step in steps:
                step(self._stream)
            self._memory.synchronize(self._stream)
            return time.perf_counter() - start
        tokens = [timer.time(step) for step in steps]
        self._memory.synchronize(self._stream)
        spans = [timer.span(t) for t in tokens if t is not None]
        return sum(end - begin for begin, end in spans) / 1e9

    def outputs(self) -> list[np.ndarray]:
        """See Prepared."""
        found, kept = [], []
        for index, ref in sorted(self._outs.items()):
            spec = self._plan.outputs[index]
            array = np.empty(spec.shape, spec.dtype)
            if array.nbytes:
                kept.append(self._memory.read(array, ref, self._stream))
            found.append(array)
        self._memory.synchronize(self._stream)
        return found

    def close(self) -> None:
        """See Prepared."""
        self._memory.synchronize(self._stream)
        self._bound = None  # buffers that are still bound to a kernel must outlive it
        while self._taken:
            self._memory.arena.free(self._taken.pop())


def _content(spec: Spec, seed: int) -> np.ndarray:
    if spec.const is not None:
        return np.ascontiguousarray(spec.const)
    if spec.dtype.kind != "f":
        return np.zeros(spec.shape, spec.dtype)
    return np.random.default_rng(seed).uniform(-1, 1, spec.shape).astype(spec.dtype)
