"""Where level layout must not fire, and what the rest of a graph sees of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import make_model
from laying_out import CONV, LastProvider, check, laid_out, same_values
from onnx import TensorProto
from regions import F32, INT, Net

import gpurt
from gpurt import registry
from gpurt.graph.channels_last import DOMAIN
from gpurt.provider import Capability


@pytest.fixture(autouse=True)
def last() -> Iterator[None]:
    registry.register(LastProvider)
    yield
    registry.unregister("last")


# --- where it must not fire


def kept(net: Net, *outputs: str, provider: Any = LastProvider) -> Any:
    found = laid_out(net.model(*outputs), provider)
    assert DOMAIN not in " ".join(found.ops)
    assert found.layouts == []
    return found


def test_a_small_convolution_alone_stays():
    class Half(LastProvider):
        share = 0.5

    net = Net(1, 8, 12, 12)
    y = net.add("MatMul", net.conv(net.add("MatMul", "x", net.drawn(12, 12)), 8, 8, 1), net.drawn(12, 12))
    found = kept(net, y, provider=Half)
    assert [m["reason"] for m in found.misses] == ["the Transposes around it would cost more than it saves"]


def test_what_is_saved_decides():
    class Half(LastProvider):
        share = 0.5

    class Little(LastProvider):
        share = 0.01

    class Slower(LastProvider):
        share = -0.5

    net = Net(1, 64, 32, 32)
    y = net.block("x", 64)
    kept(net, y, provider=Little)
    kept(net, y, provider=Slower)
    assert laid_out(net.model(y), Half).count(CONV) == 2


def test_a_provider_without_the_kernels_keeps_its_nodes():
    class Without(LastProvider):
        lacks = frozenset({CONV})

    net = Net(1, 16, 32, 32)
    found = kept(net, net.block("x", 16), provider=Without)
    assert {m["reason"] for m in found.misses} == {"no kernel"}


def test_an_operator_without_a_kernel_is_a_border():
    class Without(LastProvider):
        lacks = frozenset({f"{DOMAIN}.MaxPool"})

    net = Net(1, 16, 32, 32)
    x = net.add("MaxPool", net.block("x", 16), kernel_shape=[3, 3])
    found = laid_out(net.model(net.block(x, 16)), Without)
    assert found.transposes == 4
    assert found.count("MaxPool") == 1


def test_a_provider_without_transposes_keeps_its_nodes():
    class Without(LastProvider):
        lacks = frozenset({"Transpose"})

    net = Net(1, 16, 32, 32)
    kept(net, net.block("x", 16), provider=Without)


def test_indices_of_a_pool_count_in_the_models_layout():
    net = Net(1, 16, 32, 32)
    x = net.block("x", 16)
    y, at = net.add("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    net.nodes[-1].name = "pool"
    model = net.model(net.block(y, 16), at)
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    found = laid_out(model)
    assert found.count("MaxPool") == 1
    assert found.transposes == 4
    same_values(model, net.feed())


def test_a_node_of_another_provider_is_a_border():
    class NoErf(LastProvider):
        lacks = frozenset({"Erf"})

    net = Net(1, 16, 32, 32)
    x = net.add("Erf", net.conv(net.conv("x", 16, 16), 16, 16))
    found = laid_out(net.model(net.conv(net.conv(x, 16, 16), 16, 16)), NoErf)
    assert found.count(CONV) == 4
    assert found.transposes == 4


@pytest.mark.parametrize("options", [{"graph_optimization_level": "extended"},
                                     {"disabled_optimizers": ["ChannelsLast"]}], ids=str)  # fmt: skip
def test_it_is_switched_off(options):
    net = Net(1, 16, 32, 32)
    model = net.model(net.block("x", 16))
    session = gpurt.InferenceSession(model, gpurt.SessionOptions(**options), providers=["last"])
    assert session.explain().to_dict()["layouts"] == []
    for level in ("layout", "all"):
        chosen = gpurt.SessionOptions(graph_optimization_level=level)
        session = gpurt.InferenceSession(model, chosen, providers=["last"])
        assert session.explain().to_dict()["layouts"] != []


# --- the rest of the graph


def test_outputs_inside_a_region_keep_names_and_layout():
    net = Net(1, 16, 16, 16)
    x = net.block("x", 16)
    y = net.block(x, 16)
    check(net, x, y, transposes=3)
    session = gpurt.InferenceSession(net.model(x, y), providers=["last"])
    assert [o.name for o in session.get_outputs()] == [x, y]
    assert [o.shape for o in session.get_outputs()] == [[1, 16, 16, 16]] * 2
    assert session.run([x], net.feed())[0].shape == (1, 16, 16, 16)


def test_branches_of_an_if():
    inner = Net(1, 16, 16, 16)
    then = inner.block("x", 16)
    branch = onnx.helper.make_graph(
        inner.nodes, "then", [], [onnx.helper.make_tensor_value_info(then, F32, [1, 16, 16, 16])],
        [onnx.numpy_helper.from_array(a, n) for n, a in inner.constants.items()],
    )  # fmt: skip
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["neg"])], "else", [],
        [onnx.helper.make_tensor_value_info("neg", F32, [1, 16, 16, 16])],
    )  # fmt: skip
    choose = onnx.helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=other)
    inputs = {"x": (F32, [1, 16, 16, 16]), "c": (TensorProto.BOOL, [])}
    model = make_model([choose], inputs, ["y"])
    for condition in (True, False):
        layouts = same_values(model, {**inner.feed(), "c": np.array(condition)})
    assert [(e["graph"], e["transposes"]) for e in layouts] == [("then", 2)]


def test_what_a_body_reads_of_a_region_keeps_its_layout():
    net = Net(1, 16, 16, 16)
    x = net.block("x", 16)
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["s", x], ["t"]), onnx.helper.make_node("Identity", ["c"], ["d"])], "body",
        [onnx.helper.make_tensor_value_info("i", TensorProto.INT64, []),
         onnx.helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         onnx.helper.make_tensor_value_info("s", F32, [1, 16, 16, 16])],
        [onnx.helper.make_tensor_value_info("d", TensorProto.BOOL, []),
         onnx.helper.make_tensor_value_info("t", F32, [1, 16, 16, 16])],
    )  # fmt: skip
    y = net.add("Loop", net.constant(3, INT), "", "x", body=body)
    check(net, y, net.add("Relu", x), transposes=2)


def test_what_a_loop_makes_has_the_rank_that_a_convolution_needs():
    net = Net(1, 16, 16, 16)
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["s"], ["t"]), onnx.helper.make_node("Identity", ["c"], ["d"])], "body",
        [onnx.helper.make_tensor_value_info("i", TensorProto.INT64, []),
         onnx.helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         onnx.helper.make_tensor_value_info("s", F32, None)],
        [onnx.helper.make_tensor_value_info("d", TensorProto.BOOL, []),
         onnx.helper.make_tensor_value_info("t", F32, None)],
    )  # fmt: skip
    y = net.add("Loop", net.constant(3, INT), "", "x", body=body)
    check(net, net.block(net.block(y, 16), 16), transposes=2)


def test_nodes_of_a_claim_of_several_stay():
    class Grouping(LastProvider):
        def get_capability(self, graph):
            answer = super().get_capability(graph)
            names = tuple(n.name for n in graph.nodes if n.op_type in ("Conv", "Relu") and not n.domain)
            rest = [c for c in answer.claims if c[0] not in names]
            return Capability([names, *rest] if names else rest, answer.refused)

    net = Net(1, 16, 32, 32)
    kept(net, net.block("x", 16), provider=Grouping)


def test_explain_and_dry_run_tell_of_it():
    net = Net(1, 16, 32, 32)
    model = net.model(net.block("x", 16))
    session = gpurt.InferenceSession(model, providers=["last"])
    told = session.explain()
    (entry,) = told.to_dict()["layouts"]
    assert entry == {
        "graph": "test", "device": "last:0", "turned": entry["turned"], "preferred": 2, "kept": 0, "transposes": 2,
        "bytes": 2 * 16 * 32 * 32 * 4, "cancelled": 0,
    }  # fmt: skip
    assert "channels last" in str(told)
    (applied,) = [t for t in told.to_dict()["transformations"] if t["name"] == "ChannelsLast"]
    assert applied == {"name": "ChannelsLast", "kind": "provider", "level": 3, "changes": entry["turned"]}
    dry = gpurt.InferenceSession(model, providers=["last"], dry_run=True)
    assert dry.explain().to_dict()["layouts"] == [entry]


def test_names_of_nodes_stay():
    net = Net(1, 16, 32, 32)
    y = net.block("x", 16)
    found = laid_out(net.model(y))
    assert {n.name for n in net.nodes} >= {n.name for n in found.model.graph if n.op_type in ("Conv", "Relu", "Add")}
