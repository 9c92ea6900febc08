"""Optimized models as files: valid ONNX without runtime nodes, equal results, errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from conftest import make_model
from onnx import TensorProto, helper

import gpurt
from gpurt.cli import main
from gpurt.session.offline import optimize_file

n = helper.make_node
RNG = np.random.default_rng(4)
WEIGHTS = {
    "w": RNG.standard_normal((16, 3, 3, 3)).astype(np.float32),
    "scale": RNG.random(16).astype(np.float32) + 0.5,
    "shift": RNG.random(16).astype(np.float32),
}
X = {"x": RNG.standard_normal((2, 3, 9, 9)).astype(np.float32)}


def convolutional() -> onnx.ModelProto:
    """Convolution, normalization and an activation in two nodes, as exporters write them."""
    nodes = [
        n("Conv", ["x", "w"], ["c"]),
        n("BatchNormalization", ["c", "scale", "shift", "shift", "scale"], ["b"]),
        n("Sigmoid", ["b"], ["s"]),
        n("Mul", ["b", "s"], ["y"]),
    ]
    return make_model(nodes, {"x": (TensorProto.FLOAT, ["n", 3, 9, 9])}, ["y"], WEIGHTS)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(convolutional(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_weights_beyond_the_limit_go_into_a_file_beside_the_model(tmp_path):
    weight = RNG.standard_normal((40, 40)).astype(np.float32)
    model = make_model([n("MatMul", ["x", "w"], ["y"])], {"x": (TensorProto.FLOAT, [2, 40])}, ["y"], {"w": weight})
    onnx.save(model, tmp_path / "model.onnx")
    x = {"x": RNG.standard_normal((2, 40)).astype(np.float32)}
    for limit, beside in ((weight.nbytes, False), (weight.nbytes - 1, True)):
        target = tmp_path / f"{limit}.onnx"
        written = optimize_file(tmp_path / "model.onnx", target, limit=limit)
        data = tmp_path / f"{target.name}.data"
        assert written.files == ([target, data] if beside else [target])
        assert target.stat().st_size < weight.nbytes or not beside
        onnx.checker.check_model(str(target), full_check=True)
        np.testing.assert_allclose(
            gpurt.InferenceSession(target, providers=["cpu"]).run(None, x)[0], x["x"] @ weight, atol=1e-5
        )


def test_no_message_is_measured_or_checked_that_protobuf_cannot_hold(source, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a message beyond the limit is not checked")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    assert len(optimize_file(source, tmp_path / "optimized.onnx", limit=100).files) == 2


def run(model, **options) -> np.ndarray:
    return gpurt.InferenceSession(model, gpurt.SessionOptions(**options), providers=["cpu"]).run(None, X)[0]


@pytest.mark.parametrize("level", ["basic", "extended"])
@pytest.mark.parametrize("external", [False, True])
def test_the_file_is_valid_smaller_and_gives_the_same_values(source, tmp_path, level, external):
    target = tmp_path / "optimized.onnx"
    written = optimize_file(source, target, level=level, external_data=external)
    onnx.checker.check_model(str(target), full_check=True)
    assert written.after < written.before
    assert written.files == ([target, tmp_path / "optimized.onnx.data"] if external else [target])
    assert sorted(tmp_path.iterdir()) == sorted([source, *written.files])
    np.testing.assert_allclose(run(target), run(source), atol=1e-6)


def test_fused_operators_are_ones_that_onnx_runtime_has(source, tmp_path):
    optimize_file(source, tmp_path / "optimized.onnx")
    made = onnx.load(tmp_path / "optimized.onnx")
    assert [(node.domain, node.op_type) for node in made.graph.node] == [("", "Conv"), ("com.microsoft", "QuickGelu")]
    assert {(i.domain, i.version) for i in made.opset_import} == {("", 26), ("com.microsoft", 1)}


def test_nothing_is_left_to_do_when_it_is_loaded(source, tmp_path):
    optimize_file(source, tmp_path / "optimized.onnx", level="basic")
    options = gpurt.SessionOptions(graph_optimization_level="basic")
    session = gpurt.InferenceSession(tmp_path / "optimized.onnx", options, providers=["cpu"])
    assert session.explain().to_dict()["removed"] == []


def test_a_session_writes_what_it_has_optimized(source, tmp_path):
    target = tmp_path / "optimized.onnx"
    got = run(source, optimized_model_filepath=target)
    np.testing.assert_allclose(run(target), got, atol=1e-6)
    assert not [node for node in onnx.load(target).graph.node if node.domain.startswith("gpurt")]


def test_names_and_open_sizes_stay(source, tmp_path):
    optimize_file(source, tmp_path / "optimized.onnx")
    session = gpurt.InferenceSession(tmp_path / "optimized.onnx", providers=["cpu"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("x", ["n", 3, 9, 9])]
    assert [o.name for o in session.get_outputs()] == ["y"]


def test_an_output_of_an_inputs_name_stays_the_input(tmp_path):
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    graph = helper.make_graph(
        [n("Neg", ["x"], ["y"])], "g", [info], [info, helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    optimize_file(tmp_path / "m.onnx", tmp_path / "o.onnx")
    x = np.arange(4, dtype=np.float32)
    session = gpurt.InferenceSession(tmp_path / "o.onnx", providers=["cpu"])
    assert [o.name for o in session.get_outputs()] == ["x", "y"]
    same, negative = session.run(None, {"x": x})
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(negative, -x)


def test_bodies_are_written_too(tmp_path):
    def branch(name, *nodes):
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])])

    then = branch("t", n("Sigmoid", ["x"], ["s"]), n("Mul", ["x", "s"], ["t"]))
    other = branch("e", n("Identity", ["x"], ["i"]), n("Neg", ["i"], ["e"]))
    node = n("If", ["c"], ["y"], then_branch=then, else_branch=other)
    inputs = {"c": (TensorProto.BOOL, []), "x": (TensorProto.FLOAT, [4])}
    onnx.save(make_model([node], inputs, ["y"]), tmp_path / "m.onnx")
    optimize_file(tmp_path / "m.onnx", tmp_path / "o.onnx")
    onnx.checker.check_model(str(tmp_path / "o.onnx"), full_check=True)
    x = np.linspace(-2, 2, 4, dtype=np.float32)
    before, after = (gpurt.InferenceSession(tmp_path / f, providers=["cpu"]) for f in ("m.onnx", "o.onnx"))
    for c in (True, False):
        feeds = {"c": np.array(c), "x": x}
        np.testing.assert_allclose(after.run(None, feeds)[0], before.run(None, feeds)[0], atol=1e-6)


@pytest.mark.parametrize("level", ["layout", "all", "best", 99, 7])
def test_levels_of_a_device_are_refused(source, tmp_path, level):
    with pytest.raises(gpurt.InvalidArgument, match="chosen for the device that loads it"):
        optimize_file(source, tmp_path / "o.onnx", level=level)


def test_an_opset_without_the_operator_is_named(tmp_path):
    nodes = [n("RMSNormalization", ["x", "g"], ["y"])]
    weights = {"g": np.ones(8, np.float32)}
    model = make_model(nodes, {"x": (TensorProto.FLOAT, [2, 8])}, ["y"], weights)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 23))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(gpurt.NotImplemented, match=r"RMSNormalization.*Use opset 23"):
        optimize_file(tmp_path / "m.onnx", tmp_path / "o.onnx", opset=22)
    with pytest.raises(gpurt.InvalidArgument, match="opset is 21"):
        optimize_file(tmp_path / "m.onnx", tmp_path / "o.onnx", opset=21)
    assert not (tmp_path / "o.onnx").exists()


def test_files_that_cannot_be_written(source, tmp_path):
    before = source.read_bytes()
    with pytest.raises(gpurt.InvalidArgument, match="is the model itself"):
        optimize_file(source, source)
    with pytest.raises(gpurt.InvalidArgument, match="is the model itself"):
        run(source, optimized_model_filepath=source)
    with pytest.raises(gpurt.NoSuchFile, match="folder that does not exist"):
        optimize_file(source, tmp_path / "nowhere" / "o.onnx")
    with pytest.raises(gpurt.NoSuchFile, match="is a folder"):
        run(source, optimized_model_filepath=tmp_path)
    with pytest.raises(gpurt.InvalidArgument, match="optimized_model_filepath is 3"):
        gpurt.SessionOptions(optimized_model_filepath=3)
    assert source.read_bytes() == before


def test_the_command(source, tmp_path):
    target = tmp_path / "optimized.onnx"
    done = CliRunner().invoke(main, ["optimize", str(source), str(target), "--level", "extended"])
    assert done.exit_code == 0, done.output
    assert "4 nodes became 2" in done.output
    assert target.exists()
    wrong = CliRunner().invoke(main, ["optimize", str(source), str(target), "--level", "all"])
    assert wrong.exit_code == 1
