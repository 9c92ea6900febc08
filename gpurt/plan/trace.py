"""What a traced run writes down: host steps, launches and copies, with the device's own times where it can tell them.

Only traced runs come here: their plans are replayed by another list of ops, and their device memories are wrapped, so
that a run without a trace pays nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns
from typing import Any, Final, cast

import numpy as np

from gpurt import dtypes
from gpurt.plan.replay import BoundStep, Op
from gpurt.plan.steps import DeviceStep, HostStep, Step, StoreStep, ViewStep
from gpurt.plan.values import BRANCH, Run
from gpurt.provider import HOST, BufferRef, DeviceMemory, DeviceTimer
from gpurt.provider import Step as Launch
from gpurt.spec import Spec
from gpurt.symbolic import plain

Args = Mapping[str, Any]

TOKENS: Final = 4096  # device times are asked for after the run, or before that many are kept


@dataclass(slots=True)
class Event:
    """Something that took time.

    Attributes:
        category: ``Session``, ``Node`` (a step, as the host sees it) or ``Kernel`` (on a device).
        name: what it is.
        lane: the native id of a host thread, or the name of a device's lane.
        start, end: nanoseconds of time.perf_counter_ns.
        args: more about it, or what computes that.
    """

    category: str
    name: str
    lane: int | str
    start: int
    end: int
    args: Args | Callable[[], Args]


class Trace:
    """The events of one run, in the order in which the host caused them.

    Args:
        devices: names of the devices by space, the host's first.
        number: of the run's set of queues; part of the names of their lanes.
        timers: these queues, by space; those that are missing are made when they are needed.
    """

    def __init__(self, devices: Sequence[str], number: int, timers: dict[int, DeviceTimer | None]) -> None:
        self.events: list[Event] = []
        self.devices = devices
        self._number = number
        self._timers = timers
        self._tokens: list[tuple[DeviceTimer, Any, Event]] = []
        self._here = threading.local()
        self.apart = False  # whether several threads are at work on the run

    @property
    def copied(self) -> str:
        """Name of the value that this thread's next copies are of."""
        return getattr(self._here, "copied", "")

    @copied.setter
    def copied(self, name: str) -> None:
        self._here.copied = name

    def memories(self, memories: Sequence[DeviceMemory | None]) -> list[DeviceMemory | None]:
        """Memories, by space, that write down what is done with these."""
        wrapped = [None if m is None else TracedMemory(m, s, self, self._timers) for s, m in enumerate(memories)]
        return cast("list[DeviceMemory | None]", wrapped)

    @contextmanager
    def span(self, category: str, name: str, args: Args | Callable[[], Args]) -> Iterator[None]:
        """An event on this thread's lane, before which the events inside it are listed only if they end earlier."""
        start = perf_counter_ns()
        try:
            yield
        finally:
            self.host(category, name, start, args)

    def host(self, category: str, name: str, start: int, args: Args | Callable[[], Args]) -> None:
        """An event on this thread's lane that ends now."""
        self.events.append(Event(category, name, threading.get_native_id(), start, perf_counter_ns(), args))

    def device(self, space: int, lane: str, name: str, timer: DeviceTimer, token: Any, args: Args) -> None:
        """An event on a device's lane; its times are filled in by `settle`."""
        event = Event("Kernel", name, f"{self.devices[space]} {lane} {self._number}", 0, 0, args)
        self.events.append(event)
        self._tokens.append((timer, token, event))

    @property
    def full(self) -> bool:
        """Whether so many events wait for their device times that these should be asked for now, if they can be."""
        return len(self._tokens) >= TOKENS and not self.apart

    def settle(self) -> None:
        """Ask for the device times of everything so far; its queues are empty."""
        for timer, token, event in self._tokens:
            event.start, event.end = timer.span(token)
        self._tokens.clear()


class TracedMemory:
    """A device's memory whose copies and waits are written down; everything else is the memory's own."""

    def __init__(self, memory: DeviceMemory, space: int, trace: Trace, timers: dict[int, DeviceTimer | None]) -> None:
        self._memory = memory
        self.device = trace.devices[space]
        self._space = space
        self._trace = trace
        self._timers = timers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    def timer_in_use(self, queue: int = 0) -> DeviceTimer | None:
        """The timer of one of this run's queues, once there is that queue."""
        return self._timers.get(self._space + BRANCH * queue)

    def stream(self) -> Any:
        """The timer's queue; an ordinary one where the device has no timer."""
        return self._timed(self._space, self._memory.stream)

    def branch_stream(self, number: int) -> Any:
        """As stream, of a timer of its own."""
        return self._timed(self._space + BRANCH * number, lambda: self._memory.branch_stream(number))

    def copy_stream(self) -> Any:
        """As stream, of a timer of its own."""
        return self._timed(-self._space, self._memory.copy_stream)

    def _timed(self, key: int, plain: Callable[[], Any]) -> Any:
        if key not in self._timers:
            timer = self._timers[key] = self._memory.timer()
            if timer is not None:
                timer.align()
        timer = self._timers[key]
        return plain() if timer is None else timer.stream

    def write(self, dst: BufferRef, src: np.ndarray, stream: Any) -> Any:
        """See DeviceMemory."""
        return self._copy("MemcpyFromHost", src.nbytes, lambda queue: self._memory.write(dst, src, queue), stream)

    def read(self, dst: np.ndarray, src: BufferRef, stream: Any) -> Any:
        """See DeviceMemory."""
        return self._copy("MemcpyToHost", dst.nbytes, lambda queue: self._memory.read(dst, src, queue), stream)

    def copy(self, dst: BufferRef, src: BufferRef, nbytes: int, stream: Any) -> Any:
        """See DeviceMemory."""
        return self._copy("Memcpy", nbytes, lambda queue: self._memory.copy(dst, src, nbytes, queue), stream)

    def synchronize(self, stream: Any) -> None:
        """See DeviceMemory."""
        start = perf_counter_ns()
        self._memory.synchronize(stream)
        self._trace.host("Session", "synchronize", start, {"device": self.device})
        if self._trace.full:
            for key, timer in self._timers.items():
                if abs(key) % BRANCH == self._space and timer is not None:  # they may be at work on what is traced, too
                    self._memory.synchronize(timer.stream)
            self._trace.settle()

    def _copy(self, name: str, nbytes: int, work: Launch, stream: Any) -> Any:
        trace = self._trace
        timer = next((t for t in self._timers.values() if t is not None and t.stream is stream), None)
        lane = "copies" if timer is self.timer_in_use() else "copy queue"
        args = {
            "op_name": name,
            "provider": ort_name(self.device),
            "device": self.device,
            "bytes": str(nbytes),
            "value": trace.copied,
        }
        start = perf_counter_ns()
        kept: Any = None

        def keeping(queue: Any) -> Any:
            nonlocal kept
            kept = work(queue)
            return kept

        token = None
        if timer is None:
            keeping(stream)
        else:
            token = timer.time(keeping)
        trace.host("Session", name, start, args)
        if timer is not None and token is not None:
            trace.device(self._space, lane, name, timer, token, args)
        return kept


def traced(steps: Sequence[BoundStep]) -> Sequence[Op]:
    """A variant (see gpurt.plan.replay) that writes every step down, and can be ended at any."""
    return [
        _launches(step, cast("Sequence[Launch]", bound))
        if isinstance(step, DeviceStep)
        else _op(step, cast("Op", bound))
        for step, bound in steps
    ]


def _launches(step: DeviceStep, launches: Sequence[Launch]) -> Op:
    node = step.unit.nodes[-1]
    name, space, queue = f"{node.name}_kernel_time", step.space, step.queue
    lane = f"branch {queue}" if queue else "queue"
    names = [kernel for i, kernel in enumerate(step.plan.kernels) if i not in step.skip]
    names += [node.op_type] * (len(launches) - len(names))
    sizes = _sizes(step.inputs, step.plan.outputs)
    shapes = {"input_type_shape": _shapes(step.inputs), "output_type_shape": _shapes(step.plan.outputs)}
    geometry = [{"node": node.name, **_geometry(launch)} for launch in launches]
    known: dict[str, tuple[Args, Sequence[Args]]] = {}  # of the step and of its kernels, by device

    def op(run: Run, _: list[Any]) -> None:
        run.check()
        trace, memory = run.trace, cast("TracedMemory", run.memory(space))
        assert trace is not None, "a traced run has a trace"
        stream, timer = run.stream(space, queue), memory.timer_in_use(queue)
        if memory.device not in known:
            about = {**_about(step, memory.device), **sizes}
            known[memory.device] = {**about, **shapes}, [{**about, **g} for g in geometry]
        node_args, kernel_args = known[memory.device]
        if timer is None:
            with trace.span("Node", name, node_args):
                for launch in launches:
                    launch(stream)
            return
        with trace.span("Node", name, node_args):
            tokens = [timer.time(launch) for launch in launches]
        for kernel, args, token in zip(names, kernel_args, tokens, strict=True):
            if token is not None:
                trace.device(space, lane, kernel, timer, token, args)

    return op


def _op(step: Step, inner: Op) -> Op:
    if isinstance(step, HostStep):
        return _call(step, inner)
    assert not isinstance(step, DeviceStep), "launches are traced by _launches"
    value = getattr(step, "value", "")
    shared = {StoreStep: "store", ViewStep: "view"}.get(type(step))

    def op(run: Run, registers: list[Any]) -> None:
        run.check()
        trace = run.trace
        assert trace is not None, "a traced run has a trace"
        trace.copied, start = value, perf_counter_ns()
        inner(run, registers)
        trace.copied = ""
        if shared:  # no copy between devices, and no queue takes part
            trace.host("Session", shared, start, {"value": value})

    return op


def _call(step: HostStep, inner: Op) -> Op:
    name = f"{step.unit.nodes[-1].name}_kernel_time"
    constant = [
        v is not None and v.const is not None for v in (step.unit.nodes[0].inputs if len(step.unit.nodes) == 1 else ())
    ]
    constant += [False] * (len(step.ins) - len(constant))

    def op(run: Run, registers: list[Any]) -> None:
        run.check()
        assert run.trace is not None, "a traced run has a trace"
        ins = [_spec(registers[i]) if i >= 0 else None for i in step.ins]  # before the step lets go of them
        start = perf_counter_ns()
        inner(run, registers)
        outs = [_spec(registers[i]) for i in step.outs]
        run.trace.host("Node", name, start, partial(_host_args, step, ins, outs, constant))

    return op


def _host_args(
    step: HostStep, ins: Sequence[Spec | None], outs: Sequence[Spec | None], constant: Sequence[bool]
) -> Args:
    return {
        **_about(step, "cpu"),
        **_sizes(ins, outs, constant),
        "input_type_shape": _shapes(ins),
        "output_type_shape": _shapes(outs),
    }


def _about(step: DeviceStep | HostStep, device: str) -> dict[str, Any]:
    nodes = step.unit.nodes
    about: dict[str, Any] = {"op_name": op_name([n.op_type for n in nodes])}
    if len(nodes) > 1:
        about["nodes"] = [n.name for n in nodes]
    return {**about, "provider": ort_name(device), "device": device}


def op_name(types: Sequence[str]) -> str:
    """Operator of a step: those of a fused group joined, of a long one the first four and how many more."""
    return "+".join(types[:4]) + (f"+{len(types) - 4}" if len(types) > 4 else "")


def ort_name(device: str) -> str:
    """A provider as ONNX Runtime's tools want it: ``CPUExecutionProvider`` for ``cpu``."""
    name = device.partition(":")[0]
    known = {"cpu": "CPU", HOST: "CPU", "cuda": "CUDA", "opencl": "OpenCL"}
    return f"{known.get(name, name)}ExecutionProvider"


def _spec(value: Any) -> Spec | None:
    return Spec(value.dtype, value.shape) if isinstance(value, np.ndarray) else None


def _shapes(specs: Sequence[Spec | None]) -> list[dict[str, list[int]]]:
    """As ONNX Runtime: ``[{"float": [2, 3]}, ...]``, without what is no tensor or left out."""
    return [{dtypes.onnx_name(s.dtype): [plain(n) for n in s.shape]} for s in specs if s is not None]


def _sizes(
    ins: Sequence[Spec | None], outs: Sequence[Spec | None], constant: Sequence[bool] | None = None
) -> dict[str, str]:
    """Bytes, as strings like ONNX Runtime's: of constant inputs, of the others, and of the outputs."""
    known = [s is not None and s.const is not None for s in ins] if constant is None else constant
    parameters = sum(s.nbytes for s, c in zip(ins, known, strict=True) if s is not None and c)
    activations = sum(s.nbytes for s, c in zip(ins, known, strict=True) if s is not None and not c)
    return {
        "parameter_size": str(plain(parameters)),
        "activation_size": str(plain(activations)),
        "output_size": str(plain(sum(s.nbytes for s in outs if s is not None))),
    }


def _geometry(launch: Launch) -> dict[str, int]:
    """Grid and block of a launcher that tells them."""
    grid, block = getattr(launch, "grid", None), getattr(launch, "block", None)
    if grid is None or block is None:
        return {}
    return {
        f"{what}_{axis}": n
        for what, sizes in (("grid", grid), ("block", block))
        for axis, n in zip("xyz", sizes, strict=True)
    }
