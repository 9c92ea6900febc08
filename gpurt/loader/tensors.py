"""TensorProtos: their claims checked before anything is allocated, and their content as arrays that hold no protobuf.

A submessage keeps the whole parsed file alive, so every tensor is moved out of it; external data is mapped.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from gpurt import dtypes
from gpurt.errors import Fail, InvalidGraph, NoSuchFile
from gpurt.loader.contents import PLACE, Contents, taken

LARGEST_DENSE: Final = 2**28
"""Most elements that a sparse tensor may have when it is made dense."""

_BITS: Final = {"uint4": 4, "int4": 4, "float4e2m1": 4, "uint2": 2, "int2": 2}
# the field of a TensorProto that holds elements of a type when raw_data does not; int32_data for all others
_FIELDS: Final = {1: "float_data", 14: "float_data", 11: "double_data", 15: "double_data", 7: "int64_data",
                  8: "string_data", 12: "uint64_data", 13: "uint64_data"}  # fmt: skip
_DATA_FIELDS: Final = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def element_count(dims: Sequence[int], where: str) -> int:
    """Product of the dimensions; InvalidGraph on a negative one or one beyond all memory."""
    count = 1
    for dim in dims:
        if dim < 0:
            raise InvalidGraph(f"{where} has a negative dimension: {list(dims)}")
        count *= dim
    if count >= 2**48 or any(dim >= 2**48 for dim in dims):
        raise InvalidGraph(f"{where} claims {count} elements")
    return count


def byte_count(code: int, count: int, where: str) -> int:
    """Bytes of that many elements as ONNX stores them; InvalidGraph on a type that gpurt does not know."""
    try:
        dtype = dtypes.from_onnx(code)
    except KeyError:
        raise InvalidGraph(f"{where} has the element type {code}, which gpurt does not know") from None
    bits = _BITS.get(dtypes.onnx_name(dtype), dtype.itemsize * 8)
    return (count * bits + 7) // 8


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the content lies in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def check(tensor: onnx.TensorProto, where: str) -> None:
    """Check that an inline tensor holds as many bytes or elements as its dimensions say."""
    count = element_count(tensor.dims, where)
    nbytes = byte_count(tensor.data_type, count, where)
    held = taken(tensor)
    if held is None and is_external(tensor):
        _check_entries(tensor, where)
        return  # the size of the file is checked where it is mapped
    if tensor.HasField("segment"):
        raise InvalidGraph(f"{where} is stored in segments, which no ONNX version uses")
    code = tensor.data_type
    if held is not None or tensor.HasField("raw_data"):
        if code == onnx.TensorProto.STRING:
            raise InvalidGraph(f"{where} is a string tensor with raw_data")
        held = len(tensor.raw_data) if held is None else held
        if held != nbytes:
            raise InvalidGraph(
                f"{where} of shape {list(tensor.dims)} needs {nbytes} bytes but has {held}",
                remedy="The model is damaged or was made wrongly: export it again",
            )
        return
    field = _FIELDS.get(code, "int32_data")
    others = [name for name in _DATA_FIELDS if name != field and len(getattr(tensor, name))]
    if others:
        raise InvalidGraph(f"{where} keeps its elements in {others[0]} instead of {field}")
    held = len(getattr(tensor, field))
    needed = nbytes if byte_count(code, 4, where) < 4 else count * (2 if code in (14, 15) else 1)
    if held != needed:
        raise InvalidGraph(f"{where} of shape {list(tensor.dims)} needs {needed} elements but has {held}")


def _check_entries(tensor: onnx.TensorProto, where: str) -> None:
    for entry in tensor.external_data:
        if entry.key in ("offset", "length") and not (entry.value.isascii() and entry.value.isdigit()):
            raise InvalidGraph(f"{where} has the external data {entry.key} {entry.value!r}")


class ExternalData:
    """Finds, checks and maps the external data files of one model.

    Args:
        model: path of the model file, or None for a model from memory, which has no folder to look in.
        contents: what was left out of the model's message.
    """

    def __init__(self, model: Path | None, contents: Contents) -> None:
        self._contents = contents
        self._folders: list[Path] = []
        self._maps: dict[Path, np.ndarray] = {}
        if model is not None:
            self._given = model.absolute().parent
            # A model that is a symbolic link (Hugging Face's cache) has its data beside the link or beside the file.
            self._folders = list(dict.fromkeys((self._given.resolve(), model.resolve().parent)))

    def array(self, tensor: ir.ExternalTensor, where: str) -> np.ndarray:
        """Content of an external tensor: a view of the mapped file, unpacked only for types of less than a byte."""
        shape = list(tensor.shape.numpy())
        count = element_count(shape, where)
        code = int(tensor.dtype)
        nbytes = byte_count(code, count, where)
        if code == onnx.TensorProto.STRING:
            raise InvalidGraph(f"{where} is a string tensor in external data, which ONNX does not allow")
        offset, length = tensor.offset or 0, nbytes if tensor.length is None else tensor.length
        if str(tensor.location) == PLACE:
            return _typed(self._contents[offset], code, count, shape)
        path = self._find(str(tensor.location), where)
        size = path.stat().st_size
        if offset < 0 or length < 0 or offset + length > size:
            raise InvalidGraph(f"{where} is bytes {offset} to {offset + length} of {path.name!r}, which has {size}")
        if length != nbytes:
            raise InvalidGraph(f"{where} of shape {shape} needs {nbytes} bytes but its external data has {length}")
        if count == 0:
            return np.zeros(shape, dtypes.from_onnx(code))
        return _typed(self._map(path)[offset : offset + length], code, count, shape)

    def _find(self, location: str, where: str) -> Path:
        if not self._folders:
            raise InvalidGraph(
                f"{where} lies in the external data file {location!r}, but a model from memory has no folder",
                remedy="Pass the path of the model file instead of its content",
            )
        if not location or "\0" in location or Path(location).is_absolute() or location.startswith(("/", "\\")):
            raise InvalidGraph(f"{where} has the external data location {location!r}, which is not a relative path")
        outside = None
        for folder in dict.fromkeys((self._given, *self._folders)):
            real = Path(os.path.realpath(folder / location))
            if not any(real.is_relative_to(allowed) for allowed in self._folders):
                outside = real
                continue
            if real.is_file():
                return real
            if real.exists():
                raise InvalidGraph(f"{where} has the external data {location!r}, which is not a regular file")
        if outside is not None:
            raise InvalidGraph(
                f"{where} has the external data location {location!r}, which leaves the model's folder",
                remedy="Keep a model's data files in its folder",
            )
        raise NoSuchFile(
            f"{where} lies in the external data file {location!r}, which is not in {str(self._given)!r}",
            remedy="Put the data file beside the model",
        )

    def _map(self, path: Path) -> np.ndarray:
        # One map for all tensors of a file: each map holds a file descriptor, and models have thousands of tensors.
        if path not in self._maps:
            try:
                with path.open("rb") as file:
                    self._maps[path] = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            except OSError as error:
                raise Fail(f"cannot map {str(path)!r}: {error.strerror or error}") from error
        return self._maps[path]


def _typed(raw: np.ndarray, code: int, count: int, shape: list[int]) -> np.ndarray:
    """Elements of a type as they are stored: a view, unpacked only for types of less than a byte."""
    if len(raw) < count:  # packed: several elements in a byte
        proto = onnx.TensorProto(dims=shape, data_type=code, raw_data=raw.tobytes())
        return ir.serde.deserialize_tensor(proto).numpy()
    return raw.view(dtypes.from_onnx(code)).reshape(shape)


def detach(tensor: ir.TensorProtocol, external: ExternalData, where: str) -> ir.TensorProtocol:
    """The same tensor without any reference into the protobuf message or to an unchecked file."""
    if isinstance(tensor, ir.ExternalTensor):
        return ir.Tensor(external.array(tensor, where), ir.DataType(tensor.dtype), name=tensor.name)
    if isinstance(tensor, ir.StringTensor):
        return ir.StringTensor(list(tensor.string_data()), shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)
    if isinstance(tensor, ir.Tensor):
        return tensor
    return ir.Tensor(tensor.numpy(), ir.DataType(tensor.dtype), name=tensor.name)
