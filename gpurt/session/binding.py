"""IOBinding: inputs and outputs of runs in memory that the caller chooses, with the methods of ONNX Runtime's."""

from __future__ import annotations

import ctypes
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument, suggest
from gpurt.loader import GraphInput
from gpurt.session.feeds import Elsewhere, check_feeds, check_fit
from gpurt.session.residence import Residence
from gpurt.session.site import Site
from gpurt.tensor import Tensor
from gpurt.tensor.foreign import device_of, element_type
from gpurt.tensor.storage import Storage


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that was bound: the space it is to be in, and the caller's memory, if any."""

    space: int
    tensor: Tensor | None = None


class IOBinding:
    """Where one caller's runs find their inputs and leave their outputs; made by ``session.io_binding()``.

    Inputs stay bound until they are bound again or cleared: memory is read anew in each run. Outputs that are not bound
    are not fetched. A binding belongs to one thread at a time.
    """

    def __init__(
        self, inputs: Sequence[GraphInput], outputs: Sequence[GraphInput], residence: Residence, site: Site
    ) -> None:
        self._known = {"input": inputs, "output": outputs}
        self._residence, self._site = residence, site
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Wanted] = {}
        self.results: list[Any] = []

    # --- inputs

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        """Bind an array of the host, in place if it is contiguous. Raises InvalidArgument if it does not fit."""
        info = self._input(name)
        self.inputs[name] = check_feeds({name: arr_on_cpu}, [info], frozenset())[name]

    def bind_ortvalue_input(self, name: str, ortvalue: Any) -> None:
        """Bind a Tensor, or another library's array, where it is. Raises InvalidArgument if it does not fit."""
        self.bind_cpu_input(name, ortvalue)

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None:
        """Bind memory by its address; the caller keeps it alive, and has finished writing it when a run begins.

        Args:
            name: of the input.
            device_type, device_id: ``"cpu"``, ``"cuda"`` or ``"opencl"`` and the device's index.
            element_type: NumPy dtype, ONNX name or number.
            shape: dimensions.
            buffer_ptr: address on the host or of CUDA; on OpenCL a cl_mem of the session's context.
        """
        tensor = self._at(device_type, device_id, element_type, shape, buffer_ptr)
        self.bind_ortvalue_input(name, tensor)

    # --- outputs

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None:
        """Ask for an output on a device, in new memory, or in memory at an address.

        Args:
            name: of the output.
            device_type, device_id: ``"cpu"``, ``"cuda"`` or ``"opencl"`` and the device's index.
            element_type, shape: of the memory at buffer_ptr; without one they are not needed.
            buffer_ptr: as in bind_input.

        Raises InvalidArgument for unknown names and devices, and for memory that the output does not fit in.
        """
        info = self._output(name)
        space = self._residence.space(_device(device_type, device_id))
        if buffer_ptr is None:
            if space and not info.type.startswith("tensor("):
                raise InvalidArgument(f"output {name!r} is {info.type}", remedy="Bind it to the cpu")
            self.outputs[name] = Wanted(space)
            return
        if element_type is None or shape is None:
            raise InvalidArgument(f"memory for output {name!r} without type and shape", remedy="Give both")
        self.bind_ortvalue_output(name, self._at(device_type, device_id, element_type, shape, buffer_ptr))

    def bind_ortvalue_output(self, name: str, ortvalue: Any) -> None:
        """Have an output written into a Tensor, a NumPy array or another library's array on a device of the session.

        The last kernel writes there, unless the memory is not the host's but the result is, is misaligned, or is an
        input's too; then it is copied. Raises InvalidArgument where the output does not fit, or the memory cannot be
        written or reached.
        """
        info = self._output(name)
        tensor = self._written(name, ortvalue)
        if not info.type.startswith("tensor("):
            raise InvalidArgument(f"output {name!r} is {info.type}", remedy="Bind it to the cpu, without memory")
        check_fit(f"the memory for output {name!r}", info, tensor.dtype, tensor.shape)
        space = 0
        if tensor.storage is not None:
            space = self._residence.reached(tensor.storage)
            if not space:
                raise InvalidArgument(
                    f"output {name!r} cannot be written to {tensor.device}: no provider of the session reaches it",
                    remedy="Bind it to the cpu or to a device of the session",
                )
        self.outputs[name] = Wanted(space, tensor)

    # --- around a run

    def synchronize_inputs(self) -> None:
        """Wait for what other libraries still do on the devices, so that memory bound by address is complete."""
        for memory in self._residence.memories().values():
            memory.settle()

    def synchronize_outputs(self) -> None:
        """Nothing: runs end when their outputs are complete. For ONNX Runtime's callers."""

    def clear_binding_inputs(self) -> None:
        """Forget the inputs."""
        self.inputs.clear()

    def clear_binding_outputs(self) -> None:
        """Forget the outputs, and what the last run left there."""
        self.outputs.clear()
        self.results = []

    def get_outputs(self) -> list[Any]:
        """The last run's outputs in the order in which they were bound: Tensors; lists for sequences."""
        return list(self.results)

    def copy_outputs_to_cpu(self) -> list[Any]:
        """The last run's outputs on the host, in the order in which they were bound: NumPy arrays; lists."""
        return [r.numpy() if isinstance(r, Tensor) else r for r in self.results]

    # --- helpers

    def _input(self, name: str) -> GraphInput:
        return self._named(name, "input")

    def _output(self, name: str) -> GraphInput:
        return self._named(name, "output")

    def _named(self, name: str, kind: str) -> GraphInput:
        for info in self._known[kind]:
            if info.name == name:
                return info
        names = [i.name for i in self._known[kind]]
        raise InvalidArgument(
            f"the model has no {kind} {name!r}{suggest(str(name), names)}",
            remedy=f"Its {kind}s are {', '.join(names) or 'none'}",
        )

    def of(self, residence: Residence) -> bool:
        """Whether it was made by the session that this is the residence of."""
        return self._residence is residence

    def _at(self, device_type: str, device_id: int, kind: Any, shape: Sequence[int], pointer: int) -> Tensor:
        dtype = element_type(kind)
        space = self._residence.space(_device(device_type, device_id))
        try:
            shape, pointer = tuple(map(operator.index, shape)), operator.index(pointer)
        except TypeError as e:
            raise InvalidArgument(
                f"memory at {pointer!r} for {dtype} of shape {shape!r}",
                remedy="Give an address, a shape and numbers that are integers",
            ) from e
        count = math.prod(shape)
        if dtype.kind == "O" or any(d < 0 for d in shape) or (pointer <= 0 and count):
            raise InvalidArgument(
                f"memory at {pointer:#x} for {dtype}{list(shape)}", remedy="Give an address, numbers and their shape"
            )
        nbytes = count * dtype.itemsize
        if space:
            memory = self._residence.memories()[space]
            return Tensor(dtype, shape, storage=Storage(memory, memory.at(pointer, nbytes)))
        if not nbytes:
            return Tensor(dtype, shape, array=np.empty(shape, dtype))
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))
        return Tensor(dtype, shape, array=raw.view(dtype).reshape(shape))

    def _written(self, name: str, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            tensor = value
        elif isinstance(value, np.ndarray):
            if not value.flags.c_contiguous:
                raise InvalidArgument(f"the array for output {name!r} is not contiguous", remedy="Bind one that is")
            tensor = Tensor.from_numpy(value)
        else:
            tensor = self._borrowed(name, value)
        if tensor.storage is None and not tensor.numpy().flags.writeable:
            raise InvalidArgument(f"the array for output {name!r} is read-only", remedy="Bind one that is not")
        return tensor

    def _borrowed(self, name: str, value: Any) -> Tensor:
        device = device_of(value)
        if device is None:
            tensor = Tensor.from_dlpack(value) if hasattr(value, "__dlpack__") else None
            if tensor is None:
                raise InvalidArgument(f"output {name!r} is bound to a {type(value).__name__}", remedy="Bind a Tensor")
            return tensor
        with self._site.run() as run:
            found = self._residence.taken(Elsewhere(value, device), run)
        if found is None or found[2]:
            why = "no provider of the session reaches it" if found is None else "it is not dense or not aligned"
            raise InvalidArgument(f"output {name!r} cannot be written to the array: {why}", remedy="Bind a Tensor")
        return found[1]


def _device(device_type: str, device_id: int) -> str:
    if not isinstance(device_type, str) or not hasattr(device_id, "__index__"):
        raise InvalidArgument(
            f"a device is {device_type!r} with the number {device_id!r}", remedy='Give "cuda" and 0, or "cuda:0"'
        )
    return device_type if ":" in device_type or device_type == "cpu" else f"{device_type}:{device_id}"
