"""Gradient nodes against finite differences: every rule, with static and with unknown sizes, and the wiring."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt
from gpurt.autodiff import table
from gpurt.autodiff.rules import load

OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.preview.training", 1)]
EPS = 1e-6


def model(text, shapes, outputs, constants=(), symbolic=False, opsets=OPSETS, dtype=TensorProto.DOUBLE):
    """A model from node texts; all inputs are of one type, of static or of symbolic sizes."""
    nodes = [onnx.parser.parse_node(line.strip()) for line in text.split(";")]
    ins = [
        helper.make_tensor_value_info(n, dtype, [f"{n}{i}" for i in range(len(s))] if symbolic else s)
        for n, s in shapes.items()
    ]
    outs = [helper.make_tensor_value_info(n, dtype, None) for n in outputs]
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in dict(constants).items()]
    return helper.make_model(helper.make_graph(nodes, "g", ins, outs, weights), opset_imports=opsets)


def gradient(outputs, xs, zs, y, name="grad", given=None):
    """Text of a Gradient node."""
    quoted = [", ".join(f'"{n}"' for n in names) for names in (xs, zs)]
    attrs = f'xs=[{quoted[0]}], y="{y}"' + (f", zs=[{quoted[1]}]" if zs else "")
    return f"{', '.join(outputs)} = ai.onnx.preview.training.Gradient <{attrs}> ({', '.join(given or [*xs, *zs])})"


def session(proto):
    return gpurt.InferenceSession(proto.SerializeToString(), providers=["cpu"])


def check(text, values, wrt=None, constants=(), symbolic=False, rtol=1e-5):
    """Compare the gradient of sum(w * y) by every input of wrt with central differences."""
    rng = np.random.default_rng(0)
    shapes = {n: v.shape for n, v in values.items()}
    plain = session(model(text, shapes, ["y"], constants))
    (y,) = plain.run(None, values)
    w = rng.normal(size=y.shape)
    wrt = list(values) if wrt is None else wrt
    zs = [n for n in values if n not in wrt]
    full = f"{text}; z = Mul(y, w); {gradient([f'd{n}' for n in wrt], wrt, zs, 'z')}"
    proto = model(full, {**shapes, "w": w.shape}, [f"d{n}" for n in wrt], constants, symbolic)
    found = session(proto).run(None, {**values, "w": w})
    for name, got in zip(wrt, found, strict=True):
        expected = np.zeros(values[name].shape)
        for at in np.ndindex(values[name].shape):
            sides = []
            for step in (EPS, -EPS):
                moved = {**values, name: values[name].copy()}
                moved[name][at] += step
                sides.append(float((plain.run(None, moved)[0] * w).sum()))
            expected[at] = (sides[0] - sides[1]) / (2 * EPS)
        assert got.shape == expected.shape, name
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-7, err_msg=name)


def _values(shapes, low=-2.0, high=2.0):
    # All different and far from one another and from 0, so that no step crosses a kink.
    rng = np.random.default_rng(1)
    made = {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        grid = np.linspace(low, high, 2 * count + 2)[1::2][:count] + 0.0123 * (1 + len(made))
        made[name] = rng.permutation(grid).reshape(shape)
    return made


I64 = np.int64
POSITIVE = (0.3, 2.0)
# id -> text, shapes, and as needed the range of the values, the constants, what to differentiate by
CASES = {
    **{
        f"{op}/unary": (f"y = {op}(a)", {"a": (3, 4)})
        for op in ("Neg", "Abs", "Exp", "Sin", "Cos", "Sinh", "Cosh", "Atan", "Erf", "Relu", "LeakyRelu", "Sigmoid",
                   "Tanh", "Softplus", "Identity", "Reciprocal")
    },
    **{f"{op}/positive": (f"y = {op}(a)", {"a": (3, 4)}, POSITIVE) for op in ("Log", "Sqrt")},
    "Tan": ("y = Tan(a)", {"a": (5,)}, (-1.0, 1.0)),
    **{
        f"{op}/{kind}": (f"y = {op}(a, b)", {"a": a, "b": b}, POSITIVE)
        for op in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min")
        for kind, a, b in (
            ("same", (2, 3), (2, 3)),
            ("row", (2, 3), (3,)),
            ("column", (2, 1), (2, 3)),
            ("scalar", (), (2, 2)),
            ("both", (2, 1, 3), (4, 1)),
        )
    },
    "Max/one": ("y = Max(a)", {"a": (3,)}),
    "Sum/three": ("y = Sum(a, b, c)", {"a": (2, 3), "b": (3,), "c": (1, 1)}),
    "Mean/three": ("y = Mean(a, b, c)", {"a": (2, 3), "b": (3,), "c": (1, 1)}),
    "Pow/constant": ("y = Pow(a, three)", {"a": (2, 3)}, (-2, 2), {"three": np.array(3.0)}),
    "Pow/integer": ("y = Pow(a, two)", {"a": (2, 3)}, (-2, 2), {"two": np.array(2, I64)}),
    "Where": ("m = Greater(c, zero); y = Where(m, a, b)", {"a": (2, 3), "b": (3,), "c": (2, 1)}, (-2, 2),
              {"zero": np.array(0.0)}, ["a", "b"]),
    "Clip": ("y = Clip(a, low, high)", {"a": (8,), "low": (), "high": ()}, (-2, 2), {}, ["a"]),
    "Clip/bounds": ("y = Clip(a, low, high)", {"a": (9,)}, (-2, 2), {"low": np.array(-1.0), "high": np.array(0.7)}),
    "Clip/none": ("y = Clip(a)", {"a": (5,)}),
    "Cast": ("f = Cast<to=11>(a); y = CastLike(f, a)", {"a": (3,)}),
    "Dropout": ("y = Dropout(a)", {"a": (3,)}),
    "MatMul/2-2": ("y = MatMul(a, b)", {"a": (2, 3), "b": (3, 4)}),
    "MatMul/1-1": ("y = MatMul(a, b)", {"a": (3,), "b": (3,)}),
    "MatMul/1-2": ("y = MatMul(a, b)", {"a": (3,), "b": (3, 2)}),
    "MatMul/2-1": ("y = MatMul(a, b)", {"a": (2, 3), "b": (3,)}),
    "MatMul/1-3": ("y = MatMul(a, b)", {"a": (3,), "b": (2, 3, 2)}),
    "MatMul/4-1": ("y = MatMul(a, b)", {"a": (2, 2, 2, 3), "b": (3,)}),
    "MatMul/3-2": ("y = MatMul(a, b)", {"a": (2, 2, 3), "b": (3, 2)}),
    "MatMul/2-3": ("y = MatMul(a, b)", {"a": (2, 3), "b": (2, 3, 2)}),
    "MatMul/3-3": ("y = MatMul(a, b)", {"a": (2, 2, 3), "b": (2, 3, 2)}),
    "MatMul/batch": ("y = MatMul(a, b)", {"a": (2, 1, 2, 3), "b": (3, 3, 2)}),
    **{
        f"Gemm/{ta}{tb}": (
            f"y = Gemm<alpha=0.5, beta=2.0, transA={ta}, transB={tb}>(a, b, c)",
            {"a": (3, 2) if ta else (2, 3), "b": (4, 3) if tb else (3, 4), "c": (4,)},
        )
        for ta in (0, 1) for tb in (0, 1)
    },
    "Gemm/plain": ("y = Gemm(a, b)", {"a": (2, 3), "b": (3, 2)}),
    "ReduceSum/axes": ("y = ReduceSum<keepdims=0>(a, axes)", {"a": (2, 3, 2)}, (-2, 2), {"axes": np.array([0, 2])}),
    "ReduceSum/kept": ("y = ReduceSum(a, axes)", {"a": (2, 3)}, (-2, 2), {"axes": np.array([-1])}),
    "ReduceSum/all": ("y = ReduceSum<keepdims=0>(a)", {"a": (2, 3)}),
    "ReduceMean/axes": ("y = ReduceMean<keepdims=0>(a, axes)", {"a": (2, 3, 2)}, (-2, 2), {"axes": np.array([1])}),
    "ReduceMean/all": ("y = ReduceMean(a)", {"a": (2, 3)}),
    "ReduceMax": ("y = ReduceMax<keepdims=0>(a, axes)", {"a": (2, 3, 2)}, (-2, 2), {"axes": np.array([1])}),
    "ReduceMin": ("y = ReduceMin(a)", {"a": (2, 3)}),
    "ReduceL2/body": ("y = ReduceL2(a, axes)", {"a": (2, 3)}, (-2, 2), {"axes": np.array([1])}),
    "ReduceLogSumExp/body": ("y = ReduceLogSumExp(a, axes)", {"a": (2, 3)}, (-2, 2), {"axes": np.array([1])}),
    "CumSum": ("y = CumSum<exclusive=1>(a, axis)", {"a": (2, 4)}, (-2, 2), {"axis": np.array(1)}),
    "Softmax": ("y = Softmax<axis=1>(a)", {"a": (2, 3, 2)}),
    "LogSoftmax": ("y = LogSoftmax(a)", {"a": (2, 4)}),
    "Reshape": ("y = Reshape(a, shape)", {"a": (2, 6)}, (-2, 2), {"shape": np.array([3, -1])}),
    "Flatten": ("y = Flatten(a)", {"a": (2, 2, 2)}),
    "Squeeze": ("y = Squeeze(a, axes)", {"a": (2, 1, 2)}, (-2, 2), {"axes": np.array([1])}),
    "Unsqueeze": ("y = Unsqueeze(a, axes)", {"a": (2, 2)}, (-2, 2), {"axes": np.array([0, 3])}),
    "Transpose": ("y = Transpose<perm=[1, 2, 0]>(a)", {"a": (2, 3, 2)}),
    "Transpose/plain": ("y = Transpose(a)", {"a": (2, 3, 2)}),
    "Expand": ("y = Expand(a, shape)", {"a": (3, 1)}, (-2, 2), {"shape": np.array([2, 1, 4])}),
    "Concat": ("y = Concat<axis=1>(a, b)", {"a": (2, 3), "b": (2, 1)}),
    "Concat/-1": ("y = Concat<axis=-1>(a, b)", {"a": (2, 3), "b": (2, 1)}),
    "Split": ("y, rest = Split<axis=1>(a, sizes)", {"a": (2, 5)}, (-2, 2), {"sizes": np.array([2, 3])}),
    "Slice": ("y = Slice(a, s, e, x)", {"a": (4, 5)}, (-2, 2),
              {"s": np.array([1, -4]), "e": np.array([3, 99]), "x": np.array([0, -1])}),
    "Slice/steps": ("y = Slice(a, s, e, x, t)", {"a": (4, 5)}, (-2, 2),
                    {"s": np.array([-1, 0]), "e": np.array([-9, 5]), "x": np.array([0, 1]), "t": np.array([-1, 2])}),
    "Pad": ("y = Pad(a, pads)", {"a": (2, 3)}, (-2, 2), {"pads": np.array([1, 0, 0, 2])}),
    "Pad/value": ("y = Pad(a, pads, v)", {"a": (2, 3), "v": ()}, (-2, 2), {"pads": np.array([1, 0, 0, 2])}),
    "Pad/reflect": ('y = Pad<mode="reflect">(a, pads)', {"a": (2, 3)}, (-2, 2), {"pads": np.array([1, 0, 0, 2])}),
    "Gather": ("y = Gather<axis=1>(a, i)", {"a": (2, 3)}, (-2, 2), {"i": np.array([[2, 0], [2, -1]])}),
    "GatherElements": ("y = GatherElements(a, i)", {"a": (2, 3)}, (-2, 2), {"i": np.array([[1, 0, 1], [1, 0, 0]])}),
    "GatherND": ("y = GatherND(a, i)", {"a": (2, 3)}, (-2, 2), {"i": np.array([[1, 2], [0, 0], [1, 2]])}),
    "Tile": ("y = Tile(a, n)", {"a": (2, 3)}, (-2, 2), {"n": np.array([2, 2])}),
    "DepthToSpace": ("y = DepthToSpace<blocksize=2>(a)", {"a": (1, 4, 1, 2)}),
    "SpaceToDepth": ("y = SpaceToDepth<blocksize=2>(a)", {"a": (1, 1, 2, 4)}),
    "Trilu": ("y = Trilu<upper=0>(a)", {"a": (3, 3)}),
    "Conv": ("y = Conv(a, w0, b)", {"a": (2, 2, 4, 4), "w0": (3, 2, 2, 2), "b": (3,)}),
    "Conv/strided": ("y = Conv<strides=[2, 2], pads=[1, 0, 1, 2], dilations=[1, 2]>(a, w0)",
                     {"a": (2, 2, 4, 5), "w0": (2, 2, 3, 2)}),
    "Conv/skips": ("y = Conv<strides=[3]>(a, w0)", {"a": (1, 1, 9), "w0": (1, 1, 2)}),
    "Conv/grouped": ("y = Conv<group=2, pads=[1, 1]>(a, w0)", {"a": (2, 4, 4), "w0": (4, 2, 3)}),
    "MaxPool": ("y = MaxPool<kernel_shape=[2, 2], strides=[1, 1]>(a)", {"a": (1, 2, 3, 3)}),
    "GlobalAveragePool": ("y = GlobalAveragePool(a)", {"a": (2, 2, 3, 2)}),
    "BatchNormalization": ("y = BatchNormalization(a, s, b, m, v)",
                           {"a": (2, 3, 2), "s": (3,), "b": (3,), "m": (3,), "v": (3,)}, POSITIVE),
    **{
        f"{op}/body": (f"y = {op}(a)", {"a": (3, 4)})
        for op in ("Gelu", "Softsign", "Mish", "HardSwish", "Elu", "Selu", "Celu", "HardSigmoid")
    },
    "PRelu/body": ("y = PRelu(a, b)", {"a": (2, 3), "b": (3,)}),
    "chain": ("h = MatMul(a, b); r = Tanh(h); s = Mul(r, h); t = Softmax(s); y = Sub(t, r)",
              {"a": (2, 3), "b": (3, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("case", list(CASES))
def test_against_finite_differences(case, symbolic):
    text, shapes, *rest = CASES[case]
    interval, constants, wrt = (*rest, *[(-2, 2), {}, None][len(rest) :])
    check(text, _values(shapes, *interval), wrt, constants, symbolic)


def test_every_rule_has_a_case():
    load()
    flat = {"Sign", "Floor", "Ceil", "Round", "EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}
    covered = " ".join(c[0] for c in CASES.values())
    assert [op for _, op in table.RULES if op not in flat and f"{op}(" not in covered and f"{op}<" not in covered] == []


def test_loss_of_a_classifier():
    text = 'y = SoftmaxCrossEntropyLoss<reduction="mean">(a, labels)'
    check(text, _values({"a": (3, 4)}), constants={"labels": np.array([2, 0, 2])})


def test_a_function_body_that_computes_in_float32():
    shapes = {"a": (2, 4), "s": (4,), "b": (4,), "w": (2, 4)}
    rng = np.random.default_rng(4)
    feeds = {n: rng.normal(size=s) for n, s in shapes.items()}
    by_hand = (
        "m = ReduceMean(a, axes); c = Sub(a, m); q = Mul(c, c); v = ReduceMean(q, axes); e = Add(v, eps); r = Sqrt(e);"
        "n = Div(c, r); t = Mul(n, s); y = Add(t, b)"
    )
    constants = {"axes": np.array([-1]), "eps": np.array(1e-5)}
    found = []
    for text in ("y = LayerNormalization(a, s, b)", by_hand):
        grad = gradient(["da", "ds", "db"], ["a", "s", "b"], ["w"], "z")
        proto = model(f"{text}; z = Mul(y, w); {grad}", shapes, ["da", "ds", "db"], constants)
        found.append(session(proto).run(None, feeds))
    for ours, expected in zip(*found, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_second_derivative():
    text = f"c = Mul(a, a); y = Mul(c, a); {gradient(['d'], ['a'], [], 'y')}; {gradient(['dd'], ['a'], [], 'd', 'g2')}"
    x = np.array([0.5, -2.0, 3.0])
    d, dd = session(model(text, {"a": (3,)}, ["d", "dd"])).run(None, {"a": x})
    np.testing.assert_allclose(d, 3 * x**2)
    np.testing.assert_allclose(dd, 6 * x)


def test_by_an_intermediate_value():
    text = f"h = Mul(a, a); y = Mul(h, a); {gradient(['dh', 'da'], ['h', 'a'], [], 'y')}"
    dh, da = session(model(text, {"a": ()}, ["dh", "da"])).run(None, {"a": np.array(3.0)})
    assert (dh, da) == (3.0, 9.0)  # h counts as independent of a


def test_at_another_point():
    text = f"y = Mul(a, b); {gradient(['da', 'db'], ['a', 'b'], [], 'y', given=['p', 'p'])}"
    feeds = {"a": np.array(2.0), "b": np.array(3.0), "p": np.array(7.0)}
    proto = model(text, dict.fromkeys("abp", ()), ["y", "da", "db"])
    assert session(proto).run(None, feeds) == [6.0, 7.0, 7.0]


def test_what_y_does_not_depend_on_has_gradient_zero():
    text = f"y = Exp(a); {gradient(['da', 'db'], ['a', 'b'], [], 'y')}"
    da, db = session(model(text, {"a": (2,), "b": (3,)}, ["da", "db"])).run(None, {"a": np.zeros(2), "b": np.ones(3)})
    assert da.tolist() == [1, 1]
    assert db.tolist() == [0, 0, 0]


def test_flat_operators_and_detours_through_integers_give_zero():
    text = "r = Round(a); s = Shape(a); f = CastLike(s, a); m = Mul(r, f); y = Add(m, a)"
    text = f"{text}; {gradient(['d'], ['a'], [], 'y')}"
    (d,) = session(model(text, {"a": (2,)}, ["d"])).run(None, {"a": np.array([0.3, 1.7])})
    assert d.tolist() == [1, 1]


def test_gradient_may_come_before_what_it_differentiates():
    text = f"{gradient(['d'], ['a'], [], 'y')}; y = Sin(a)"
    (d,) = session(model(text, {"a": (2,)}, ["d"])).run(None, {"a": np.zeros(2)})
    assert d.tolist() == [1, 1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_gradient_has_the_type_of_the_input(dtype):
    text = f"h = Tanh(a); y = ReduceSum<keepdims=0>(h); {gradient(['d'], ['a'], [], 'y')}"
    code = helper.np_dtype_to_tensor_dtype(gpurt.dtypes.from_name(dtype)) if dtype != "float32" else TensorProto.FLOAT
    x = np.array([0.5, -1.0]).astype(helper.tensor_dtype_to_np_dtype(code))
    (d,) = session(model(text, {"a": (2,)}, ["d"], dtype=code)).run(None, {"a": x})
    assert d.dtype == x.dtype
    np.testing.assert_allclose(d.astype(float), 1 - np.tanh([0.5, -1.0]) ** 2, rtol=0.02)


def test_old_opsets_are_differentiated_in_their_newest_form():
    # Softmax-11 normalises over all axes from its own on.
    text = f"y = Softmax<axis=1>(a); z = Mul(y, w); {gradient(['d'], ['a'], ['w'], 'z')}"
    opsets = [helper.make_opsetid("", 11), OPSETS[1]]
    proto = model(text, {"a": (2, 2, 2), "w": (2, 2, 2)}, ["d"], opsets=opsets)
    rng = np.random.default_rng(2)
    a, w = rng.normal(size=(2, 2, 2)), rng.normal(size=(2, 2, 2))
    p = np.exp(a) / np.exp(a).sum(axis=(1, 2), keepdims=True)
    (d,) = session(proto).run(None, {"a": a, "w": w})
    np.testing.assert_allclose(d, p * (w - (p * w).sum(axis=(1, 2), keepdims=True)), rtol=1e-9)


def test_dropout_in_training_drops_the_same_on_the_way_back():
    text = f"y = Dropout<seed=7>(a, ratio, on); {gradient(['d'], ['a'], [], 'y')}"
    constants = {"ratio": np.array(0.5), "on": np.array(True)}
    y, d = session(model(text, {"a": (64,)}, ["y", "d"], constants)).run(None, {"a": np.full(64, 3.0)})
    assert set(d) == {0.0, 2.0}
    np.testing.assert_array_equal(y, 3 * d)


def test_a_training_step():
    grad = gradient(["dw", "db"], ["w", "b"], ["x"], "y")
    text = (
        f"h = Gemm(x, w, b); r = Relu(h); y = ReduceMean<keepdims=0>(r); {grad};"
        'w1, v1 = ai.onnx.preview.training.Momentum<alpha=0.9, beta=1.0, mode="standard", norm_coefficient=0.0>'
        "(rate, step, w, dw, v)"
    )
    constants = {"rate": np.array(0.5, np.float32), "step": np.array(0, np.int64)}
    shapes = {"x": (4, 3), "w": (3, 2), "b": (2,), "v": (3, 2)}
    rng = np.random.default_rng(3)
    feeds = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    proto = model(text, shapes, ["y", "w1"], constants, dtype=TensorProto.FLOAT)
    before, w1 = session(proto).run(None, {**feeds, "v": np.zeros((3, 2), np.float32)})
    after, _ = session(proto).run(None, {**feeds, "w": w1, "v": np.zeros((3, 2), np.float32)})
    assert after < before


def test_an_operator_without_a_rule_is_named():
    text = f"y = Det(a); {gradient(['d'], ['a'], [], 'y')}"
    with pytest.raises(gpurt.NotImplemented, match="gradient of Det is not implemented"):
        session(model(text, {"a": (2, 2)}, ["d"]))


def test_control_flow_on_the_way_is_named():
    then = helper.make_graph(
        [helper.make_node("Exp", ["a"], ["t"])], "t", [], [helper.make_tensor_value_info("t", 11, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["e"])], "e", [], [helper.make_tensor_value_info("e", 11, None)]
    )
    proto = model(f"y = Identity(a); {gradient(['d'], ['a'], [], 'y')}", {"a": ()}, ["d"], {"c": np.array(True)})
    proto.graph.node[0].CopyFrom(helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other))
    with pytest.raises(gpurt.NotImplemented, match="gradient of If"):
        session(proto)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (gradient(["d"], ["a"], [], "nowhere"), "names 'nowhere'"),
        (gradient(["d"], ["a"], ["q"], "y", given=["a", "a"]), "names 'q'"),
        (gradient(["d"], ["a"], [], "y", given=["a", "a"]), "has 2 inputs, but xs and zs name 1"),
        (gradient(["d"], ["a"], [], "d"), "circle"),
    ],
)
def test_broken_gradients_are_refused(node, message):
    with pytest.raises(gpurt.InvalidGraph, match=message):
        session(model(f"y = Exp(a); {node}", {"a": ()}, ["d"]))
