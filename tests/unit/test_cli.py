"""The command line: doctor, explain, run, and errors without a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from gpurt import cli, registry
from gpurt.provider import Device, Provider, Unavailable
from gpurt.testing.null import NullProvider


def invoke(*args: str) -> Result:
    result = CliRunner().invoke(cli.main, list(args))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def model(tmp_path: Path) -> str:
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "k"], ["s"], name="add"),
            helper.make_node("ReduceSum", ["s"], ["y"], name="sum"),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("k", TensorProto.FLOAT, [3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return str(path)


class Broken(NullProvider):
    name = "broken"

    @classmethod
    def probe(cls) -> Sequence[Device]:
        raise Unavailable("no [special] driver", 'pip install "special[driver]"')

    @classmethod
    def open(cls, index: int | None, options: Mapping[str, Any]) -> Provider:
        cls.probe()
        raise AssertionError

    @classmethod
    def notes(cls) -> list[str]:
        return ["a note"]


@pytest.fixture
def broken() -> Iterator[None]:
    registry.register(Broken)
    yield
    registry.unregister("broken")


@pytest.mark.usefixtures("broken")
def test_doctor_lists_every_provider_with_reason_and_remedy() -> None:
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "NumPy" in result.output
    assert "no [special] driver" in result.output
    assert 'pip install "special[driver]"' in result.output
    assert "note: a note" in result.output
    assert "python 3." in result.output


@pytest.mark.usefixtures("broken")
def test_doctor_as_json() -> None:
    told = json.loads(invoke("doctor", "--json").output)
    by_name = {p["name"]: p for p in told["providers"]}
    assert by_name["cpu"]["usable"]
    assert by_name["cpu"]["devices"][0]["name"] == "cpu"
    assert by_name["broken"]["reason"] == "no [special] driver"
    assert by_name["broken"]["notes"] == ["a note"]
    assert {"cuda", "opencl"} <= set(by_name)
    assert "numpy" in told["versions"]


def test_explain(model: str) -> None:
    assert "2 nodes: 2 on cpu" in invoke("explain", model, "--providers", "cpu").output
    told = json.loads(invoke("explain", model, "--providers", "cpu", "--json").output)
    assert [n["op_type"] for n in told["nodes"]] == ["Add", "ReduceSum"]


def test_run(model: str) -> None:
    result = invoke("run", model, "--providers", "cpu", "--shape", "x=4,3", "--repeat", "2")
    assert result.exit_code == 0
    assert "float32[4, 3]" in result.output
    assert "float32[1, 1]" in result.output
    assert "first run" in result.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["explain", "nowhere.onnx"], "nowhere.onnx"),
        (["explain", "MODEL", "--providers", "opncl"], "did you mean 'opencl'"),
        (["run", "MODEL", "--providers", "cpu", "--shape", "x=a"], "name=1,3,224,224"),
        (["run", "MODEL", "--providers", "cpu", "--shape", "z=1"], "no input is called 'z'"),
        (["run", "MODEL", "--providers", "cpu", "--shape", "x=4,5"], "x"),
        (["run", "MODEL", "--providers", "cpu", "--shape", "x=999999999999999,3"], "smaller --shape"),
        (["optimize", "MODEL", "o.onnx", "--level", "layout"], "basic, extended"),
    ],
)
def test_errors_are_a_message_and_status_1(model: str, args: list[str], words: str) -> None:
    result = invoke(*[model if a == "MODEL" else a for a in args])
    assert result.exit_code == 1
    told = " ".join(result.stderr.split())
    assert "error:" in told
    assert words in told
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["run", "MODEL", "--seed", "-1"], "--seed"),
        (["run", "MODEL", "--repeat", "0"], "--repeat"),
        (["tune", "MODEL", "--output", "."], "--output"),
    ],
)
def test_a_wrong_value_of_an_option_is_told_before_anything_is_done(model: str, args: list[str], option: str) -> None:
    result = invoke(*[model if a == "MODEL" else a for a in args])
    assert result.exit_code == 2
    assert option in result.stderr


@pytest.mark.usefixtures("broken")
def test_a_provider_left_out_is_one_line(model: str) -> None:
    result = invoke("explain", model, "--providers", "broken,cpu")
    assert result.exit_code == 0
    assert len(result.stderr.splitlines()) == 1
    assert "warning: provider 'broken' is left out: no [special] driver" in result.stderr


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("float", np.float32), ("float16", np.float16), ("int64", np.int64), ("bool", np.bool_), ("string", object)],
)
def test_random_inputs_have_the_models_type(kind: str, dtype: Any) -> None:
    from gpurt import NodeArg

    made = cli.random_input(NodeArg("x", [None, 3, "n"], f"tensor({kind})"), None, 0)
    assert made.shape == (1, 3, 1)
    assert made.dtype == dtype


def test_describe() -> None:
    assert cli.describe([np.zeros(2, np.float32)]) == "list of 1: float32[2]"
    assert cli.describe({1: 2}) == "map of 1"
    assert cli.describe(None) == "absent"


def test_null_provider_is_a_provider() -> None:
    options: Mapping[str, Any] = {"dialect": "cuda"}
    opened = NullProvider.open(None, options)
    assert isinstance(opened, Provider)
    assert NullProvider.probe()[0].kind == "emulator"
