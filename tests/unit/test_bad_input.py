"""What a user may get wrong: each refusal is a typed error that names the thing and a remedy, and sessions go on."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from conftest import make_model
from onnx import TensorProto, helper

import gpurt
from gpurt.testing.null import NullProvider

X = np.arange(6, dtype=np.float32).reshape(2, 3)
ARRAY = np.array([1, 2])
"""Compares to an array, which has no truth value."""


def relu() -> Any:
    return make_model(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")], {"x": (TensorProto.FLOAT, ["batch", 3])}, ["y"]
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cache_dir", [3, 1.5, "", b"x", [], "a\0b", ARRAY]),
        ("disabled_optimizers", ["ConstantFolding", b"x", 3, [1], {"ConstantFolding": False}]),
        ("enable_profiling", [1, "yes", None, ARRAY]),
        ("execution_mode", [True, 1.0, 2, None, ARRAY]),
        ("graph_optimization_level", [True, 1.5, 4, None, "some", ARRAY]),
        ("inter_op_num_threads", [-1, True, 1.0, "2", 2**70]),
        ("intra_op_num_threads", [-1, True, 1.0, "2", 2**70]),
        ("log_severity_level", [-2, 5, True, None]),
        ("log_verbosity_level", [-1, "1"]),
        ("logid", [3, None]),
        ("optimized_model_filepath", [3, None, b"x", "a\0b"]),
        ("partitioning", ["costs", True, None, ARRAY]),
        ("pins", [[], "op:Conv", {"a": 1}, {1: "cpu"}, None]),
        ("plan_cache_bytes", [-1, 1.5, None]),
        ("plan_cache_size", [0, 1.5, None]),
        ("profile_file_prefix", [3, None, "a\0b"]),
        ("strict", [1, "yes", None, ARRAY]),
        ("transformers", ["x", b"x", 3, {}]),
        ("tuning", ["onlin", None, True, ARRAY]),
        ("tuning_budget", [-1, math.nan, "1", None, True]),
        ("tuning_file", [3, "", b"x", "a\0b", ARRAY]),
    ],
)
def test_session_options(name, values):
    options = gpurt.SessionOptions()
    before = getattr(options, name)
    for value in values:
        with pytest.raises(gpurt.InvalidArgument, match=name) as e:
            setattr(options, name, value)
        assert e.value.remedy
        assert getattr(options, name) == before


def test_every_session_option_is_tried():
    tried = {name for name, _ in test_session_options.pytestmark[0].args[1]}
    assert tried == set(gpurt.SessionOptions.__slots__)


@pytest.mark.parametrize(
    ("name", "value"),
    [("log_severity_level", 5), ("log_verbosity_level", 2**70), ("profile_file_prefix", "a\0b"), ("terminate", ARRAY)],
)
def test_run_options(name, value):
    with pytest.raises(gpurt.InvalidArgument, match=name):
        setattr(gpurt.RunOptions(), name, value)


@pytest.mark.parametrize(
    ("providers", "words"),
    [
        (["CPU"], "did you mean 'cpu'"),
        (["CPUExecutionProvider"], "did you mean 'cpu'"),
        (["cpu:"], "An index is a number"),
        (["cpu:\u00b2"], "An index is a number"),
        (["cpu:" + "9" * 5000], "An index is a number"),
        ([("cpu", {1: 2})], "cpu has no option 1"),
        ([("cpu", None)], "a provider is"),
        (3, "providers is 3"),
    ],
)
def test_providers(providers, words):
    with pytest.raises(gpurt.InvalidArgument, match=re.escape(words)):
        gpurt.InferenceSession(relu(), providers=providers)


@pytest.mark.parametrize("given", [3, {}, [3], [{}, {}], "cpu"])
def test_lists_of_provider_options(given):
    with pytest.raises(gpurt.InvalidArgument, match="provider_options"):
        gpurt.InferenceSession(relu(), providers=["cpu"], provider_options=given)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("memory_limit", [0, -1, 1.5, "1", True]),
        ("arena_extend_strategy", ["double", None, ARRAY]),
        ("initial_chunk_size_bytes", [0, "1"]),
        ("max_power_of_two_extend_bytes", [0, "1"]),
        ("over_budget", ["layer", None, ARRAY]),
        ("share_arena", [1, None, ARRAY]),
        ("persistent_kernels", ["yes", 1, None, ARRAY]),
        ("tuning", ["onlin", ARRAY]),
        ("tuning_budget", [-1, math.nan]),
        ("tuning_file", [3, "", b"x", "a\0b"]),
        ("cache_dir", [3, "", b"x", "a\0b"]),
    ],
)
def test_options_of_devices(name, values):
    for value in values:
        with pytest.raises(gpurt.InvalidArgument, match=name) as e:
            NullProvider.open(None, {name: value})
        assert e.value.remedy


def test_a_tuning_file_that_is_a_folder(tmp_path):
    with pytest.raises(gpurt.InvalidArgument, match="cannot be read") as e:
        NullProvider.open(None, {"tuning_file": tmp_path})
    assert "gpurt tune" in e.value.remedy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pins": {"relu": "cuda"}}, "asks for 'cuda'"),
        ({"pins": {"relu": "cpuu"}}, "did you mean 'cpu'"),
        ({"pins": {"meta:": "cpu"}}, "meta:key=value"),
        ({"disabled_optimizers": ["ConstantFoldin"]}, "did you mean 'ConstantFolding'"),
        ({"transformers": [3]}, "3 is no transformation"),
        ({"optimized_model_filepath": "no/such/folder.onnx"}, "does not exist"),
    ],
)
def test_options_that_do_not_fit_the_session(options, words):
    with pytest.raises(gpurt.GpurtError, match=re.escape(words)):
        gpurt.InferenceSession(relu(), gpurt.SessionOptions(**options), providers=["cpu"])


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (3, "expected_shapes is 3"),
        ([], "expected_shapes is []"),
        ({"z": (1, 3)}, "no input 'z'"),
        ({"x": 3}, "the shape of 'x' is 3"),
        ({"x": ("a", 3)}, "the shape of 'x' is ('a', 3)"),
        ({"x": (-1, 3)}, "the shape of 'x' is (-1, 3)"),
        ({"x": (1, 4)}, "does not fit"),
    ],
)
def test_expected_shapes(shapes, words):
    with pytest.raises(gpurt.InvalidArgument, match=re.escape(words)) as e:
        gpurt.InferenceSession(relu(), providers=["cpu"], dry_run=True, expected_shapes=shapes)
    assert e.value.remedy


@pytest.mark.parametrize("shape", [3, None, (1.5,), "23", (-1,)])
def test_shapes_of_tensors(shape):
    with pytest.raises(gpurt.InvalidArgument, match="a shape is"):
        gpurt.Tensor.empty(shape)


def test_a_folder_in_place_of_a_model(tmp_path):
    with pytest.raises(gpurt.InvalidArgument, match="is a folder") as e:
        gpurt.InferenceSession(tmp_path, providers=["cpu"])
    assert "cannot be a path" not in str(e.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.run(3, {"x": X}), "output_names is 3"),
        (lambda s: s.run(None, {"x": np.ndarray}), "does not say where it is"),
        (lambda s: s.run(None, {"x": None}), "input 'x' is object"),
        (lambda s: s.run(None, {3: X}), "no input 3"),
        (lambda s: s.run_with_ort_values(None, None), "the feeds are a NoneType"),
        (lambda s: s.run_with_ort_values(None, {"z": X}), "no input 'z'"),
        (lambda s: s.io_binding().bind_input("x", "cpu", 0, np.float32, (2, 3), "a"), "memory at 'a'"),
        (lambda s: s.io_binding().bind_input("x", "cpu", 0, np.float32, 6, X.ctypes.data), "of shape 6"),
        (lambda s: s.io_binding().bind_output("y", 3), "a device is 3"),
        (lambda s: s.io_binding().bind_output("y", "opencl", "a"), "number 'a'"),
        (lambda s: s.run_with_iobinding(None), "not of this session"),
        (lambda s: s.warmup({"x": "23"}), "shape of 'x'"),
        (lambda s: s.warmup({"x": (10**30, 3)}), "'x'"),
    ],
)
def test_calls_leave_the_session_usable(call, words):
    session = gpurt.InferenceSession(relu(), providers=["cpu"])
    with pytest.raises(gpurt.InvalidArgument, match=re.escape(words)) as e:
        call(session)
    assert e.value.remedy
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], X)
