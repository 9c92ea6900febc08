"""Contents of large initializers, which are read beside the message that protobuf parses."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt
from gpurt.errors import GpurtError, InvalidGraph, InvalidProtobuf
from gpurt.loader import load
from gpurt.loader.contents import LARGE, PLACE, SMALL, take, taken

ROWS = SMALL // 4 // 64 + 1


def model(*extra: TensorProto) -> onnx.ModelProto:
    weights = np.random.default_rng(0).standard_normal((64, ROWS)).astype(np.float32)
    tensors = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(weights[0] + 1, "b"), *extra]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [info("x", 1, [2, 64])], [info("y", 1, [2, ROWS])], tensors)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def split(data: bytes) -> tuple[onnx.ModelProto, Any]:
    message, contents = take(io.BytesIO(data), len(data))
    proto = onnx.ModelProto()
    proto.ParseFromString(message)
    return proto, contents


def test_what_is_left_of_a_message() -> None:
    whole = model(numpy_helper.from_array(np.arange(LARGE // 8 - 1), "small"))
    proto, contents = split(whole.SerializeToString())
    assert [taken(t) for t in proto.graph.initializer] == [256 * ROWS, 4 * ROWS if 4 * ROWS >= LARGE else None, None]
    assert proto.ByteSize() < 4 * LARGE
    for old, new in zip(whole.graph.initializer, proto.graph.initializer, strict=True):
        if taken(new) is not None:
            number = next(int(e.value) for e in new.external_data if e.key == "offset")
            array = contents[number]
            assert array.tobytes() == old.raw_data
            assert array.ctypes.data % 64 == 0
            assert not array.flags.writeable
            new.raw_data = old.raw_data
            del new.external_data[:]
            new.ClearField("data_location")
    assert proto == whole


@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_models_of_all_dtypes(kind: str, tmp_path: Path) -> None:
    arrays = {
        "float16": np.arange(LARGE).astype(np.float16),
        "int64": np.arange(LARGE).reshape(2, -1),
        "bool": np.arange(2 * LARGE) % 3 == 0,
        "bfloat16": np.arange(LARGE).astype(ml_dtypes.bfloat16),
        "int4": (np.arange(4 * LARGE) % 15 - 7).astype(ml_dtypes.int4),
    }
    whole = model(*(numpy_helper.from_array(a, name) for name, a in arrays.items()))
    for name in arrays:
        whole.graph.node.add(op_type="Identity", input=[name], output=[f"{name} out"])
        whole.graph.output.add(name=f"{name} out")
    path = tmp_path / "model.onnx"
    onnx.save(whole, path)
    loaded = load(path if kind == "path" else path.read_bytes())
    for name, array in arrays.items():
        value = loaded.model.graph.initializers[name].const_value
        assert value is not None
        assert value.numpy().dtype == array.dtype
        np.testing.assert_array_equal(value.numpy(), array)


def test_it_runs_as_before_and_the_file_may_go(tmp_path: Path) -> None:
    whole, path = model(), tmp_path / "model.onnx"
    onnx.save(whole, path)
    session = gpurt.InferenceSession(path, providers=["cpu"])
    path.write_bytes(b"")
    path.unlink()
    x = np.ones((2, 64), np.float32)
    (expected,) = gpurt.InferenceSession(whole, providers=["cpu"]).run(None, {"x": x})
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def test_sizes_are_checked() -> None:
    damaged = TensorProto(name="d", dims=[LARGE], data_type=1, raw_data=bytes(LARGE))
    with pytest.raises(InvalidGraph, match=rf"'d' of shape \[{LARGE}\] needs {4 * LARGE} bytes but has {LARGE}"):
        load(model(damaged).SerializeToString())
    with pytest.raises(InvalidGraph, match="string tensor with raw_data"):
        load(model(TensorProto(name="d", dims=[1], data_type=8, raw_data=bytes(LARGE))).SerializeToString())


def test_odd_tensors_are_left_to_the_checks() -> None:
    odd = TensorProto(name="d", dims=[LARGE], data_type=2, raw_data=bytes(LARGE), float_data=[1.0])
    proto, _ = split(model(odd).SerializeToString())
    assert proto.graph.initializer[2] == odd
    both = TensorProto(name="d", dims=[LARGE], data_type=2, raw_data=bytes(LARGE))
    both.data_location = TensorProto.EXTERNAL
    both.external_data.add(key="location", value="elsewhere")
    proto, _ = split(model(both).SerializeToString())
    assert proto.graph.initializer[2] == both
    again = TensorProto(name="d", dims=[LARGE], data_type=2, raw_data=bytes(LARGE)).SerializeToString()
    again += TensorProto(raw_data=b"\1" * LARGE).SerializeToString()
    head, message = _field(7, _field(5, again)), model().SerializeToString()
    proto, _ = split(message + head)  # graphs of one message are merged
    assert taken(proto.graph.initializer[2]) is None
    assert proto.graph.initializer[2].raw_data == b"\1" * LARGE


def _field(number: int, body: bytes) -> bytes:
    head, length = bytes((number << 3 | 2,)), len(body)
    while length > 0x7F:
        head, length = head + bytes((length & 0x7F | 0x80,)), length >> 7
    return head + bytes((length,)) + body


def test_no_file_can_name_the_place() -> None:
    guess = TensorProto(name="d", dims=[LARGE], data_type=2, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "\0" + "0" * (len(PLACE) - 1)), ("offset", "0"), ("length", str(LARGE))):
        guess.external_data.add(key=key, value=value)
    with pytest.raises(GpurtError):
        load(model(guess).SerializeToString())


@pytest.mark.parametrize("end", [1, 100, LARGE, -100, -1])
def test_cut_files(end: int, tmp_path: Path) -> None:
    data = model().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[:end])
    with pytest.raises(InvalidProtobuf):
        load(path)


class Shrinking(io.BytesIO):
    """A file that someone cuts off after it was looked through."""

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[:100])


def test_files_that_change_meanwhile() -> None:
    data = model().SerializeToString()
    file = Shrinking(data)
    message, contents = take(file, len(data))
    assert len(message) < len(data)
    with pytest.raises(InvalidProtobuf, match="cut off while it was read"):
        contents[0]
    assert file.closed


def test_damaged_lengths() -> None:
    data = model().SerializeToString()
    at = data.index(b"\x0a", 2)
    for position in range(at, at + 40):
        for value in (0x00, 0x7F, 0xFF):
            changed = data[:position] + bytes((value,)) + data[position + 1 :]
            message, _ = take(io.BytesIO(changed), len(changed))
            proto = onnx.ModelProto()
            try:
                proto.ParseFromString(changed)
            except Exception:  # noqa: BLE001 - it need not be a message at all
                continue
            again = onnx.ModelProto()
            again.ParseFromString(message)
            assert [n.op_type for n in again.graph.node] == [n.op_type for n in proto.graph.node]
