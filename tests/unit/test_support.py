"""The table of operators is honest: nothing is missing from it, and what it says of a provider holds there."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import gpurt
from gpurt import registry, support
from gpurt.cli_ops import ops
from gpurt.device.handed_on import HANDED_ON
from gpurt.device.provider import DeviceProvider
from gpurt.loader import CANONICAL_OPSETS, has_body
from gpurt.loader.opsets import op_names, schema

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

ROWS = {key for key, info in DeviceProvider.supported().items() if info.kernel}
STANDARD = [
    (domain, name)
    for domain in CANONICAL_OPSETS
    for name in op_names(domain)
    if (found := schema(name, domain)) is not None and not (found.deprecated and domain == "")
]


def test_nothing_that_is_handed_on_has_a_device_row():
    assert sorted(ROWS & set(HANDED_ON)) == [], "take these out of gpurt/device/handed_on.py"


@pytest.mark.parametrize(("domain", "name"), STANDARD, ids=[f"{d or 'ai.onnx'}.{o}" for d, o in STANDARD])
def test_every_operator_is_on_a_device_or_composed_or_handed_on_with_a_reason(domain, name):
    assert (domain, name) in ROWS or (domain, name) in HANDED_ON or has_body(name, domain)


def test_handed_on_lists_operators_that_exist():
    unknown = [key for key in HANDED_ON if schema(key[1], key[0]) is None]
    assert unknown == []


def test_the_host_has_every_operator_of_the_standard():
    lacking = [o.label for o in support.operators(["cpu"]) if o.version and o.cells["cpu"].status == "no"]
    assert lacking == []


def test_no_device_has_what_the_core_runs():
    assert not set(support.CORE) & ROWS


def test_a_provider_that_says_nothing(sim):
    cells = {o.name: o.cells[sim] for o in support.operators([sim])}
    said = registry.provider_class(sim).supported()
    assert said is not None or cells["Add"].status == "unknown"


def test_types_in_words():
    found = {o.label: o.cells["opencl"] for o in support.operators(["opencl"])}
    assert found["Add"].types == "numbers"
    assert found["And"].types == "bool"
    assert found["Where"].types.startswith("bool; others ")
    assert found["NonZero"] == support.Cell("handed on", note="the size of its result depends on the data")
    assert found["If"].status == "core"


@pytest.mark.parametrize("name", ["Add", "com.microsoft.Gelu", "gelu", "Conv*"])
def test_the_command_finds_operators(name):
    result = CliRunner().invoke(ops, [name, "--provider", "cpu", "--provider", "opencl"])
    assert result.exit_code == 0, result.output
    assert "native" in result.output
    assert "floats:" in result.output


def test_the_command_counts_and_speaks_json():
    text = CliRunner().invoke(ops, ["--provider", "cpu"]).output
    assert "cpu: " in text
    found = json.loads(CliRunner().invoke(ops, ["Det", "--json", "--provider", "opencl"]).output)
    assert [(o["name"], o["cells"]["opencl"]["status"]) for o in found] == [("Det", "handed on")]


def test_the_command_suggests():
    result = CliRunner().invoke(ops, ["Cnov", "--provider", "cpu"])
    assert isinstance(result.exception, gpurt.InvalidArgument)
    assert "did you mean 'Conv'" in str(result.exception)


def test_explain_gives_the_reason_of_the_table():
    if not registry.status("opencl").usable:
        pytest.skip(f"no OpenCL device: {registry.status('opencl').reason}")
    info = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])]
    out = [helper.make_tensor_value_info("y", TensorProto.INT64, [1, None])]
    graph = helper.make_graph([helper.make_node("NonZero", ["x"], ["y"], "it")], "g", info, out)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = gpurt.InferenceSession(proto.SerializeToString(), GREEDY, providers=["opencl", "cpu"])
    assert session.run(None, {"x": np.array([0, 1, 2], np.float32)})[0].tolist() == [[1, 2]]
    assert "the size of its result depends on the data" in str(session.explain().to_dict())
