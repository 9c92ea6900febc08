"""Compiled programs of a real device: the second process compiles nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys

import pytest
import numpy as np
from onnx import TensorProto, helper, numpy_helper
import gpurt

w = np.random.default_rng(1).standard_normal((16, 3, 3, 3)).astype(np.float32)
nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4), helper.make_node("Sin", ["c"], ["y"])]
x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 8, 8]), ("y", None)))
graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(w, "w")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
options = gpurt.SessionOptions(partitioning="greedy", cache_dir=sys.argv[1])
session = gpurt.InferenceSession(model, options, providers=["opencl", "cpu"])
made = session.run(None, {"x": np.ones((1, 3, 8, 8), np.float32)})[0]
binaries = session._providers[0]._binaries
print(binaries.hits, binaries.misses, float(made.sum()))
"""


@pytest.mark.parametrize("provider", ["cpu"], indirect=True)
def test_the_second_process_compiles_nothing(provider, tmp_path):
    def process() -> list[str]:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout.split()

    hits, misses, made = process()
    assert hits == "0"
    assert int(misses) > 0
    assert process() == [misses, "0", made]
