"""Every upgrade rule: the old model under onnx's reference evaluator, or values computed here, against the upgraded model."""

# ruff: noqa: E501 - a table with one row for each case
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import gpurt.errors
from gpurt.loader import CANONICAL_OPSETS, load
from gpurt.loader.opsets import since
from gpurt.loader.upgrade import ORIGIN

F, I = np.float32, np.int64  # noqa: E741
Expected = Callable[..., Sequence[np.ndarray]] | None
RNG = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F)


def build(
    op: str,
    opset: int,
    arrays: Sequence[np.ndarray | None],
    attrs: dict[str, Any],
    outputs: int = 1,
    constants: Sequence[int] = (),
    shapes: bool = True,
    domain: str = "",
    types: Sequence[int] = (),
) -> onnx.ModelProto:
    """A model of one node; inputs whose positions are in ``constants`` are initializers."""
    names = ["" if array is None else f"in{index}" for index, array in enumerate(arrays)]
    results = [f"out{index}" for index in range(outputs)]
    node = helper.make_node(op, names, results, name="it", domain=domain, **attrs)
    infos, initializers = [], []
    for index, (name, array) in enumerate(zip(names, arrays, strict=True)):
        if array is None:
            continue
        if index in constants:
            initializers.append(onnx.numpy_helper.from_array(array, name))
        else:
            code = helper.np_dtype_to_tensor_dtype(array.dtype)
            infos.append(helper.make_tensor_value_info(name, code, array.shape if shapes else None))
    code = TensorProto.FLOAT if arrays[0] is None else helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
    outs = [helper.make_tensor_value_info(name, types[i] if types else code, None) for i, name in enumerate(results)]
    graph = helper.make_graph([node], "g", infos, outs, initializers)
    imports = [helper.make_opsetid(domain, opset)] + ([helper.make_opsetid("", 9)] if domain else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The loaded model as a proto that onnx's checker accepts, every node in its newest form."""
    loaded = load(model).model
    for node in loaded.graph.all_nodes():
        assert node.version == since(node.op_type, node.domain), node
        assert node.name
        assert node.meta[ORIGIN] or node.op_type == "Identity"
    assert all(loaded.opset_imports[domain] == version for domain, version in CANONICAL_OPSETS.items())
    proto = ir.to_proto(loaded)
    if all(info.type.tensor_type.HasField("shape") for info in (*proto.graph.input, *proto.graph.output)):
        onnx.checker.check_model(proto, full_check=True)  # it wants every rank, which a model need not state
    return proto


def compare(model: onnx.ModelProto, arrays: Sequence[np.ndarray | None], expected: Expected) -> None:
    feed = {info.name: arrays[int(info.name[2:])] for info in model.graph.input}
    want = ReferenceEvaluator(model).run(None, feed) if expected is None else expected(*arrays)
    got = ReferenceEvaluator(upgraded(model)).run(None, feed)
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(one, other)


def softmax2d(axis: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    def run(x: np.ndarray) -> list[np.ndarray]:
        flat = x.reshape(int(np.prod(x.shape[:axis])), -1)
        powers = np.exp(flat - flat.max(axis=1, keepdims=True))
        return [(powers / powers.sum(axis=1, keepdims=True)).reshape(x.shape)]

    return run


def upsample(x: np.ndarray, height: int, width: int) -> np.ndarray:
    return x.repeat(height, axis=2).repeat(width, axis=3)


def linear_asymmetric(x: np.ndarray, times: int) -> np.ndarray:
    """Both last dimensions made larger by linear interpolation at ``position / times``."""
    for axis in (2, 3):
        size = x.shape[axis]
        at = np.arange(size * times) / times
        low = np.floor(at).astype(int)
        part = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        x = x.take(low, axis) * (1 - part) + x.take(np.minimum(low + 1, size - 1), axis) * part
    return x.astype(F)


def scatter(x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    out = x.copy()
    np.put_along_axis(out[:, :2], indices, updates, axis=0)
    return out


def grid_sample(x: np.ndarray, grid: np.ndarray) -> list[np.ndarray]:
    return ReferenceEvaluator(build("GridSample", 20, [x, grid], {"mode": "linear"})).run(None, {"in0": x, "in1": grid})


def average_pool(x: np.ndarray) -> list[np.ndarray]:
    padded, ones = (np.pad(a, [(0, 0), (0, 0), (1, 0), (1, 0)]) for a in (x, np.ones_like(x)))
    total, count = (sum(a[:, :, i : i + 4, j : j + 5] for i in (0, 1) for j in (0, 1)) for a in (padded, ones))
    return [total / count]  # padding does not count


def group_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    grouped = x.reshape(2, 2, -1)
    normal = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + F(1e-5))
    return (normal * scale[:, None] + bias[:, None]).reshape(x.shape).astype(F)


def complex_pairs(x: np.ndarray) -> np.ndarray:
    return np.stack([x.real, x.imag], axis=-1).astype(F)


A, B, C = floats(2, 3, 4, 5), floats(3, 4), np.abs(floats(2, 3, 4, 5))
HALF = np.linspace(-2, 2, 6).astype(np.float16)
IMAGE = floats(1, 2, 3, 3)

# id: op, opset, inputs, attributes, expected (None: the reference evaluator knows the old form), keywords of build
CASES: dict[str, tuple[Any, ...]] = {
    "Add-1/axis": ("Add", 6, [A, B], {"broadcast": 1, "axis": 1}, lambda a, b: [a + b[None, :, :, None]]),
    "Add-1/last": ("Add", 6, [A, floats(4, 5)], {"broadcast": 1}, lambda a, b: [a + b]),
    "Mul-1/axis0": ("Mul", 1, [A, floats(2)], {"broadcast": 1, "axis": 0}, lambda a, b: [a * b[:, None, None, None]]),
    "Sub-6/ranks unknown": ("Sub", 6, [A, B], {"broadcast": 1, "axis": 1}, lambda a, b: [a - b[None, :, :, None]], {"shapes": False}),
    "Div-6/negative axis": ("Div", 6, [A, C[0, :, :, 0]], {"broadcast": 1, "axis": -3}, lambda a, b: [a / b[None, :, :, None]], {"shapes": False}),
    "Pow-1/axis": ("Pow", 1, [C, floats(3)], {"broadcast": 1, "axis": 1}, lambda a, b: [a ** b[:, None, None]]),
    "Less-1/axis": ("Less", 1, [A, floats(3)], {"broadcast": 1, "axis": 1}, lambda a, b: [a < b[:, None, None]], {"types": [9]}),
    "And-1/axis": ("And", 1, [A > 0, B[:, 0] > 0], {"broadcast": 1, "axis": 1}, lambda a, b: [a & b[:, None, None]]),
    "PRelu-6": ("PRelu", 6, [A, floats(3)], {}, lambda x, s: [np.where(x < 0, x * s[:, None, None], x)]),
    "PRelu-6/rank unknown": ("PRelu", 6, [A, floats(3)], {}, lambda x, s: [np.where(x < 0, x * s[:, None, None], x)], {"shapes": False}),
    "PRelu-6/shared": ("PRelu", 6, [A, floats(1)], {}, lambda x, s: [np.where(x < 0, x * s, x)]),
    "Gemm-6": ("Gemm", 6, [floats(2, 3), floats(3, 4), floats(4)], {"broadcast": 1, "alpha": 0.5}, lambda a, b, c: [F(0.5) * (a @ b) + c]),
    "Relu-1": ("Relu", 1, [A], {"consumed_inputs": [0]}, lambda x: [np.maximum(x, 0)]),
    "Sum-6": ("Sum", 6, [A, A, C], {}, lambda *x: [x[0] + x[1] + x[2]]),
    "Cast-1": ("Cast", 1, [A], {"to": "INT32"}, lambda x: [x.astype(np.int32)], {"types": [6]}),
    "Clip-6": ("Clip", 6, [A], {"min": -0.5, "max": 0.25}, None),
    "Clip-6/min only": ("Clip", 6, [A], {"min": 0.0}, lambda x: [np.maximum(x, 0)]),
    "Clip-6/half": ("Clip", 6, [HALF], {"min": -1.0, "max": 1.0}, lambda x: [np.clip(x, -1, 1)]),
    "Softmax-1": ("Softmax", 1, [A], {}, softmax2d(1)),
    "Softmax-11/axis 2": ("Softmax", 11, [A], {"axis": 2}, softmax2d(2)),
    "Softmax-11/rank unknown": ("Softmax", 11, [A], {"axis": 2}, softmax2d(2), {"shapes": False}),
    "Softmax-11/last": ("Softmax", 11, [A], {"axis": 3}, softmax2d(3)),
    "Softmax-11/axis 0": ("Softmax", 11, [A], {"axis": 0}, softmax2d(0)),
    "LogSoftmax-11": ("LogSoftmax", 11, [A], {"axis": 1}, lambda x: [np.log(softmax2d(1)(x)[0])]),
    "Hardmax-11": ("Hardmax", 11, [A], {"axis": 2}, lambda x: [(x.reshape(6, 20) == x.reshape(6, 20).max(1, keepdims=True)).astype(F).reshape(x.shape)]),
    "Dropout-7": ("Dropout", 7, [A], {"ratio": 0.3}, lambda x: [x]),
    "Dropout-6": ("Dropout", 6, [A], {"ratio": 0.3, "is_test": 1}, lambda x: [x]),
    "Dropout-7/mask": ("Dropout", 7, [A], {}, lambda x: [x, np.ones_like(x)], {"outputs": 2}),
    "Dropout-10/mask": ("Dropout", 10, [A], {}, lambda x: [x, np.ones(x.shape, bool)], {"outputs": 2, "types": [1, 9]}),
    "BatchNormalization-9": (
        "BatchNormalization", 9, [A, floats(3), floats(3), floats(3), np.abs(floats(3))], {"epsilon": 1e-3},
        lambda x, s, b, m, v: [((x.swapaxes(1, 3) - m) / np.sqrt(v + F(1e-3)) * s + b).swapaxes(1, 3)],
    ),
    "BatchNormalization-6": (
        "BatchNormalization", 6, [A, floats(3), floats(3), floats(3), np.abs(floats(3)) + 1], {"is_test": 1},
        lambda x, s, b, m, v: [((x.swapaxes(1, 3) - m) / np.sqrt(v + F(1e-5)) * s + b).swapaxes(1, 3)],
    ),
    "BatchNormalization-7/not spatial": (
        "BatchNormalization", 7, [A, A[0], C[0], A[1], C[1] + 1], {"spatial": 0},
        lambda x, s, b, m, v: [(x - m) / np.sqrt(v + F(1e-5)) * s + b],
    ),
    "MeanVarianceNormalization-1": (
        "MeanVarianceNormalization", 1, [A], {"across_channels": 1},
        lambda x: [(x - x.mean()) / (x.std() + 1e-9)],
    ),
    "MeanVarianceNormalization-1/mean only": (
        "MeanVarianceNormalization", 1, [A], {"normalize_variance": 0},
        lambda x: [x - x.mean(axis=(0, 2, 3), keepdims=True)],
    ),
    "Squeeze-11": ("Squeeze", 11, [A[:1, :, :1]], {"axes": [0, 2]}, None),
    "Squeeze-11/all": ("Squeeze", 11, [A[:1, :, :1]], {}, lambda x: [x.squeeze()]),
    "Unsqueeze-1": ("Unsqueeze", 1, [B], {"axes": [0, 2]}, None),
    "ReduceSum-11": ("ReduceSum", 11, [A], {"axes": [1, -1], "keepdims": 0}, None),
    "ReduceMean-13": ("ReduceMean", 13, [A], {"axes": [2]}, None),
    "ReduceMax-1": ("ReduceMax", 1, [A], {"axes": [0], "keepdims": 0}, None),
    "ReduceL2-13": ("ReduceL2", 13, [A], {"axes": [1, 2]}, None),
    "ReduceLogSumExp-11/all": ("ReduceLogSumExp", 11, [A], {}, lambda x: [np.log(np.exp(x).sum()).reshape(1, 1, 1, 1)]),
    "Slice-1": ("Slice", 9, [A], {"starts": [1, -3], "ends": [10, -1], "axes": [1, 3]}, None),
    "Slice-1/no axes": ("Slice", 1, [A], {"starts": [0, 1], "ends": [1, 3]}, lambda x: [x[0:1, 1:3]]),
    "Split-2": ("Split", 11, [A], {"split": [1, 3], "axis": 2}, None, {"outputs": 2}),
    "Split-2/even": ("Split", 2, [A], {"axis": 2}, lambda x: [x[:, :, :2], x[:, :, 2:]], {"outputs": 2}),
    "Split-1/input": ("Split", 1, [A, np.array([1, 3], F)], {"axis": 2}, lambda x, s: [x[:, :, :1], x[:, :, 1:]], {"outputs": 2}),
    "Split-13": ("Split", 13, [A], {"axis": 2}, lambda x: [x[:, :, :2], x[:, :, 2:]], {"outputs": 2}),
    "Split-13/sizes": ("Split", 13, [A, np.array([1, 3])], {"axis": 2}, None, {"outputs": 2, "constants": [1]}),
    "Pad-1": ("Pad", 1, [B], {"paddings": [0, 1, 2, 0], "value": 1.5}, lambda x: [np.pad(x, [(0, 2), (1, 0)], constant_values=1.5)]),
    "Pad-2": ("Pad", 2, [B], {"pads": [0, 1, 2, 0], "mode": "reflect"}, lambda x: [np.pad(x, [(0, 2), (1, 0)], mode="reflect")]),
    "Reshape-1": ("Reshape", 1, [A], {"shape": [0, -1]}, lambda x: [x.reshape(2, -1)]),
    "Concat-1": ("Concat", 1, [A, C], {}, lambda a, b: [np.concatenate([a, b], 1)]),
    "Tile-1": ("Tile", 1, [B, np.array([3], F), np.array([1], F)], {}, lambda x, t, a: [np.tile(x, (1, 3))]),
    "Tile-1/constants": ("Tile", 1, [B, np.array([3], F), np.array([1], F)], {}, lambda x, t, a: [np.tile(x, (1, 3))], {"constants": [1, 2]}),
    "TopK-1": ("TopK", 1, [B], {"k": 2, "axis": 1}, lambda x: [-np.sort(-x)[:, :2], np.argsort(-x)[:, :2]], {"outputs": 2, "types": [1, 7]}),
    "TopK-10": ("TopK", 10, [B, np.array([2])], {"axis": 1}, None, {"outputs": 2, "types": [1, 7]}),
    "Scatter-9": ("Scatter", 9, [B, np.array([[0, 1], [2, 0]]), floats(2, 2)], {"axis": 0}, lambda x, i, u: [scatter(x, i, u)]),
    "Upsample-1": ("Upsample", 1, [IMAGE], {"height_scale": 2.0, "width_scale": 3.0, "mode": "nearest"}, lambda x: [upsample(x, 2, 3)]),
    "Upsample-7": ("Upsample", 7, [IMAGE], {"scales": [1.0, 1.0, 2.0, 2.0]}, lambda x: [upsample(x, 2, 2)]),
    "Upsample-7/linear": ("Upsample", 7, [IMAGE], {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "linear"}, lambda x: [linear_asymmetric(x, 2)]),
    "Upsample-9": ("Upsample", 9, [IMAGE, np.array([1, 1, 3, 2], F)], {}, lambda x, s: [upsample(x, 3, 2)]),
    "Resize-10": ("Resize", 10, [IMAGE, np.array([1, 1, 3, 2], F)], {}, lambda x, s: [upsample(x, 3, 2)]),
    "Resize-10/smaller": ("Resize", 10, [A, np.array([1, 1, 0.5, 0.6], F)], {}, lambda x, s: [x[:, :, ::2][..., [0, 1, 3]]]),
    "Resize-11/sizes": (
        "Resize", 11, [IMAGE, np.zeros(0, F), np.zeros(0, F), np.array([1, 2, 6, 6])],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        lambda x, *_: [upsample(x, 2, 2)], {"constants": [1, 2, 3]},
    ),
    "Resize-11/tf": (
        "Resize", 11, [A, np.zeros(0, F), np.array([1, 1, 0.5, 1], F)],
        {"mode": "nearest", "coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"},
        lambda x, *_: [x[:, :, 1::2]], {"constants": [1, 2]},
    ),
    "GridSample-16": ("GridSample", 16, [A, np.clip(floats(2, 3, 3, 2), -1, 1)], {"mode": "bilinear"}, grid_sample),
    "RoiAlign-10": (
        "RoiAlign", 10, [np.tile(np.arange(4, dtype=F), (1, 1, 4, 1)), np.array([[0, 0, 2, 2]], F), np.array([0])],
        {"output_height": 2, "output_width": 2, "sampling_ratio": 2},
        lambda *_: [np.array([[[[0.5, 1.5], [0.5, 1.5]]]], F)],  # columns hold their number; half a pixel less today
    ),
    "LpPool-1": ("LpPool", 1, [IMAGE], {"kernel_shape": [1, 1], "p": 2.0}, lambda x: [np.abs(x)]),
    "MaxPool-1": ("MaxPool", 1, [A], {"kernel_shape": [2, 2]}, None),
    "AveragePool-1": ("AveragePool", 1, [A], {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}, average_pool),
    "GroupNormalization-18": (
        "GroupNormalization", 18, [floats(2, 4, 3), floats(2), floats(2)], {"num_groups": 2},
        lambda x, s, b: [group_norm(x, s, b)],
    ),
    "GroupNormalization-18/constants": (
        "GroupNormalization", 18, [floats(2, 4, 3), floats(2), floats(2)], {"num_groups": 2},
        lambda x, s, b: [group_norm(x, s, b)], {"constants": [1, 2]},
    ),
    "GroupNormalization-18/unknown": (
        "GroupNormalization", 18, [floats(2, 4, 3), floats(2), floats(2)], {"num_groups": 2},
        lambda x, s, b: [group_norm(x, s, b)], {"shapes": False},
    ),
    "DFT-17": ("DFT", 17, [floats(2, 6, 1)], {"axis": 1}, None),
    "DFT-17/default axis": ("DFT", 17, [floats(2, 6, 3, 1)], {}, lambda x: [complex_pairs(np.fft.fft(x[..., 0], axis=1))]),
    "Affine": ("Affine", 1, [A], {"alpha": 2.0, "beta": 0.5}, lambda x: [x * 2 + F(0.5)]),
    "Scale": ("Scale", 1, [A], {"scale": 2.0}, lambda x: [x * 2]),
    "ParametricSoftplus": ("ParametricSoftplus", 1, [A], {"alpha": 2.0, "beta": 0.5}, lambda x: [2 * np.log1p(np.exp(x / 2))]),
    "ScaledTanh": ("ScaledTanh", 1, [A], {"alpha": 2.0, "beta": 0.5}, lambda x: [2 * np.tanh(x / 2)]),
    "ThresholdedRelu-1": ("ThresholdedRelu", 1, [A], {"alpha": 0.5}, lambda x: [np.where(x > 0.5, x, 0).astype(F)]),
    "ImageScaler": ("ImageScaler", 1, [IMAGE], {"scale": 2.0, "bias": [1.0, -1.0]}, lambda x: [x * 2 + np.array([1, -1], F)[:, None, None]]),
    "Crop": ("Crop", 1, [A], {"border": [1, 0, 1, 2]}, lambda x: [x[:, :, 0:-2, 1:-1]]),
    "Crop/size": ("Crop", 1, [A], {"border": [1, 2, 0, 0], "scale": [2, 3]}, lambda x: [x[:, :, 2:4, 1:4]]),
    "DynamicSlice": ("DynamicSlice", 1, [B, np.array([1]), np.array([3]), np.array([0])], {}, lambda x, *_: [x[1:3]]),
    "LabelEncoder-1/to string": (
        "LabelEncoder", 1, [np.array([1, 0, 7])], {"classes_strings": ["a", "b"], "default_string": "?"},
        lambda x: [np.array(["b", "a", "?"])], {"domain": "ai.onnx.ml", "types": [8]},
    ),
    "LabelEncoder-1/to int": (
        "LabelEncoder", 1, [np.array(["b", "a", "z"])], {"classes_strings": ["a", "b"], "default_int64": -9},
        lambda x: [np.array([1, 0, -9])], {"domain": "ai.onnx.ml", "types": [7]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rule(case: str) -> None:
    op, opset, arrays, attrs, expected, *options = CASES[case]
    model = build(op, opset, arrays, attrs, **(options[0] if options else {}))
    compare(model, arrays, expected)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_recurrence_drops_output_sequence(op: str) -> None:
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    arrays = [floats(5, 2, 3), floats(1, gates * 4, 3), floats(1, gates * 4, 4)]
    new = build(op, 14, arrays, {"hidden_size": 4}, outputs=2)
    old = build(op, 1, arrays, {"hidden_size": 4, "output_sequence": 1}, outputs=2)
    want = ReferenceEvaluator(new).run(None, {f"in{i}": array for i, array in enumerate(arrays)})
    compare(old, arrays, lambda *_: want)


def test_batch_normalization_for_training_is_refused() -> None:
    model = build("BatchNormalization", 9, [A, *([floats(3)] * 4)], {}, outputs=5)
    with pytest.raises(gpurt.errors.NotImplemented, match="training"):
        load(model)


def test_batch_normalization_with_unused_outputs() -> None:
    model = build("BatchNormalization", 9, [A, *([np.abs(floats(3))] * 4)], {}, outputs=5)
    del model.graph.output[1:]
    (item,) = load(model).model.graph
    assert len(item.outputs) == 1


def test_global_lp_pool_1_gets_an_integer_exponent() -> None:
    (node,) = load(build("GlobalLpPool", 1, [IMAGE], {"p": 3.0})).model.graph
    assert node.attributes["p"].as_int() == 3


def scan8(lens: bool, direction: int = 0) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "item"], ["sum"]), helper.make_node("Identity", ["sum"], ["copy"])],
        "body",
        [info("state", 1, [2]), info("item", 1, [2])],
        [info("sum", 1, [2]), info("copy", 1, [2])],
    )
    node = helper.make_node(
        "Scan",
        ["lens" if lens else "", "init", "seq"],
        ["last", "all"],
        name="it",
        body=body,
        num_scan_inputs=1,
        directions=[direction],
    )
    inputs = [info("init", 1, [3, 2]), info("seq", 1, [3, 4, 2])] + ([info("lens", 7, [3])] if lens else [])
    graph = helper.make_graph([node], "g", inputs, [info("last", 1, None), info("all", 1, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=8)


def test_scan_8_runs_over_its_batch() -> None:
    init, seq = floats(3, 2), floats(3, 4, 2)
    last, every = ReferenceEvaluator(upgraded(scan8(lens=False))).run(None, {"init": init, "seq": seq})
    sums = init[:, None] + np.cumsum(seq, axis=1)
    np.testing.assert_allclose(every, sums, rtol=1e-5)
    np.testing.assert_allclose(last, sums[:, -1], rtol=1e-5)


def test_scan_8_keeps_its_directions() -> None:
    (outer,) = load(scan8(lens=False, direction=1)).model.graph  # the reference evaluator only runs forwards
    (inner,) = outer.attributes["body"].as_graph()
    assert "directions" not in outer.attributes
    assert tuple(inner.attributes["scan_input_directions"].as_ints()) == (1,)


def test_scan_8_with_lengths_is_refused() -> None:
    with pytest.raises(gpurt.errors.NotImplemented, match="sequence_lens"):
        load(scan8(lens=True))


def test_origin_names_the_models_form() -> None:
    loaded = load(build("Softmax", 11, [A], {"axis": 1}))
    assert {node.meta[ORIGIN] for node in loaded.model.graph} == {"Softmax-11"}


def test_rules_reach_nested_graphs() -> None:
    info = helper.make_tensor_value_info
    branches = [
        helper.make_graph([helper.make_node("Clip", ["x"], ["y"], min=low, max=high)], name, [], [info("y", 1, None)])
        for name, low, high in (("then", -1.0, 1.0), ("else", 0.0, 0.5))
    ]
    node = helper.make_node("If", ["cond"], ["out"], then_branch=branches[0], else_branch=branches[1])
    graph = helper.make_graph([node], "g", [info("cond", 9, []), info("x", 1, [6])], [info("out", 1, None)])
    proto = upgraded(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=8))
    x = np.linspace(-2, 2, 6).astype(F)
    for cond, want in ((True, np.clip(x, -1, 1)), (False, np.clip(x, 0, 0.5))):
        np.testing.assert_allclose(ReferenceEvaluator(proto).run(None, {"cond": np.array(cond), "x": x})[0], want)


def test_functions_are_upgraded_from_their_own_opset() -> None:
    info = helper.make_tensor_value_info
    soft = helper.make_node("Softmax", ["a"], ["b"])
    soft.attribute.append(onnx.AttributeProto(name="axis", type=onnx.AttributeProto.INT, ref_attr_name="dim"))
    function = helper.make_function("local", "Soft", ["a"], ["b"], [soft], [helper.make_opsetid("", 11)], ["dim"])
    graph = helper.make_graph(
        [helper.make_node("Soft", ["x"], ["y"], domain="local", dim=1), helper.make_node("Softmax", ["y"], ["z"], axis=1)],
        "g", [info("x", 1, [2, 3, 4])], [info("z", 1, None)],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto = upgraded(helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8))
    x = floats(2, 3, 4)
    y = softmax2d(1)(x)[0]
    want = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    np.testing.assert_allclose(ReferenceEvaluator(proto).run(None, {"x": x})[0], want, rtol=1e-5)


@pytest.mark.parametrize("opset", range(6, 29))
def test_every_supported_opset_loads(opset: int) -> None:
    compare(build("Abs", opset, [A], {}), [A], lambda x: [np.abs(x)])
