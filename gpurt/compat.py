"""onnxruntime's names over gpurt, for programs that were written for it.

    import gpurt.compat as onnxruntime

Providers may be called ``CPUExecutionProvider``, ``CUDAExecutionProvider`` or ``OpenCLExecutionProvider``; their
options are gpurt's. IOBinding yields OrtValues; everything else is gpurt's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np

import gpurt
from gpurt import dtypes
from gpurt.errors import (
    EPFail,
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
    NotImplemented,
    RuntimeException,
)
from gpurt.options import ExecutionMode, GraphOptimizationLevel, SessionOptions
from gpurt.session import InferenceSession as _Session
from gpurt.session import IOBinding as _Binding
from gpurt.session import NodeArg
from gpurt.tensor import Tensor

__all__ = [
    "EPFail",
    "ExecutionMode",
    "Fail",
    "GraphOptimizationLevel",
    "IOBinding",
    "InferenceSession",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoSuchFile",
    "NodeArg",
    "NotImplemented",
    "OrtValue",
    "RuntimeException",
    "SessionOptions",
    "get_available_providers",
    "get_device",
]

_NAMES: Final = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda", "OpenCLExecutionProvider": "opencl"}
_ORT_NAMES: Final = {own: name for name, own in _NAMES.items()}


def get_available_providers() -> list[str]:
    """Providers that can be used here, by onnxruntime's names, in the default order of priority."""
    return [_ORT_NAMES.get(name, name) for name in gpurt.get_available_providers()]


def get_device() -> str:
    """``"GPU"`` where CUDA can be used, ``"CPU-OPENCL"`` where OpenCL can, else ``"CPU"``."""
    usable = gpurt.get_available_providers()
    return "GPU" if "cuda" in usable else "CPU-OPENCL" if "opencl" in usable else "CPU"


class OrtValue:
    """A value on the host or on a device with onnxruntime's methods; `tensor` is the gpurt.Tensor.

    Args:
        value: a Tensor; or what is no tensor, a list or dictionary.
    """

    def __init__(self, value: Any) -> None:
        self._value = value

    @property
    def tensor(self) -> Tensor:
        """The Tensor. Raises InvalidArgument where the value is none."""
        if not isinstance(self._value, Tensor):
            raise InvalidArgument(f"the value is a {type(self._value).__name__}", remedy="Only tensors have that")
        return self._value

    @staticmethod
    def ortvalue_from_numpy(numpy_obj: Any, device_type: str = "cpu", device_id: int = 0) -> OrtValue:
        """An array's content on a device; on the cpu the array's own memory. Errors as Tensor.from_numpy."""
        return OrtValue(Tensor.from_numpy(numpy_obj, _device(device_type, device_id)))

    @staticmethod
    def ortvalue_from_numpy_with_onnx_type(data: np.ndarray, onnx_element_type: int) -> OrtValue:
        """An array whose bytes are of another type of the same size: uint16 that are bfloat16 (16)."""
        return OrtValue(Tensor.from_dlpack(data, dtype=onnx_element_type))

    @staticmethod
    def ortvalue_from_shape_and_type(
        shape: Sequence[int], element_type: Any = np.float32, device_type: str = "cpu", device_id: int = 0
    ) -> OrtValue:
        """Memory on a device, not initialised. Errors as Tensor.empty."""
        return OrtValue(Tensor.empty(shape, element_type, _device(device_type, device_id)))

    @staticmethod
    def from_dlpack(data: Any, is_bool_tensor: bool = False) -> OrtValue:
        """Another library's array where it is; bytes are booleans if that is said. Errors as Tensor.from_dlpack."""
        return OrtValue(Tensor.from_dlpack(data, dtype=np.bool_ if is_bool_tensor else None))

    def data_ptr(self) -> int:
        """Address of the first element; the handle of the buffer on OpenCL."""
        return self.tensor.data_ptr()

    def device_name(self) -> str:
        """``"cpu"``, ``"cuda"`` or ``"opencl"``."""
        return self.tensor.device.partition(":")[0]

    def shape(self) -> list[int]:
        """Dimensions."""
        return list(self.tensor.shape)

    def data_type(self) -> str:
        """ONNX type string: ``tensor(float)``."""
        return f"tensor({dtypes.onnx_name(self.tensor.dtype)})"

    def element_type(self) -> int:
        """Number of the element type in onnx.TensorProto."""
        return self.tensor.element_type

    def tensor_size_in_bytes(self) -> int:
        """Bytes of the elements."""
        return self.tensor.nbytes

    def has_value(self) -> bool:
        """Whether an optional is there."""
        return self._value is not None

    def is_tensor(self) -> bool:
        """Whether it is a tensor."""
        return isinstance(self._value, Tensor)

    def is_sparse_tensor(self) -> bool:
        """Never: sparse initializers are made dense when a model is loaded."""
        return False

    def is_tensor_sequence(self) -> bool:
        """Whether it is a sequence of tensors."""
        return isinstance(self._value, list) and all(isinstance(v, np.ndarray) for v in self._value)

    def numpy(self) -> Any:
        """The content on the host: in place on the cpu, else a copy; what is no tensor as it is."""
        return self._value.numpy() if isinstance(self._value, Tensor) else self._value

    def update_inplace(self, np_arr: np.ndarray) -> None:
        """Replace the content. Raises InvalidArgument unless dtype and shape are the same."""
        self.tensor.update_inplace(np_arr)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


class IOBinding(_Binding):
    """gpurt.IOBinding that takes and yields OrtValues."""

    def bind_ortvalue_input(self, name: str, ortvalue: Any) -> None:
        """See gpurt.IOBinding."""
        super().bind_ortvalue_input(name, _inner(ortvalue))

    def bind_ortvalue_output(self, name: str, ortvalue: Any) -> None:
        """See gpurt.IOBinding."""
        super().bind_ortvalue_output(name, _inner(ortvalue))

    def get_outputs(self) -> list[Any]:
        """The last run's outputs in the order in which they were bound."""
        return [OrtValue(value) for value in super().get_outputs()]


class InferenceSession(_Session):
    """gpurt.InferenceSession that knows providers by onnxruntime's names too; arguments and errors are the same."""

    binding: ClassVar[type[_Binding]] = IOBinding

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: SessionOptions | None = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        named = None if providers is None else [_own_name(p) for p in providers]
        super().__init__(path_or_bytes, sess_options, named, provider_options)

    def get_providers(self) -> list[str]:
        """Names of the providers in use, onnxruntime's where it has them."""
        return [_ORT_NAMES.get(name, name) for name in super().get_providers()]

    def run_with_ort_values(
        self,
        output_names: Sequence[str] | None,
        input_dict_ort_values: Mapping[str, Any],
        run_options: Any = None,
        *,
        device: str = "cpu",
    ) -> list[Any]:
        """Run with OrtValues in and OrtValues out."""
        inputs = {name: _inner(value) for name, value in input_dict_ort_values.items()}
        found = super().run_with_ort_values(output_names, inputs, run_options, device=device)
        return [OrtValue(value) for value in found]


def _own_name(provider: Any) -> Any:
    if isinstance(provider, tuple) and provider:
        return (_own_name(provider[0]), *provider[1:])
    return _NAMES.get(provider, provider) if isinstance(provider, str) else provider


def _inner(value: Any) -> Any:
    return value.tensor if isinstance(value, OrtValue) else value


def _device(device_type: str, device_id: int) -> str:
    return device_type if device_type == "cpu" or ":" in device_type else f"{device_type}:{device_id}"
