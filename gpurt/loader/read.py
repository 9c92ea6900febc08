"""From a path, bytes or a ModelProto to a ModelProto of our own; errors in the file become gpurt's."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

from gpurt.errors import Fail, GpurtError, InvalidArgument, InvalidProtobuf, NoSuchFile
from gpurt.loader.contents import Contents, take

_PROTOBUF_LIMIT = 2**31 - 1  # protobuf cannot hold more in one message


def read(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Contents, Path | None]:
    """Parse a model; returns the proto, which nobody else holds, what was left out of it, and the path it came from.

    Raises:
        NoSuchFile: the path names nothing.
        InvalidProtobuf: the content is not an ONNX model.
    """
    if isinstance(model, onnx.ModelProto):
        own = onnx.ModelProto()
        try:
            own.CopyFrom(model)  # the loader edits what it reads
        except (DecodeError, EncodeError) as error:  # upb copies by way of bytes, where nesting ends at 100 messages
            raise InvalidProtobuf(f"the ModelProto cannot be copied: {error}") from error
        _check_is_model(own, "the ModelProto")
        return own, Contents(), None
    if isinstance(model, (bytes, bytearray, memoryview)):
        data = bytes(model)
        return *_parse(*take(io.BytesIO(data), len(data)), "the model's bytes"), None
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        return *_parse(*_read_file(path), f"{str(path)!r}"), path
    raise InvalidArgument(
        f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}",
        remedy="Pass the path of a .onnx file",
    )


def _read_file(path: Path) -> tuple[bytes, Contents]:
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise InvalidArgument(f"{str(path)!r} is a folder, not a model", remedy="Pass the .onnx file in it")
        if not stat.S_ISREG(info.st_mode):
            raise InvalidArgument(f"{str(path)!r} is not a regular file")
        if info.st_size > _PROTOBUF_LIMIT:
            raise InvalidProtobuf(
                f"{str(path)!r} has {info.st_size} bytes, and protobuf ends at 2 GiB",
                remedy="Save the model again with its weights as external data",
            )
        return take(path.open("rb"), info.st_size)
    except FileNotFoundError:
        raise NoSuchFile(f"no model at {str(path)!r}", remedy="Check the path") from None
    except NotADirectoryError:
        raise NoSuchFile(f"no model at {str(path)!r}: a part of the path is a file", remedy="Check the path") from None
    except GpurtError:
        raise
    except ValueError as error:
        raise InvalidArgument(f"{str(path)!r} cannot be a path: {error}") from error
    except OSError as error:
        raise Fail(f"cannot read {str(path)!r}: {error.strerror or error}", remedy="Check its permissions") from error


def _parse(data: bytes, contents: Contents, source: str) -> tuple[onnx.ModelProto, Contents]:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise InvalidProtobuf(f"{source} is not an ONNX model: {error}", remedy=_remedy(data)) from error
    _check_is_model(proto, source, data)
    return proto, contents


def _check_is_model(proto: onnx.ModelProto, source: str, data: bytes = b"") -> None:
    missing = [
        field
        for field, there in (
            ("ir_version", proto.ir_version > 0),
            ("graph", proto.HasField("graph")),
            ("opset_import", len(proto.opset_import) > 0 or 0 < proto.ir_version < 3),  # IR 1 and 2 had no imports
        )
        if not there
    ]
    if missing:
        raise InvalidProtobuf(
            f"{source} is not an ONNX model: it has no {' and no '.join(missing)}", remedy=_remedy(data)
        )


def _remedy(data: bytes) -> str:
    head = data[:64].lstrip()
    if head[:1] in (b"{", b"<") or head.startswith(b"ir_version"):
        return "It looks like text: save the model in ONNX's binary format"
    if head.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer: fetch the file with `git lfs pull`"
    return "The file may be cut off or of another format: download or export it again"
