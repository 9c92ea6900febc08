"""What the loader reads: models from files, bytes and protos, tensors and external data, and what can be wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_loader import X, make, node, run

from gpurt import errors
from gpurt.errors import Fail, GpurtError, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile
from gpurt.loader import CANONICAL_OPSETS, Views, load

# sources


def test_path_bytes_and_proto_are_alike(tmp_path: Path) -> None:
    proto = make([node("Relu", ["x"], ["y"])])
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    for source in (path, str(path), path.read_bytes(), proto):
        loaded = load(source)
        assert [n.op_type for n in loaded.model.graph] == ["Relu"]
        assert loaded.opset_imports == {"": 21}
        assert loaded.model.opset_imports[""] == CANONICAL_OPSETS[""]
    assert load(path).path == path
    assert load(proto).path is None


def test_the_callers_proto_is_not_touched() -> None:
    proto = make(
        [
            node("Constant", [], ["c"], value_floats=[1.0]),
            node("Clip", ["x"], ["d"], min=0.0),
            node("Add", ["d", "c"], ["y"]),
        ],
        opset=6,
    )
    before = proto.SerializeToString()
    with pytest.raises(InvalidGraph):
        load(proto)  # value_floats came with opset 12
    proto.graph.node[0].attribute[0].CopyFrom(
        helper.make_attribute("value", numpy_helper.from_array(np.ones(1, np.float32)))
    )
    before = proto.SerializeToString()
    load(proto)
    assert proto.SerializeToString() == before


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match=r"nowhere\.onnx") as caught:
        load(tmp_path / "nowhere.onnx")
    assert isinstance(caught.value, FileNotFoundError)


def test_folder_and_odd_arguments(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="folder"):
        load(tmp_path)
    with pytest.raises(InvalidArgument, match="int"):
        load(3)  # type: ignore[arg-type]
    with pytest.raises(GpurtError):
        load("a\0b")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs permissions that bind")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(Fail, match="cannot read"):
        load(path)


GOOD = make([node("MatMul", ["x", "w"], ["y"])], initializers={"w": np.ones((3, 64), np.float32)}).SerializeToString()


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (b"", "cut off"),
        (GOOD[: len(GOOD) // 2], "cut off"),
        (b"not a model at all", ""),
        (os.urandom(64) * 4, ""),
        (b'{"graph": {}}', "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "cut off"),
    ],
    ids=["empty", "truncated", "words", "noise", "json", "lfs", "no graph"],
)
def test_not_a_model(data: bytes, remedy: str) -> None:
    with pytest.raises(InvalidProtobuf) as caught:
        load(data)
    assert remedy in (caught.value.remedy or "")


@pytest.mark.parametrize("cut", range(1, len(GOOD), 37))
def test_any_truncation_is_a_typed_error(cut: int) -> None:
    with pytest.raises(GpurtError):
        load(GOOD[:cut])


def test_names_must_be_text() -> None:
    data = make([node("Relu", ["xyzzy"], ["y"])], inputs=("xyzzy",)).SerializeToString()
    for old in (b"xyzzy", b"Relu"):
        with pytest.raises(InvalidGraph, match="no text"):
            load(data.replace(old, b"\xff" * len(old)))


def test_newer_than_known() -> None:
    with pytest.raises(errors.NotImplemented, match="opset 99"):
        load(make([node("Relu", ["x"], ["y"])], opset=99))
    with pytest.raises(errors.NotImplemented, match="IR version 99"):
        load(make([node("Relu", ["x"], ["y"])], ir_version=99))


# tensors


def test_sizes_of_initializers_are_checked() -> None:
    def bad(**fields: Any) -> onnx.ModelProto:
        model = make([node("MatMul", ["x", "w"], ["y"])])
        model.graph.initializer.append(onnx.TensorProto(name="w", data_type=1, **fields))
        return model

    with pytest.raises(InvalidGraph, match=r"'w'.*needs 48 bytes but has 4"):
        load(bad(dims=[3, 4], raw_data=b"\0" * 4))
    with pytest.raises(InvalidGraph, match="needs 12 elements but has 0"):
        load(bad(dims=[3, 4]))
    with pytest.raises(InvalidGraph, match="negative"):
        load(bad(dims=[3, -4], raw_data=b""))
    with pytest.raises(InvalidGraph, match="claims"):
        load(bad(dims=[2**40, 2**40], raw_data=b""))
    with pytest.raises(InvalidGraph, match="int32_data instead of float_data"):
        load(bad(dims=[3], int32_data=[1, 2, 3]))
    model = bad(dims=[1], raw_data=b"\0" * 4)
    model.graph.initializer[0].data_type = 99
    with pytest.raises(InvalidGraph, match="element type 99"):
        load(model)


def external(folder: Path, location: str, offset: int = 0, length: int = 48) -> Path:
    model = make([node("MatMul", ["x", "w"], ["y"])])
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[3, 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def weight(folder: Path, name: str = "w.bin", skip: int = 0) -> np.ndarray:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    (folder / name).write_bytes(b"\xff" * skip + array.tobytes())
    return array


def test_external_data_is_mapped(tmp_path: Path) -> None:
    array = weight(tmp_path, skip=3)  # not even aligned
    loaded = load(external(tmp_path, "w.bin", offset=3))
    np.testing.assert_array_equal(loaded.model.graph.initializers["w"].const_value.numpy(), array)
    np.testing.assert_allclose(run(loaded, X)[0], X @ array)


def test_external_data_of_a_linked_model(tmp_path: Path) -> None:
    store, links = tmp_path / "store", tmp_path / "links"
    store.mkdir()
    links.mkdir()
    array = weight(store)
    (links / "m.onnx").symlink_to(external(store, "w.bin"))
    np.testing.assert_allclose(run(load(links / "m.onnx"), X)[0], X @ array)  # beside the file
    (links / "w.bin").symlink_to(store / "w.bin")
    np.testing.assert_allclose(run(load(links / "m.onnx"), X)[0], X @ array)  # beside the link


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin", "{folder}/w.bin", "linked/w.bin", ""])
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str) -> None:
    weight(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path)
    (folder / "sub").mkdir()
    with pytest.raises(InvalidGraph, match=r"folder|relative"):
        load(external(folder, location.format(folder=tmp_path)))


def test_external_data_must_fit(tmp_path: Path) -> None:
    weight(tmp_path)
    with pytest.raises(NoSuchFile, match=r"none\.bin"):
        load(external(tmp_path, "none.bin"))
    with pytest.raises(InvalidGraph, match="which has 48"):
        load(external(tmp_path, "w.bin", offset=8))
    with pytest.raises(InvalidGraph, match="offset '-8'"):
        load(external(tmp_path, "w.bin", offset=-8))
    with pytest.raises(InvalidGraph, match="needs 48 bytes but its external data has 40"):
        load(external(tmp_path, "w.bin", length=40))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidGraph, match="regular file"):
        load(external(tmp_path, "folder"))
    with pytest.raises(InvalidGraph, match="from memory") as caught:
        load(external(tmp_path, "w.bin").read_bytes())
    assert "path" in (caught.value.remedy or "")


def test_weights_hold_no_protobuf() -> None:
    tensor = load(GOOD).model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.Tensor)
    assert tensor.numpy() is tensor.numpy()


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "coordinates"])
def test_sparse_initializers_become_dense(linear: bool) -> None:
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "s")
    indices = np.array([1, 5]) if linear else np.array([[0, 1], [1, 2]])
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "i"), [2, 3])
    model = make([node("Add", ["x", "s"], ["y"])])
    model.graph.sparse_initializer.append(sparse)
    want = np.array([[0, 5, 0], [0, 0, 7]], np.float32)
    np.testing.assert_array_equal(run(load(model), X)[0], X + want)
    del model.graph.sparse_initializer[:]
    model.graph.node.insert(0, node("Constant", [], ["s"], sparse_value=sparse))
    np.testing.assert_array_equal(run(load(model), X)[0], X + want)


def test_sparse_indices_are_checked() -> None:
    values = numpy_helper.from_array(np.array([5], np.float32), "s")
    for indices in (np.array([6]), np.array([-1]), np.array([[0, 3]]), np.array([1, 2])):
        model = make([node("Add", ["x", "s"], ["y"])])
        tensor = numpy_helper.from_array(indices, "i")
        model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=tensor, dims=[2, 3]))
        with pytest.raises(InvalidGraph, match="sparse tensor 's'"):
            load(model)


@pytest.mark.parametrize(
    ("attrs", "want"),
    [
        ({"value": numpy_helper.from_array(np.eye(2, dtype=np.float16))}, np.eye(2, dtype=np.float16)),
        ({"value_float": 1.5}, np.array(1.5, np.float32)),
        ({"value_floats": [1.0, 2.0]}, np.array([1, 2], np.float32)),
        ({"value_int": 3}, np.array(3)),
        ({"value_ints": [1, 2]}, np.array([1, 2])),
        ({"value_string": "ä"}, np.array("ä", object)),
        ({"value_strings": ["a", "b"]}, np.array(["a", "b"], object)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_constants_become_initializers(attrs: dict[str, Any], want: np.ndarray) -> None:
    loaded = load(make([node("Constant", [], ["c"], **attrs), node("Shape", ["c"], ["s"]), node("Relu", ["x"], ["y"])]))
    assert [n.op_type for n in loaded.model.graph] == ["Shape", "Relu"]
    const = Views().graph(loaded.model.graph).initializers["c"].const
    assert const is not None
    assert const.dtype == want.dtype
    assert const.shape == want.shape
    np.testing.assert_array_equal(const, want)
