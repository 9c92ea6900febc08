"""Model files read without copies of their weights: protobuf parses the message without what is large in it.

Parsing holds a whole file three times: as bytes, in the message and in the arrays that are made of it. So the contents
of large initializers are found by the lengths in the file, left out of the message and read straight into memory of
their own. The message names them like external data, in a place that no file can name.

The encoding: https://protobuf.dev/programming-guides/encoding; the fields: onnx.proto.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import BinaryIO, Final

import numpy as np
import onnx

from gpurt.errors import Fail, InvalidProtobuf
from gpurt.spec import aligned

SMALL: Final = 1 << 20
"""Bytes up to which a file is parsed as it is."""

LARGE: Final = 1 << 14
"""Bytes from which on an initializer's content is left out of the message."""

PLACE: Final = f"\0{secrets.token_hex(16)}"
"""The location of such a content; its offset is a number in Contents."""

_SLAB: Final = 8 << 20  # contents are read into memory of so many bytes together: large pages are mapped faster
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_KEPT: Final = {1, 2, 8, 12, 16}  # dims, data_type, name, doc_string, metadata_props


class Contents:
    """What was left out of a message: read-only arrays of bytes at 64-byte boundaries, by number.

    They are read by a thread of their own, and whoever asks for one waits for it.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []
        self._arrays: list[np.ndarray] = []
        self._done: Future[None] | None = None

    def add(self, offset: int, length: int) -> int:
        """Note where in the file a content is; returns its number."""
        self._spans.append((offset, length))
        return len(self._spans) - 1

    def start(self, file: BinaryIO) -> None:
        """Begin to read what was added; the file is closed at the end."""
        reader = ThreadPoolExecutor(1, "gpurt-contents")
        self._done = reader.submit(self._read, file)
        reader.shutdown(wait=False)

    def _read(self, file: BinaryIO) -> None:
        with file:
            self._read_all(file)

    def _read_all(self, file: BinaryIO) -> None:
        slab, used = aligned(0), 0
        left = sum(-(-length // 64) * 64 for _, length in self._spans)
        for offset, length in self._spans:
            if used + length > len(slab):
                slab, used = aligned(max(length, min(left, _SLAB))), 0
            array = slab[used : used + length]
            file.seek(offset)
            if file.readinto(array.data) != length:  # type: ignore[attr-defined]
                raise InvalidProtobuf("the model file was cut off while it was read", remedy="Load it again")
            array.flags.writeable = False
            self._arrays.append(array)
            used += -(-length // 64) * 64
            left -= -(-length // 64) * 64

    def __getitem__(self, number: int) -> np.ndarray:
        """Raises InvalidProtobuf or Fail where it could not be read."""
        if self._done is not None:
            try:
                self._done.result()
            except OSError as error:
                raise Fail(f"cannot read the model file: {error.strerror or error}") from error
        return self._arrays[number]


def take(file: BinaryIO, size: int) -> tuple[bytes, Contents]:
    """A model's message, and the contents that were left out of it; what cannot be understood is left as it is.

    The file is closed, now or when the contents have been read.
    """
    with ExitStack() as stack:
        stack.enter_context(file)
        if size > SMALL:
            scan = _Scan(file)
            try:
                message = scan.model(size)
            except EOFError:
                file.seek(0)
            else:
                stack.pop_all()
                scan.contents.start(file)
                return message, scan.contents
        return file.read(), Contents()


def taken(tensor: onnx.TensorProto) -> int | None:
    """How many bytes of the tensor's content were left out of the message; None if it is not so."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return int(entries["length"]) if entries.get("location") == PLACE else None


class _Scan:
    """Goes through an encoded ModelProto once. EOFError means that it is damaged."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0
        self.contents = Contents()

    def model(self, end: int) -> bytes:
        """The message up to a position."""
        return self._without(end, _MODEL_GRAPH, self._graph)

    def _graph(self, end: int) -> bytes:
        return self._without(end, _GRAPH_INITIALIZER, self._tensor)

    def _without(self, end: int, inner: int, taking: Callable[[int], bytes]) -> bytes:
        parts = []
        while self._at < end:
            number, wire, head, length = self._field(end)
            if number == inner and wire == _BYTES and length >= LARGE:
                body = taking(self._at + length)
                parts += [_varint(number << 3 | wire), _varint(len(body)), body]
            else:
                parts += [head, self._read(length)]
        return b"".join(parts)

    def _tensor(self, end: int) -> bytes:
        start = self._at
        parts: list[bytes] = []
        spans: list[tuple[int, int]] = []
        while self._at < end:
            number, wire, head, length = self._field(end)
            if number == _TENSOR_RAW_DATA and wire == _BYTES and length >= LARGE and not spans:
                spans.append((self._at, length))
                self._seek(self._at + length)
            elif number in _KEPT:
                parts += [head, self._read(length)]
            else:  # something odd, for the checks to say what
                spans.clear()
                break
        if not spans:
            self._seek(start)
            return self._read(end - start)
        [(offset, length)] = spans
        place = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        entries = {"location": PLACE, "offset": self.contents.add(offset, length), "length": length}
        for key, value in entries.items():
            place.external_data.add(key=key, value=str(value))
        return b"".join((*parts, place.SerializeToString()))

    def _field(self, end: int) -> tuple[int, int, bytes, int]:
        """Number, wire type, encoded head and bytes that follow it."""
        key, head = self._number()
        wire, length = key & 7, 0
        if wire == _VARINT:
            head += self._number()[1]
        elif wire == _BYTES:
            length, more = self._number()
            head += more
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise EOFError
        if self._at + length > end:
            raise EOFError
        return key >> 3, wire, head, length

    def _number(self) -> tuple[int, bytes]:
        value, raw = 0, b""
        while not raw or raw[-1] & 0x80:
            if len(raw) == 10:
                raise EOFError
            raw += self._read(1)
            value |= (raw[-1] & 0x7F) << 7 * (len(raw) - 1)
        return value, raw

    def _read(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise EOFError
        self._at += length
        return data

    def _seek(self, at: int) -> None:
        self._file.seek(at)
        self._at = at


def _varint(value: int) -> bytes:
    raw = b""
    while value > 0x7F:
        raw += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return raw + bytes((value,))
