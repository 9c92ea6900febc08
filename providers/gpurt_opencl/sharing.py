"""PyOpenCL's own objects: contexts and queues that a session is given, and arrays that lie in them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyopencl as cl

from gpurt.errors import InvalidArgument
from gpurt.provider import Borrowed, BufferRef
from gpurt_opencl import discovery
from gpurt_opencl.driver import OpenCLDriver

_FOREIGN = cl.mem_flags.USE_HOST_PTR


def chosen(index: int | None, options: Mapping[str, Any]) -> tuple[int, cl.Device, cl.Context]:
    """(index in gpurt's list, device, context) of the options context and queue.

    Raises InvalidArgument where they are no PyOpenCL objects, do not belong together, or leave the device that index,
    platform and device ask for out.
    """
    context: Any = options.get("context")
    queue: Any = options.get("queue")
    for option, value, kind in (("context", context, cl.Context), ("queue", queue, cl.CommandQueue)):
        if value is not None and not isinstance(value, kind):
            remedy = f"Give a pyopencl.{kind.__name__}"
            raise InvalidArgument(f"{option} is {value!r}", provider="opencl", remedy=remedy)
    if queue is not None:
        if queue.properties & cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE:
            raise InvalidArgument("the queue is out of order", provider="opencl", remedy="Give one that is in order")
        try:
            its = queue.context
        except cl.Error as e:  # Intel's runtime: queues do not keep their context
            raise InvalidArgument(
                f"the queue has lost its context ({e})", provider="opencl", remedy="Keep the pyopencl.Context, too"
            ) from e
        if context is not None and its != context:
            raise InvalidArgument("the queue is of another context", provider="opencl", remedy="Give either alone")
        context = its
    offered = [queue.device] if queue is not None else list(context.devices)
    listed = [d for _, d in discovery.devices()]
    if index is not None or options.get("platform") is not None or options.get("device") is not None:
        _, wanted = discovery.choose(index, options.get("platform"), options.get("device"))
        offered = [d for d in offered if d == wanted]
        if not offered:
            raise InvalidArgument(
                f"the context is not for {discovery.describe(wanted)}",
                provider="opencl",
                remedy="Leave index, platform and device out, or give a context for that device",
            )
    device = offered[0]
    return (listed.index(device) if device in listed else len(listed)), device, context


_drivers: weakref.WeakValueDictionary[tuple[Any, ...], OpenCLDriver] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def driver_in(context: cl.Context, device: cl.Device, kernel_class: str, zero_copy: bool) -> OpenCLDriver:
    """The driver for a device in the caller's context, shared by the sessions that work there."""
    key = (context.int_ptr, device.int_ptr, kernel_class, zero_copy)
    with _lock:
        driver = _drivers.get(key)
        if driver is None:
            driver = OpenCLDriver(device, kernel_class, zero_copy=zero_copy, context=context)
            _drivers[key] = driver
        return driver


def context_of(buffer: Any) -> cl.Context | None:
    """The context of a buffer; None for what is none."""
    return buffer.context if isinstance(buffer, cl.MemoryObject) else None


def taken(value: Any, context: cl.Context, stream: cl.CommandQueue) -> Borrowed | None:
    """A pyopencl.array.Array in place, ordered after what its queue has to do.

    None for other objects, other contexts, arrays that are not dense, and memory whose alignment is not the driver's.
    """
    buffer: Any = getattr(value, "base_data", None)
    if context_of(buffer) != context or not value.flags.c_contiguous:
        return None
    if buffer.flags & _FOREIGN and buffer.hostbuf is not None and buffer.hostbuf.ctypes.data % 64:
        return None
    # In another queue than the run's the work on the array is waited for; in the same one order is enough.
    if value.queue is not None and value.queue != stream:
        value.queue.finish()
    for event in value.events:
        if event.command_queue != stream:
            event.wait()
    ref = BufferRef(buffer, int(value.offset), int(value.nbytes))
    return Borrowed(ref, np.dtype(value.dtype), tuple(int(d) for d in value.shape), value)


def buffer_at(pointer: int, nbytes: int, context: cl.Context) -> Any:
    """The buffer behind a cl_mem. Raises InvalidArgument where it is too small or of another context."""
    try:
        buffer: Any = cl.Buffer.from_int_ptr(pointer, retain=True)
        size, same = buffer.size, buffer.context == context
    except cl.Error as e:
        raise InvalidArgument(f"{pointer:#x} is no cl_mem: {e}", provider="opencl", remedy="Give buffer.int_ptr") from e
    if not same:
        raise InvalidArgument(
            "the buffer is of another OpenCL context",
            provider="opencl",
            remedy="Give the session your context or queue as provider options",
        )
    if size < nbytes:
        raise InvalidArgument(
            f"the buffer has {size} bytes, {nbytes} are needed", provider="opencl", remedy="Bind a larger one"
        )
    return buffer
