"""gpurt.Tensor: a dense array in the memory of the host or of a device."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from gpurt import dtypes
from gpurt.errors import InvalidArgument
from gpurt.tensor.foreign import device_of, element_type, to_host
from gpurt.tensor.storage import Storage, borrowed, memory_of


class Tensor:
    """A dense array, C-contiguous, on the host (device ``"cpu"``) or on a device (``"opencl:0"``, ``"cuda:0"``).

    Its memory is the device's arena's, or another library's that it keeps alive; it outlives the session it came from.
    Tensors that gpurt hands out are complete: nothing has to be waited for.

    Other libraries see it through DLPack (``torch.from_dlpack(tensor)``), ``__cuda_array_interface__`` and NumPy's
    protocols. bfloat16, float8 and the types below a byte have no name that all libraries know, so they cross as
    uint16 and uint8 of the same bytes; `dtype` says what they are.

    Make one with :meth:`from_numpy`, :meth:`empty` or :meth:`from_dlpack`.
    """

    __slots__ = ("__weakref__", "_array", "_storage", "device", "dtype", "shape")

    device: str
    dtype: np.dtype
    shape: tuple[int, ...]

    def __init__(
        self, dtype: np.dtype, shape: Sequence[int], *, array: np.ndarray | None = None, storage: Storage | None = None
    ) -> None:
        self.dtype, self.shape = dtype, tuple(int(d) for d in shape)
        self._array, self._storage = array, storage
        self.device = "cpu" if storage is None else storage.memory.device

    # --- making

    @classmethod
    def from_numpy(cls, array: Any, device: str = "cpu") -> Self:
        """A tensor with the content of an array, in C order.

        On the host it is the array's own memory if that is contiguous. Raises InvalidArgument for dtypes that ONNX has
        not, EPFail if the device cannot be used, OutOfMemory.
        """
        array = np.asarray(array)
        if array.dtype.kind in "UST":
            array = array.astype(object)
        if array.dtype.kind != "O" and not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        dtype = element_type(array.dtype)
        array = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        made = cls._new(dtype, array.shape, device, array)
        if made.storage is not None and array.nbytes:
            made.storage.write(array)
        return made

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: Any = np.float32, device: str = "cpu") -> Self:
        """A tensor whose content is whatever was in the memory. Errors as from_numpy.

        Args:
            shape: dimensions.
            dtype: NumPy dtype, ONNX name or ONNX number of the element type.
            device: ``"cpu"``, or a device as in ``providers``.
        """
        try:
            shape = tuple(map(operator.index, shape))
        except TypeError as e:
            raise InvalidArgument(f"a shape is {shape!r}", remedy="Give a tuple of integers") from e
        if any(d < 0 for d in shape):
            raise InvalidArgument(f"a shape is {list(shape)}", remedy="Dimensions are 0 or more")
        return cls._new(element_type(dtype), shape, device)

    @classmethod
    def from_dlpack(cls, value: Any, *, device: str | None = None, dtype: Any = None) -> Self:
        """A tensor over another library's array, in place where it lies on the host or on the device asked for.

        Args:
            value: whatever has ``__dlpack__``, ``__cuda_array_interface__`` or ``__array__``, or a PyOpenCL array.
            device: where it is wanted; default: where it is.
            dtype: what the elements are, where the array cannot say: ``"bfloat16"`` over uint16.

        Raises InvalidArgument for what cannot be read, or where dtype has another size than the elements.
        """
        if isinstance(value, Tensor):
            found: Tensor = value
        else:
            where = device_of(value)
            memory = None if where is None else memory_of(where)
            taken = None
            if memory is not None:
                stream = memory.stream()
                taken = memory.take(value, stream)
            if memory is not None and taken is not None:
                storage = borrowed(memory, taken).align(stream)
                memory.synchronize(stream)
                found = Tensor(taken.dtype, taken.shape, storage=storage)
            else:
                found = Tensor.from_numpy(to_host(value), where or "cpu")
        kind = found.dtype if dtype is None else element_type(dtype)
        if kind.itemsize != found.dtype.itemsize or (kind.kind == "O") != (found.dtype.kind == "O"):
            raise InvalidArgument(f"{found.dtype} cannot be seen as {kind}", remedy="The sizes must agree")
        array = found.numpy().view(kind) if found.storage is None else None
        made = cls(kind, found.shape, array=array, storage=found.storage)
        return made if device is None else cls._of(made.to(device))

    @classmethod
    def _of(cls, tensor: Tensor) -> Self:
        array = tensor.numpy() if tensor.storage is None else None
        return cls(tensor.dtype, tensor.shape, array=array, storage=tensor.storage)

    @classmethod
    def _new(cls, dtype: np.dtype, shape: tuple[int, ...], device: str, array: np.ndarray | None = None) -> Self:
        memory = memory_of(device)
        if memory is None:
            return cls(dtype, shape, array=np.empty(shape, dtype) if array is None else array)
        if dtype.kind == "O":
            raise InvalidArgument("strings live on the host alone", remedy='Use device="cpu"')
        return cls(dtype, shape, storage=Storage.new(memory, math.prod(shape) * dtype.itemsize))

    # --- looking at it

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements; types below a byte take one each."""
        return self.size * self.dtype.itemsize

    @property
    def element_type(self) -> int:
        """Number of the dtype in ``onnx.TensorProto``."""
        return dtypes.to_onnx(self.dtype)

    @property
    def storage(self) -> Storage | None:
        """The memory on a device; None on the host."""
        return self._storage

    def data_ptr(self) -> int:
        """Address of the first element; on OpenCL the handle of the buffer, which the elements may begin within."""
        if self._storage is None:
            return int(self._host().ctypes.data)
        ref = self._storage.ref
        return ref.buffer + ref.offset if isinstance(ref.buffer, int) else int(getattr(ref.buffer, "int_ptr", 0))

    def numpy(self) -> np.ndarray:
        """The content as a NumPy array: on the host the tensor's own memory, else a copy."""
        if self._storage is None:
            return self._host()
        array = np.empty(self.shape, self.dtype)
        if array.nbytes:
            self._storage.read(array)
        return array

    def to(self, device: str) -> Tensor:
        """The tensor on a device: itself if it is there, else a copy. Errors as from_numpy."""
        if device == self.device:
            return self
        if ":" not in device and self.device == f"{device}:0":
            return self
        return Tensor.from_numpy(self.numpy(), device)

    def update_inplace(self, array: Any) -> None:
        """Replace the content. Raises InvalidArgument unless the array has the tensor's dtype and shape."""
        array = np.asarray(array)
        if array.dtype != self.dtype or array.shape != self.shape:
            raise InvalidArgument(
                f"{array.dtype}{list(array.shape)} does not fit into {self._text()}",
                remedy="Give an array of that kind",
            )
        if self._storage is None:
            np.copyto(self._host(), array)
        elif array.nbytes:
            self._storage.write(np.ascontiguousarray(array))

    def _host(self) -> np.ndarray:
        assert self._array is not None, "a tensor is on the host or on a device"
        return self._array

    def _text(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    def __repr__(self) -> str:
        return f"gpurt.Tensor({self._text()} on {self.device})"

    # --- other libraries

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """NumPy's protocol; from a device it is a copy. Raises ValueError where copy=False cannot be had."""
        if copy is False and self._storage is not None:
            raise ValueError(f"a tensor on {self.device} cannot be seen from the host without a copy")
        array = self.numpy()
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"{array.dtype} cannot become {np.dtype(dtype)} without a copy")
            return array.astype(dtype)
        return array.copy() if copy and self._storage is None else array

    def __buffer__(self, flags: int) -> memoryview:
        """The buffer protocol, on the host (PEP 688: Python 3.12 and later). Raises BufferError on a device."""
        if self._storage is not None:
            raise BufferError(f"a tensor on {self.device} has no buffer on the host: use .numpy()")
        return memoryview(_plain(self._host()).data)

    def __dlpack_device__(self) -> tuple[int, int]:
        """(device type, device id) as DLPack numbers them; a device that computes in the host's memory is (1, 0)."""
        if self._storage is None or self._storage.memory.shares_host:
            return 1, 0
        place = self._storage.memory.dlpack_device
        if place is None:
            raise BufferError(f"DLPack has no number for {self.device}: use .numpy()")
        return place

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[Any, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule, versioned where max_version allows it (array API 2023.12).

        With ``dl_device=(1, 0)`` every tensor can be had on the host, as a copy where it is elsewhere. OpenCL memory
        that is not the host's has no form that other libraries take: ask for the host then.

        Raises BufferError where that is impossible, also for strings and for copies that ``copy=False`` forbids.
        """
        here = self.__dlpack_device__() if dl_device is None or self._storage is None else None
        asked = None if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
        versions: dict[str, Any] = {} if max_version is None else {"max_version": max_version}
        if copy is not None:
            versions["copy"] = copy
        if self._storage is None or self._storage.memory.shares_host:
            if asked not in (None, (1, 0)):
                raise BufferError(f"a tensor on {self.device} cannot be exported to DLPack device {asked}")
            return _plain(self.seen()).__dlpack__(**versions)
        if asked == (1, 0) and here != (1, 0):
            if copy is False:
                raise BufferError(f"a tensor on {self.device} cannot be on the host without a copy")
            return _plain(self.numpy()).__dlpack__(max_version=max_version)
        if asked not in (None, self._storage.memory.dlpack_device):
            raise BufferError(f"a tensor on {self.device} cannot be exported to DLPack device {asked}")
        array = self._exported()
        if array is None:
            raise BufferError(
                f"a tensor on {self.device} can cross DLPack to the host alone: use .numpy(), or "
                "numpy.from_dlpack(tensor, device='cpu')"
            )
        return array.__dlpack__(stream=stream, **versions)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Numba's protocol, version 3; only tensors on CUDA devices have it."""
        if self._storage is None or self._storage.memory.dlpack_device is None:
            raise AttributeError("__cuda_array_interface__")
        if self._storage.memory.dlpack_device[0] != 2:
            raise AttributeError("__cuda_array_interface__")
        return {
            "shape": self.shape,
            "typestr": _plain_type(self.dtype).str,
            "data": (self.data_ptr() if self.size else 0, False),
            "strides": None,
            "version": 3,
            "stream": None,  # the content is complete
        }

    def _exported(self) -> Any:
        assert self._storage is not None, "the host's memory is exported by NumPy"
        memory = self._storage.memory
        return memory.export(self._storage.ref, _plain_type(self.dtype), self.shape, self)

    def seen(self) -> np.ndarray:
        """The content as the host sees it: in place where the device computes in the host's memory, else a copy.

        The array keeps the tensor alive.
        """
        if self._storage is None or not self._storage.memory.shares_host:
            return self.numpy()
        bytes_ = self._storage.memory.view(self._storage.ref)[: self.nbytes]
        return np.asarray(_Seen(self, bytes_)).view(self.dtype).reshape(self.shape)


class _Seen:
    """Bytes that belong to a tensor, for NumPy: an array over them keeps this object, and with it the tensor."""

    def __init__(self, tensor: Tensor, seen: np.ndarray) -> None:
        self.tensor, self.seen = tensor, seen
        self.__array_interface__ = seen.__array_interface__


def _plain_type(dtype: np.dtype) -> np.dtype:
    """The type under which other libraries see the elements."""
    if dtype.kind == "O":
        raise BufferError("strings cross to no other library: use .numpy()")
    return np.dtype(f"u{dtype.itemsize}") if dtype.isbuiltin == 2 else dtype  # 2: of ml_dtypes


def _plain(array: np.ndarray) -> np.ndarray:
    return array.view(_plain_type(array.dtype))
