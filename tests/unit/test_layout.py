"""Level layout on hand-made regions: how many Transposes are left, and that the values stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from conftest import make_model
from laying_out import CONV, LastProvider, laid_out, same_values
from onnx import TensorProto

import gpurt
from gpurt import registry
from gpurt.graph.channels_last import DOMAIN

F32 = TensorProto.FLOAT


@pytest.fixture(autouse=True)
def last() -> Any:
    registry.register(LastProvider)
    yield
    registry.unregister("last")


class Net:
    """A network that grows by its layers; names are given out in order, weights are drawn."""

    def __init__(self, *shape: Any) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(3)
        self.shape = shape

    def constant(self, content: Any, dtype: Any = np.float32) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(content, dtype)
        return name

    def drawn(self, *shape: int) -> str:
        return self.constant(self.rng.uniform(-1, 1, shape) / max(np.sqrt(np.prod(shape[1:])), 1))

    def add(self, op: str, *inputs: Any, outputs: int = 1, name: str = "", **attrs: Any) -> Any:
        made = [f"v{len(self.nodes)}_{i}" for i in range(outputs)] if not name else [name]
        self.nodes.append(onnx.helper.make_node(op, list(inputs), made, f"n{len(self.nodes)}_{op}", **attrs))
        return made[0] if outputs == 1 else made

    def conv(self, x: str, channels: int, filters: int, k: int = 3, group: int = 1, **attrs: Any) -> str:
        rank = len(self.shape) - 2
        pads = attrs.pop("pads", [k // 2] * (2 * rank))
        w, b = self.drawn(filters, channels // group, *[k] * rank), self.drawn(filters)
        return self.add("Conv", x, w, b, pads=pads, group=group, **attrs)

    def block(self, x: str, channels: int) -> str:
        """A residual block."""
        y = self.add("Relu", self.conv(x, channels, channels))
        return self.add("Relu", self.add("Add", self.conv(y, channels, channels), x))

    def model(self, *outputs: str) -> onnx.ModelProto:
        return make_model(self.nodes, {"x": (F32, list(self.shape))}, list(outputs), self.constants)

    def feed(self, *shape: int) -> dict[str, np.ndarray]:
        return {"x": self.rng.standard_normal(shape or self.shape).astype(np.float32)}

    def check(self, *outputs: str, transposes: int, feeds: Any = None) -> Any:
        """Fail unless the values stay and so many Transposes are left; what became of the model."""
        model = self.model(*outputs)
        same_values(model, *(feeds or [self.feed()]))
        found = laid_out(model)
        assert found.transposes == transposes, found.layouts
        return found


# --- regions


def test_residual_blocks_leave_one_transpose_in_and_one_out():
    net = Net(1, 16, 32, 32)
    found = net.check(net.block(net.block("x", 16), 16), transposes=2)
    assert found.count(CONV) == 4
    assert found.count("Transpose") == 2


def test_pooling_to_a_vector_leaves_none_behind():
    net = Net(2, 16, 32, 32)
    pooled = net.add("GlobalAveragePool", net.block("x", 16))
    y = net.add("Gemm", net.add("Flatten", pooled), net.drawn(16, 10), net.drawn(10))
    found = net.check(y, transposes=1)
    assert found.count("ReduceMean") == 1


def test_weights_of_a_product_are_permuted_instead_of_an_image():
    for transposed in (0, 1):
        net = Net(2, 8, 16, 16)
        x = net.add("MaxPool", net.block("x", 8), kernel_shape=[4, 4], strides=[4, 4])
        weights = net.drawn(5, 128) if transposed else net.drawn(128, 5)
        net.check(net.add("Gemm", net.add("Flatten", x), weights, transB=transposed), transposes=1)


def test_squeeze_and_excitation():
    net = Net(1, 16, 24, 24)
    x = net.conv("x", 16, 32)
    gate = net.add("Relu", net.conv(net.add("GlobalAveragePool", x), 32, 8, 1))
    gate = net.add("HardSigmoid", net.conv(gate, 8, 32, 1))
    found = net.check(net.conv(net.add("Mul", x, gate), 32, 16), transposes=2)
    assert found.count(CONV) == 4


def test_branches_that_meet_in_a_concat():
    net = Net(1, 16, 20, 20)
    x = net.conv("x", 16, 16)
    pooled = net.add("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    mean = net.add("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    parts = [net.conv(x, 16, 8, 1), net.conv(pooled, 16, 4, 1), net.conv(mean, 16, 4), net.conv(x, 16, 8, 5)]
    found = net.check(net.add("Concat", *parts, axis=1), transposes=2)
    assert found.count(f"{DOMAIN}.MaxPool") == 1
    assert found.count(f"{DOMAIN}.AveragePool") == 1


def test_encoder_and_decoder_with_a_skip():
    net = Net(1, 8, 32, 32)
    high = net.add("Relu", net.conv("x", 8, 16))
    low = net.conv(net.add("MaxPool", high, kernel_shape=[2, 2], strides=[2, 2]), 16, 32)
    up = net.add("Resize", low, "", net.constant([1, 1, 2, 2]), mode="linear")
    learned = net.add("ConvTranspose", low, net.drawn(32, 8, 2, 2), strides=[2, 2])
    found = net.check(net.conv(net.add("Concat", high, up, learned, axis=1), 56, 8), transposes=2)
    assert found.count(f"{DOMAIN}.ConvTranspose") == 1


def shuffled(net: Net, x: str, channels: int, groups: int, size: Any) -> str:
    parts = net.constant([-1, groups, channels // groups, *size], np.int64)
    split = net.add("Transpose", net.add("Reshape", x, parts), perm=[0, 2, 1, 3, 4])
    return net.add("Reshape", split, net.constant([-1, channels, *size], np.int64))


def test_shuffled_channels_stay_in_the_region():
    net = Net(2, 12, 16, 16)
    x = shuffled(net, net.conv("x", 12, 24, 1), 24, 3, (16, 16))
    found = net.check(net.conv(net.conv(x, 24, 24, group=24), 24, 12, 1), transposes=2)
    assert found.count("Transpose") == 3  # the shuffle's own, along the last axis, is one of them


def test_dense_blocks_with_normalization_before_the_convolution():
    net = Net(1, 8, 24, 24)
    x, channels = net.conv("x", 8, 16), 16
    for _ in range(3):
        statistics = [net.constant(net.rng.uniform(0.5, 1.5, channels)) for _ in range(4)]
        y = net.conv(net.add("Relu", net.add("BatchNormalization", x, *statistics)), channels, 8)
        x, channels = net.add("Concat", x, y, axis=1), channels + 8
    found = net.check(x, transposes=2)
    assert found.count("BatchNormalization") == 0


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixels_out_of_channels(mode):
    net = Net(1, 8, 16, 16)
    y = net.add("DepthToSpace", net.conv(net.conv("x", 8, 16), 16, 16), blocksize=2, mode=mode)
    net.check(net.conv(y, 4, 8), transposes=2)


def test_channels_out_of_pixels():
    net = Net(1, 8, 16, 16)
    net.check(net.conv(net.add("SpaceToDepth", net.conv("x", 8, 8), blocksize=2), 32, 8), transposes=2)


def test_patches_become_tokens_without_a_transpose():
    net = Net(2, 3, 64, 64)
    patches = net.conv("x", 3, 48, 8, strides=[8, 8], pads=[0, 0, 0, 0])
    tokens = net.add("Transpose", net.add("Reshape", patches, net.constant([0, 48, -1], np.int64)), perm=[0, 2, 1])
    found = net.check(net.add("LayerNormalization", tokens, net.drawn(48), axis=-1), transposes=1)
    assert found.layouts[0]["cancelled"] == 1


def test_tokens_become_an_image_without_a_transpose():
    net = Net(2, 64, 32)
    image = net.add("Reshape", net.add("Transpose", net.add("Relu", "x"), perm=[0, 2, 1]),
                    net.constant([2, 32, 8, 8], np.int64))  # fmt: skip
    w = net.drawn(32, 32, 3, 3)
    y = net.add("Conv", net.add("Conv", image, w, pads=[1] * 4), w, pads=[1] * 4)
    net.check(net.add("GlobalAveragePool", y), transposes=0)


def test_a_model_that_has_channels_last_by_itself_has_no_transpose_left():
    net = Net(1, 16, 16, 8)
    y = net.conv(net.add("Transpose", "x", perm=[0, 3, 1, 2]), 8, 16)
    y = net.conv(net.add("Relu", y), 16, 8)
    found = net.check(net.add("Sigmoid", net.add("Transpose", y, perm=[0, 2, 3, 1])), transposes=0)
    assert found.layouts[0]["cancelled"] == 2
    assert found.count("Transpose") == 0


def test_a_transpose_that_goes_may_have_made_an_output():
    net = Net(1, 16, 16, 8)
    y = net.conv(net.conv(net.add("Transpose", "x", perm=[0, 3, 1, 2]), 8, 16), 16, 8)
    net.check(net.add("Transpose", y, perm=[0, 2, 3, 1]), y, transposes=1)


@pytest.mark.parametrize(("shape", "k"), [((2, 8, 64), 5), ((1, 4, 8, 10, 12), 3)], ids=["1-D", "3-D"])
def test_other_ranks(shape, k):
    net = Net(*shape)
    y = net.conv(net.add("Relu", net.conv("x", shape[1], 16, k)), 16, 16, k)
    found = net.check(net.add("GlobalMaxPool", y), transposes=1)
    assert found.count(CONV) == 2


# --- what stands between convolutions

INT = np.int64
BETWEEN = {
    "Clip": lambda n, x: n.add("Clip", x, n.constant(0), n.constant(6)),
    "scalar": lambda n, x: n.add("Mul", x, n.constant(3)),
    "scalar of rank 4": lambda n, x: n.add("Mul", n.constant([[[[3]]]]), x),
    "channels": lambda n, x: n.add("Mul", x, n.constant(n.rng.uniform(0.5, 1, (16, 1, 1)))),
    "rows": lambda n, x: n.add("Add", x, n.constant(n.rng.uniform(0.5, 1, (12, 1)))),
    "columns": lambda n, x: n.add("Sub", n.constant(n.rng.uniform(0.5, 1, 12)), x),
    "image": lambda n, x: n.add("Add", x, n.constant(n.rng.uniform(0.5, 1, (1, 16, 12, 12)))),
    "itself": lambda n, x: n.add("Mul", x, x),
    "PRelu": lambda n, x: n.add("PRelu", x, n.constant(n.rng.uniform(0.1, 0.3, (16, 1, 1)))),
    "Where": lambda n, x: n.add("Where", n.add("Greater", x, n.constant(0)), x, n.constant(-1)),
    "Softmax": lambda n, x: n.add("Softmax", x, axis=1),
    "LogSoftmax": lambda n, x: n.add("LogSoftmax", x, axis=-1),
    "Pad": lambda n, x: n.add("Pad", x, n.constant([0, 0, 1, 2, 0, 0, 3, 1], INT), n.constant(0.5)),
    "Pad with axes": lambda n, x: n.add("Pad", x, n.constant([1, 2], INT), "", n.constant([-1], INT), mode="edge"),
    "Slice": lambda n, x: n.add("Slice", x, n.constant([1, 2], INT), n.constant([9, 10], INT),
                                n.constant([2, -1], INT)),
    "Slice of steps": lambda n, x: n.add("Concat", *(n.add("Slice", x, n.constant([i], INT), n.constant([12], INT),
                                                           n.constant([2], INT), n.constant([2], INT))
                                                     for i in (0, 1)), axis=2),
    "Slice without axes": lambda n, x: n.add("Slice", x, n.constant([0, 0, 1], INT), n.constant([9, 16, 9], INT)),
    "Split": lambda n, x: n.add("Concat", *n.add("Split", x, n.constant([4, 12], INT), outputs=2, axis=1)[::-1],
                                axis=1),
    "Split of rows": lambda n, x: n.add("Max", *n.add("Split", x, outputs=2, axis=2, num_outputs=2)),
    "ReduceMean": lambda n, x: n.add("Sub", x, n.add("ReduceMean", x, n.constant([2, 3], INT))),
    "ReduceMax of channels": lambda n, x: n.add("Sub", x, n.add("ReduceMax", x, n.constant([1], INT))),
    "ReduceL2": lambda n, x: n.add("Div", x, n.add("ReduceL2", x, n.constant([1, -1], INT))),
    "ArgMax": lambda n, x: n.add("Add", x, n.add("Cast", n.add("ArgMax", x, axis=1), to=F32)),
    "CumSum": lambda n, x: n.add("CumSum", x, n.constant(1, INT)),
    "Expand": lambda n, x: n.add("Expand", n.add("ReduceMean", x, n.constant([2], INT)),
                                 n.constant([16, 6, 1], INT)),
    "Tile": lambda n, x: n.add("Tile", x, n.constant([1, 1, 2, 1], INT)),
    "Gather": lambda n, x: n.add("Gather", x, n.constant(np.arange(16)[::-1], INT), axis=1),
    "Resize to sizes": lambda n, x: n.add("Resize", x, "", "", n.constant([1, 16, 7, 9], INT), mode="cubic"),
    "Resize of axes": lambda n, x: n.add("Resize", x, "", n.constant([2.0, 1.5]), axes=[3, 2]),
    "Resize with a policy": lambda n, x: n.add("Resize", x, "", "", n.constant([20, 18], INT), axes=[2, 3],
                                               keep_aspect_ratio_policy="not_larger"),
    "LRN": lambda n, x: n.add("LRN", x, size=5),
    "InstanceNormalization": lambda n, x: n.add("InstanceNormalization", x, n.drawn(16), n.drawn(16)),
    "LpPool": lambda n, x: n.add("LpPool", x, kernel_shape=[2, 2]),
    "GlobalLpPool": lambda n, x: n.add("Div", x, n.add("GlobalLpPool", x)),
    "quantized": lambda n, x: n.add("DequantizeLinear", n.add("QuantizeLinear", x, n.constant(0.1)), n.constant(0.1)),
    "rows as columns": lambda n, x: n.add("Transpose", x, perm=[0, 1, 3, 2]),
    "places in a row": lambda n, x: n.add("Reshape", n.add("Relu", n.add(
        "Reshape", x, n.constant([1, 16, -1], INT))), n.constant([1, 16, 12, 12], INT)),
    "shape arithmetic": lambda n, x: n.add("Resize", x, "", "", n.add("Mul", n.add("Shape", x), n.constant([1, 1, 2, 2],
                                                                                                      INT))),
}  # fmt: skip


@pytest.mark.parametrize("what", BETWEEN)
def test_stands_between_convolutions(what):
    net = Net(1, 8, 12, 12)
    y = net.conv(BETWEEN[what](net, net.conv("x", 8, 16)), 16, 8)
    found = net.check(y, transposes=2)
    assert found.count(CONV) == 2
    if what == "rows as columns":
        assert found.count("Transpose") == 3


def test_reductions_that_drop_axes_leave_the_region():
    for axes, transposes in (([2, 3], 1), ([1, 2, 3], 1), ([1], 1), ([2], 2)):
        net = Net(2, 8, 12, 12)
        y = net.conv(net.conv("x", 8, 16), 16, 16)
        net.check(net.add("ReduceMean", y, net.constant(axes, INT), keepdims=0), transposes=transposes)


def test_squeezed_axes_leave_the_region():
    net = Net(2, 8, 12, 12)
    y = net.conv(net.conv("x", 8, 16), 16, 1)
    net.check(net.add("Squeeze", y, net.constant([1], INT)), transposes=1)


def test_one_channel_needs_no_transpose():
    net = Net(1, 1, 24, 24)
    net.check(net.conv(net.conv("x", 1, 8), 8, 1), transposes=0)


# --- dynamic shapes


def _skip(net: Net) -> str:
    """A decoder that takes its size from what it is joined with, as torch writes it."""
    high = net.conv("x", 3, 16)
    low = net.conv(net.add("MaxPool", high, kernel_shape=[2, 2], strides=[2, 2]), 16, 16)
    size = net.add("Slice", net.add("Shape", high), net.constant([2], INT), net.constant([4], INT))
    kept = net.add("Slice", net.add("Shape", low), net.constant([0], INT), net.constant([2], INT))
    up = net.add("Resize", low, "", "", net.add("Concat", kept, size, axis=0), mode="linear")
    return net.conv(net.add("Concat", up, high, axis=1), 32, 3)


DYNAMIC = {
    "blocks": lambda n: n.block(n.conv("x", 3, 16), 16),
    "pool": lambda n: n.add("Flatten", n.add("GlobalAveragePool", n.block(n.conv("x", 3, 16), 16))),
    "pixels": lambda n: n.add("DepthToSpace", n.conv(n.conv("x", 3, 16), 16, 4), blocksize=2),
    "one channel": lambda n: n.conv(n.conv("x", 3, 16), 16, 1),
    "skip": _skip,
    "tokens": lambda n: n.add("Transpose", n.add("Reshape", n.conv(n.conv("x", 3, 16), 16, 8),
                                                 n.constant([0, 8, -1], INT)), perm=[0, 2, 1]),
}  # fmt: skip


@pytest.mark.parametrize(("what", "transposes"), [("blocks", 2), ("pool", 1), ("pixels", 1), ("one channel", 1),
                                                  ("skip", 2), ("tokens", 1)])  # fmt: skip
def test_open_sizes(what, transposes):
    net = Net("n", 3, "h", "w")
    y = DYNAMIC[what](net)
    feeds = [net.feed(1, 3, 16, 16), net.feed(3, 3, 10, 12), net.feed(1, 3, 9, 17), net.feed(1, 3, 16, 16)]
    net.check(y, transposes=transposes, feeds=feeds)


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
    net.check(x, y, transposes=3)
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
    net.check(y, net.add("Relu", x), transposes=2)


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
