"""The shape rules against the onnx package's own node cases, and what they say where they cannot answer."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gpurt.graph.view import NodeView, ValueView
from gpurt.infer import infer, known, table, types
from gpurt.infer.shapes import axes, axis, broadcast, conv_geometry, conv_transpose_geometry
from gpurt.infer.types import result_dtypes
from gpurt.spec import Spec, Unknown

SEQUENCE = "gives or takes sequences, maps or optionals: opaque to the planner"
BODY = "the planner plans the body"
# Operators of the node cases with no rule, and why.
WITHOUT_RULE = {
    "If": BODY,
    "Loop": BODY,
    "Scan": BODY,
    "SequenceMap": BODY,
    "SequenceConstruct": SEQUENCE,
    "SequenceEmpty": SEQUENCE,
    "SequenceErase": SEQUENCE,
    "SequenceInsert": SEQUENCE,
    "SplitToSequence": SEQUENCE,
    "Optional": SEQUENCE,
    "ai.onnx.ml.ZipMap": SEQUENCE,
    "ai.onnx.preview.training.Gradient": "differentiates a part of the graph, which no runtime executes as a node",
}
DATA = "the data decides the size"
OPAQUE = "the element of a sequence or an optional, which is no tensor to the planner"
# Operators whose rule raises Unknown although the content of every tensor input is known, and why.
ALWAYS_UNKNOWN = {
    "ConcatFromSequence": OPAQUE,
    "ImageDecoder": DATA,
    "NonMaxSuppression": DATA,
    "OptionalGetElement": OPAQUE,
    "SequenceAt": OPAQUE,
    "StringNormalizer": DATA,
    "StringSplit": DATA,
    "Unique": DATA,
    "ai.onnx.ml.CastMap": OPAQUE,
    "ai.onnx.ml.DictVectorizer": OPAQUE,
}


def plain(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.GraphProto):
        return None
    if attribute.type in {onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS}:
        return tuple(v.decode() if isinstance(v, bytes) else v for v in value)
    return value


def view(proto: onnx.NodeProto) -> NodeView:
    return NodeView(
        proto.op_type,
        tuple(ValueView(name) if name else None for name in proto.input),
        tuple(ValueView(name) if name else None for name in proto.output),
        {a.name: plain(a) for a in proto.attribute},
        proto.domain,
    )


def node(op_type: str, *, domain: str = "", outputs: int = 1, **attrs: Any) -> NodeView:
    return NodeView(op_type, (), tuple(ValueView(f"y{i}") for i in range(outputs)), attrs, domain)


def spec(*shape: int, dtype: Any = np.float32) -> Spec:
    return Spec(np.dtype(dtype), shape)


def const(values: Any, dtype: Any = np.int64) -> Spec:
    return Spec.of(np.array(values, dtype))


def as_spec(value: Any) -> Spec | None:
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        return None
    return Spec.of(value.astype(object) if value.dtype.kind in "USTO" else value)


@cache
def cases() -> dict[str, list[Any]]:
    """The node cases of a single node in its newest form, by operator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases compute infinities on purpose
        from onnx.backend.test.case.node import collect_testcases

        collected = collect_testcases(None)
    found = defaultdict(list)
    for case in collected:
        if len(case.model.graph.node) == 1 and newest(case.model):
            proto = case.model.graph.node[0]
            found[view(proto).op].append(case)
    return found


def newest(model: onnx.ModelProto) -> bool:
    proto = model.graph.node[0]
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    version = next(o.version for o in model.opset_import if o.domain in {domain, proto.domain})
    if not onnx.defs.has(proto.op_type, domain):
        return False
    schema = onnx.defs.get_schema(proto.op_type, domain=domain)
    return version >= schema.since_version  # the version that deprecates an operator has no cases


def runs(case: Any) -> Iterator[tuple[NodeView, list[Spec | None], list[tuple[int, Spec]]]]:
    """Node, input specs and expected outputs by position, for each data set of a case."""
    proto = case.model.graph.node[0]
    for inputs, outputs in case.data_sets:
        given = dict(zip((i.name for i in case.model.graph.input), inputs, strict=True))
        wanted = dict(zip((o.name for o in case.model.graph.output), outputs, strict=True))
        expected = [(i, as_spec(wanted[name])) for i, name in enumerate(proto.output) if name in wanted]
        yield (
            view(proto),
            [as_spec(given[name]) if name else None for name in proto.input],
            [(i, s) for i, s in expected if s is not None],
        )


def check(case: Any) -> str:
    """What became of a case: "matches", "unknown", "opaque" (so for a non-tensor input), or what is wrong."""
    for view_, inputs, expected in runs(case):
        try:
            got = infer(view_, inputs)
        except Unknown:
            opaque = any(s is None and value is not None for s, value in zip(inputs, view_.inputs, strict=True))
            return "opaque" if opaque else "unknown"
        except ValueError as error:
            return f"{case.name}: {error}"
        dtypes = result_dtypes(view_, [None if s is None else s.dtype for s in inputs])
        for i, want in expected:
            if (got[i].dtype, got[i].shape) != (want.dtype, want.shape):
                return f"{case.name}: output {i} is {got[i]}, {Spec(want.dtype, want.shape)} is expected"
            if dtypes[i] != want.dtype:
                return f"{case.name}: result_dtypes says {dtypes[i]} for output {i}, {want.dtype} is expected"
            if got[i].const is not None and got[i].const.tolist() != want.const.tolist():
                return f"{case.name}: output {i} has other content"
    return "matches"


def test_specs_match_the_node_cases() -> None:
    verdicts: Counter[str] = Counter()
    wrong = []
    for op, group in cases().items():
        if op in WITHOUT_RULE:
            continue
        for case in group:
            verdict = check(case)
            verdicts[verdict] += 1
            if verdict == "unknown" and op not in ALWAYS_UNKNOWN:
                wrong.append(f"{case.name}: Unknown")
            elif verdict not in {"matches", "unknown", "opaque"}:
                wrong.append(verdict)
    assert not wrong, "\n".join(wrong)
    assert verdicts["matches"] > 1200, verdicts  # a filter that lets too little through would pass silently


def test_every_operator_has_a_rule_or_a_reason() -> None:
    missing = set()
    for schema in onnx.defs.get_all_schemas():
        view_ = node(schema.name, domain=schema.domain)
        if not known(view_) and not schema.deprecated:
            missing.add(view_.op)
    assert missing == set(WITHOUT_RULE)


@pytest.mark.parametrize("op", sorted(ALWAYS_UNKNOWN))
def test_always_unknown_is_not_stale(op: str) -> None:
    domain, _, op_type = op.rpartition(".")
    assert known(node(op_type, domain=domain))
    group = cases().get(op, [])
    assert not group or any(check(case) in {"unknown", "opaque"} for case in group)
    with pytest.raises(Unknown):
        infer(node(op_type, domain=domain, stopwords=("a",)), [None])


RULE_MESSAGES = [
    (node("Add"), [spec(2, 3), spec(4)], "inputs [2,3] and [4] do not broadcast"),
    (node("Conv"), [spec(1, 3, 8, 8), spec(8, 4, 3, 3)], "Conv: X has 3 channels, W expects 4 per group x 1 group"),
    (node("Conv"), [spec(1, 3, 2, 2), spec(8, 3, 3, 3)], "window of 3 is larger than the padded input 2+0+0 of axis 0"),
    (node("ConvTranspose"), [spec(1, 3, 8), spec(4, 4, 3)], "ConvTranspose: X has 3 channels, W expects 4"),
    (node("MatMul"), [spec(2, 3), spec(4, 5)], "MatMul: inner dimensions 3 and 4 of [2,3] and [4,5] differ"),
    (node("Gemm", transB=1), [spec(2, 3), spec(3, 5)], "Gemm: inner dimensions 3 and 5 of [2,3] and [3,5] differ"),
    (node("Gemm"), [spec(2, 3), spec(3, 5), spec(4)], "inputs [2,5] and [4] do not broadcast"),
    (node("Einsum", equation="ij,jk->ik"), [spec(2, 3), spec(4, 5)], "Einsum: 'j' is 3 and 4 in 'ij,jk->ik'"),
    (node("Reshape"), [spec(2, 3), const([4, -1])], "Reshape: [2,3] does not fit [4,-1]"),
    (node("Reshape"), [spec(2, 3), const([-1, -1])], "Reshape: [2,3] does not fit [-1,-1]"),
    (node("Concat", axis=0), [spec(2, 3), spec(2, 4)], "Concat: [2,3] and [2,4] do not join along axis 0"),
    (node("Split", outputs=2), [spec(5), const([2, 2])], "Split: parts [2,2] do not add up to 5, axis 0 of [5]"),
    (node("Squeeze"), [spec(2, 3), const([0])], "Squeeze: axis 0 of [2,3] is 2, not 1"),
    (node("Softmax", axis=2), [spec(2, 3)], "axis 2 is outside a tensor of rank 2"),
    (node("ReduceSum"), [spec(2, 3), const([1, -1])], "axes [1,1] name an axis twice"),
    (node("TopK"), [spec(3), const([4])], "TopK: K is 4, axis 0 of [3] has 3 elements"),
    (node("LSTM", hidden_size=4), [spec(5, 1, 3), spec(1, 16, 2), spec(1, 16, 4)], "X has 3 features, W [1,16,2]"),
]


@pytest.mark.parametrize(("view_", "inputs", "message"), RULE_MESSAGES, ids=lambda v: v.op if hasattr(v, "op") else "")
def test_mismatch_names_the_dimensions(view_: NodeView, inputs: list[Spec], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared as plain text below
        infer(view_, inputs)
    assert message in str(error.value)


UNKNOWN = [
    (node("Reshape"), [spec(2, 3), spec(2, dtype=np.int64)], "Reshape needs the content of input shape"),
    (node("Slice"), [spec(4), spec(1, dtype=np.int64), const([2])], "Slice needs the content of input starts"),
    (node("Expand"), [spec(4), spec(1, dtype=np.int64)], "Expand needs the content of input shape"),
    (node("Range"), [spec(), spec(), spec()], "Range needs the content of input start"),
    (node("ReduceSum"), [spec(4), spec(1, dtype=np.int64)], "ReduceSum needs the content of input axes"),
    (node("Resize"), [spec(1, 1, 4, 4), None, spec(4)], "Resize needs the content of input scales"),
    (node("Abs"), [None], "Abs needs input 0 as a tensor"),
    (node("NonZero"), [spec(4)], "NonZero needs the content of input X"),
    (node("Unheard", domain="acme"), [spec(4)], "acme.Unheard has no shape rule"),
]


@pytest.mark.parametrize(("view_", "inputs", "reason"), UNKNOWN, ids=lambda v: v.op if hasattr(v, "op") else "")
def test_unknown_names_the_input(view_: NodeView, inputs: list[Spec | None], reason: str) -> None:
    with pytest.raises(Unknown) as error:
        infer(view_, inputs)
    assert error.value.reason == reason


def test_an_empty_list_has_no_content_to_wait_for() -> None:
    (out,) = infer(node("ReduceSum"), [spec(2, 3), spec(0, dtype=np.int64)])
    assert out.shape == (1, 1)
    (out,) = infer(node("Reshape"), [spec(1, 1), spec(0, dtype=np.int64)])
    assert out.shape == ()


def test_shape_and_size_know_their_content() -> None:
    (shape,) = infer(node("Shape", start=1, end=-1), [spec(2, 3, 4, 5)])
    assert shape.const is not None
    assert shape.const.tolist() == [3, 4]
    (size,) = infer(node("Size"), [spec(2, 3)])
    assert size.const is not None
    assert size.const == 6
    assert (size.dtype, size.shape) == (np.int64, ())


def test_broadcast_and_axes() -> None:
    assert broadcast((2, 1, 3), (4, 1)) == (2, 4, 3)
    assert broadcast((1,), (0,)) == (0,)
    assert broadcast() == ()
    assert axis(-1, 3) == 2
    assert axes((-1, 0), 3) == (2, 0)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads", "auto_pad", "ceil", "expected"),
    [
        (7, 3, 2, (0, 0), "NOTSET", False, (3, 0, 0)),
        (8, 3, 2, (0, 0), "NOTSET", False, (3, 0, 0)),
        (8, 3, 2, (0, 0), "NOTSET", True, (4, 0, 0)),
        (4, 1, 1, (1, 1), "NOTSET", True, (5, 1, 1)),  # a sixth window would start in the end padding
        (2, 3, 2, (0, 0), "NOTSET", True, (1, 0, 0)),  # the only window reaches past the end
        (8, 3, 2, (0, 0), "VALID", True, (4, 0, 0)),
        (0, 1, 1, (0, 0), "NOTSET", False, (0, 0, 0)),
        (8, 3, 2, (0, 0), "SAME_UPPER", False, (4, 0, 1)),
        (8, 3, 2, (0, 0), "SAME_LOWER", False, (4, 1, 0)),
        (8, 3, 2, (5, 5), "VALID", False, (3, 0, 0)),
    ],
)
def test_conv_geometry(
    size: int, kernel: int, stride: int, pads: tuple[int, int], auto_pad: str, ceil: bool, expected: tuple[int, ...]
) -> None:
    got = conv_geometry((size,), (kernel,), (stride,), None, pads, auto_pad, ceil)
    assert tuple(v[0] for v in got) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (7, 0, 0)),
        ({"pads": (1, 1)}, (5, 1, 1)),
        ({"output_padding": (1,), "pads": (1, 1)}, (6, 1, 1)),
        ({"auto_pad": "SAME_UPPER"}, (6, 0, 1)),
        ({"auto_pad": "SAME_LOWER"}, (6, 1, 0)),
        ({"output_shape": (8,)}, (8, 0, -1)),  # one element at the end that no input reaches
        ({"output_shape": (1, 1, 6), "auto_pad": "SAME_UPPER"}, (6, 0, 1)),
    ],
)
def test_conv_transpose_geometry(arguments: dict[str, Any], expected: tuple[int, ...]) -> None:
    got = conv_transpose_geometry((3,), (3,), (2,), **arguments)
    assert tuple(v[0] for v in got) == expected


CONTRIB = [
    (node("FusedMatMul", transA=1, transB=1), [spec(2, 3, 4), spec(2, 5, 3)], [(2, 4, 5)]),
    (node("FusedMatMul", transBatchA=1), [spec(6, 2, 3), spec(2, 3, 5)], [(2, 6, 5)]),
    (node("FusedConv", pads=(1, 1, 1, 1)), [spec(1, 3, 8, 8), spec(4, 3, 3, 3)], [(1, 4, 8, 8)]),
    (node("QGemm"), [spec(2, 3, dtype=np.uint8), spec(), None, spec(3, 4, dtype=np.uint8)], [(2, 4)]),
    (node("SkipLayerNormalization"), [spec(1, 2, 8), spec(1, 2, 8), spec(8)], [(1, 2, 8), (1, 2, 1)]),
    (
        node("QLinearConcat", axis=1),
        [spec(), spec(dtype=np.uint8), spec(1, 2), spec(), spec(), spec(1, 3), spec(), spec()],
        [(1, 5)],
    ),
    (
        node("DynamicQuantizeLSTM", hidden_size=4, direction="bidirectional"),
        [spec(5, 1, 3), spec(2, 3, 16, dtype=np.int8), spec(2, 4, 16, dtype=np.int8)],
        [(5, 2, 1, 4), (2, 1, 4), (2, 1, 4)],
    ),
    (
        node("GroupQueryAttention", num_heads=4, kv_num_heads=2),
        [spec(1, 1, 32), spec(1, 1, 16), spec(1, 1, 16), spec(1, 2, 6, 8), spec(1, 2, 6, 8), spec(1), const([7])],
        [(1, 1, 32), (1, 2, 7, 8), (1, 2, 7, 8)],
    ),
]


@pytest.mark.parametrize(("view_", "inputs", "shapes"), CONTRIB, ids=lambda v: v.op if hasattr(v, "op") else "")
def test_contrib_shapes(view_: NodeView, inputs: list[Spec | None], shapes: list[tuple[int, ...]]) -> None:
    view_ = NodeView(view_.op_type, (), view_.outputs, view_.attrs, "com.microsoft")
    specs = infer(view_, inputs)
    assert [s.shape for s in specs[: len(shapes)]] == shapes
    dtypes = result_dtypes(view_, [None if s is None else s.dtype for s in inputs])
    assert dtypes[: len(shapes)] == [s.dtype for s in specs[: len(shapes)]]


def test_types_know_the_contrib_operators_that_have_a_rule() -> None:
    # The onnx package has no schema for them, so both tables have to name each.
    assert known(node("Gelu", domain="com.microsoft"))
    ruled = {key for key in table._RULES if key[0] == "com.microsoft"}
    assert ruled == {key for key in types._DECIDED if key[0] == "com.microsoft"}
