"""The session on the host provider: feeds, outputs, errors, and that a wrong call leaves it usable."""

import warnings

import numpy as np
import onnx
import pytest
from conftest import make_model
from onnx import TensorProto, helper

import gpurt

n = helper.make_node
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def session(**kwargs):
    model = make_model([n("Relu", ["x"], ["y"], "r")], {"x": (TensorProto.FLOAT, ["batch", 3])}, ["y"])
    return gpurt.InferenceSession(model, providers=["cpu"], **kwargs)


def test_runs_and_describes_itself():
    s = session()
    np.testing.assert_array_equal(s.run(None, {"x": X - 2})[0], np.maximum(X - 2, 0))
    (arg,) = s.get_inputs()
    assert (arg.name, arg.shape, arg.type) == ("x", ["batch", 3], "tensor(float)")
    assert s.get_providers() == ["cpu"]
    assert s.get_outputs()[0].name == "y"


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"x": X.astype(np.float64)}, "float64, the model wants float32"),
        ({"x": X[0]}, "rank 1"),
        ({"x": X.T.copy()}, "2 at dimension 1"),
        ({"y": X}, "did you mean"),
        ({}, "'x' is missing"),
        ([X], "feeds are a list"),
    ],
)
def test_wrong_feeds_say_what_was_expected_and_leave_the_session_usable(feeds, words):
    s = session()
    if "did you mean" in words:
        feeds = {"xx": X}
    with pytest.raises(gpurt.InvalidArgument, match=words) as e:
        s.run(None, feeds)
    assert e.value.remedy
    np.testing.assert_array_equal(s.run(None, {"x": X})[0], X)


def test_unknown_output():
    with pytest.raises(gpurt.InvalidArgument, match="no output 'z'"):
        session().run(["z"], {"x": X})


def test_feeds_may_be_scalars_lists_views_and_big_endian():
    s = session()
    for feed in (X.astype(">f4"), X[::-1][::-1], X.tolist()):
        if isinstance(feed, list):
            feed = np.array(feed, np.float32)
            feed.flags.writeable = False
        np.testing.assert_array_equal(s.run(None, {"x": feed})[0], X)


def test_outputs_belong_to_the_caller():
    model = make_model(
        [n("Identity", ["x"], ["y"], "i"), n("Reshape", ["x", "s"], ["z"], "r")],
        {"x": X},
        ["y", "z", "c"],
        {"s": np.array([3, 2]), "c": np.ones(3, np.float32)},
    )
    s = gpurt.InferenceSession(model, providers=["cpu"])
    outs = s.run(None, {"x": X})
    for a in outs:
        assert a.ctypes.data % 64 == 0
        assert a.flags.writeable
        assert not np.shares_memory(a, X)
        a[...] = -1
    again = s.run(None, {"x": X})
    np.testing.assert_array_equal(again[0], X)
    np.testing.assert_array_equal(again[2], 1)


def test_default_of_an_overridable_initializer():
    graph = helper.make_graph(
        [n("Add", ["x", "b"], ["y"], "a")],
        "g",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, [3]) for k in ("x", "b")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        [onnx.numpy_helper.from_array(np.ones(3, np.float32), "b")],
    )
    s = gpurt.InferenceSession(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
                               providers=["cpu"])  # fmt: skip
    assert [i.name for i in s.get_inputs()] == ["x"]
    assert [(i.name, i.shape, i.type) for i in s.get_overridable_initializers()] == [("b", [3], "tensor(float)")]
    x = np.zeros(3, np.float32)
    np.testing.assert_array_equal(s.run(None, {"x": x})[0], 1)
    np.testing.assert_array_equal(s.run(None, {"x": x, "b": x + 5})[0], 5)


def test_metadata_has_the_names_of_onnx_runtime():
    model = make_model([n("Relu", ["x"], ["y"])], {"x": X}, ["y"])
    model.producer_name, model.doc_string, model.graph.doc_string, model.model_version = "p", "d", "of the graph", 3
    onnx.helper.set_model_props(model, {"labels": "cat dog"})
    found = gpurt.InferenceSession(model, providers=["cpu"]).get_modelmeta()
    assert (found.producer_name, found.description, found.graph_description) == ("p", "d", "of the graph")
    assert (found.version, found.graph_name, found.domain) == (3, "test", "")
    assert found.custom_metadata_map == {"labels": "cat dog"}


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(gpurt.NoSuchFile, match=r"nowhere\.onnx"):
        gpurt.InferenceSession(str(tmp_path / "nowhere.onnx"))
    whole = make_model([n("Relu", ["x"], ["y"])], {"x": X}, ["y"]).SerializeToString()
    for name, content in (
        ("cut.onnx", whole[: len(whole) // 2]),
        ("text.onnx", b"this is no model at all, sorry"),
        ("empty.onnx", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises((gpurt.InvalidProtobuf, gpurt.InvalidGraph)):
            gpurt.InferenceSession(str(tmp_path / name), providers=["cpu"])


def test_unknown_operator():
    model = helper.make_model(
        helper.make_graph(
            [n("Reluu", ["x"], ["y"], "r")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        )
    )
    with pytest.raises(gpurt.InvalidGraph, match="did you mean 'Relu'"):
        gpurt.InferenceSession(model, providers=["cpu"])


def test_operator_of_an_unknown_domain_names_it_and_the_providers():
    graph = helper.make_graph(
        [n("Frobnicate", ["x"], ["y"], "f", domain="com.acme")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.acme", 1)])
    with pytest.raises(gpurt.NotImplemented, match=r"com\.acme\.Frobnicate") as e:
        gpurt.InferenceSession(model, providers=["cpu"])
    assert e.value.node == "f"
    assert "cpu" in str(e.value)


def test_unknown_providers_and_options_are_refused_with_a_suggestion():
    model = make_model([n("Relu", ["x"], ["y"])], {"x": X}, ["y"])
    with pytest.raises(gpurt.InvalidArgument, match="did you mean 'opencl'"):
        gpurt.InferenceSession(model, providers=["opencll"])
    with pytest.raises(gpurt.InvalidArgument, match="did you mean 'platform'"):
        gpurt.InferenceSession(model, providers=[("opencl", {"plattform": 0})])
    with pytest.raises(gpurt.InvalidArgument, match="Give a list"):
        gpurt.InferenceSession(model, providers="cpu")
    options = gpurt.SessionOptions()
    with pytest.raises(gpurt.InvalidArgument, match="did you mean 'strict'"):
        options.stict = True
    with pytest.raises(gpurt.NotImplemented, match="not supported yet"):
        options.enable_mem_pattern = True
    options.graph_optimization_level = "basic"
    assert options.graph_optimization_level == 1


def test_a_failing_kernel_names_the_node_and_the_session_goes_on():
    model = make_model([n("Gather", ["x", "i"], ["y"], "pick")], {"x": X, "i": (TensorProto.INT64, ["k"])}, ["y"])
    s = gpurt.InferenceSession(model, providers=["cpu"])
    with pytest.raises(gpurt.GpurtError, match="pick"):
        s.run(None, {"x": X, "i": np.array([7])})
    np.testing.assert_array_equal(s.run(None, {"x": X, "i": np.array([1])})[0], X[[1]])


def test_an_unusable_provider_warns_once_and_strict_makes_it_an_error(monkeypatch):
    from gpurt import registry
    from gpurt.provider import Provider, Unavailable

    class Absent(Provider):
        name = "absent"

        @classmethod
        def probe(cls):
            raise Unavailable("its cable is not plugged in", "Plug it in")

        open = classmethod(lambda cls, index, options: cls.probe())
        get_capability = compile = lambda self, graph: None

    registry.register(Absent)
    model = make_model([n("Relu", ["x"], ["y"])], {"x": X}, ["y"])
    try:
        with pytest.warns(RuntimeWarning, match="cable.*Plug it in") as seen:
            s = gpurt.InferenceSession(model, providers=["absent", "cpu"])
        assert len(seen) == 1
        assert s.get_providers() == ["cpu"]
        with pytest.raises(gpurt.EPFail, match="cable"):
            gpurt.InferenceSession(model, gpurt.SessionOptions(strict=True), providers=["absent", "cpu"])
        assert [p.reason for p in gpurt.providers() if p.name == "absent"] == ["its cable is not plugged in"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gpurt.InferenceSession(model, providers=["cpu"])
    finally:
        registry.unregister("absent")


def test_exports_are_exact():
    for name in gpurt.__all__:
        assert getattr(gpurt, name) is not None
    with pytest.raises(AttributeError):
        _ = gpurt.Sessions
