"""Dtypes of a node's outputs from those of its inputs, with no shapes: what the loader's type propagation needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import onnx.defs

from gpurt.dtypes import from_name, from_onnx
from gpurt.graph import channels_last
from gpurt.graph.view import NodeView
from gpurt.infer.arguments import BOOL, F32, I32, I64, STRING, U8

Dtypes = Sequence[np.dtype | None]
_Decide = Callable[[NodeView, Dtypes], list[np.dtype | None]]


def result_dtypes(node: NodeView, input_dtypes: Dtypes) -> list[np.dtype | None]:
    """Dtype of each output the operator can have; None for what is no tensor and what nothing is known of.

    A variadic output is repeated for as many outputs as the node has. ``input_dtypes`` has an entry for each formal
    position, None where an input is left out or is no tensor.
    """
    decide = _DECIDED.get((node.domain, node.op_type))
    if decide is not None:
        return decide(node, input_dtypes)
    signature = _signature(node.op_type, node.domain)
    if signature is None:
        return [None] * len(node.outputs)
    inputs, outputs, variadic_input, variadic_output = signature
    bound: dict[str, np.dtype] = {}
    for i, dtype in enumerate(input_dtypes):
        name = inputs[min(i, len(inputs) - 1)] if variadic_input or i < len(inputs) else ""
        if dtype is not None:
            bound.setdefault(name, dtype)
    if variadic_output:
        outputs = outputs + outputs[-1:] * max(len(node.outputs) - len(outputs), 0)
    return [_concrete(name) or bound.get(name) for name in outputs]


@cache
def _signature(op_type: str, domain: str) -> tuple[list[str], list[str], bool, bool] | None:
    # Type strings of the inputs and outputs, and whether the last of each is variadic and homogeneous.
    if not onnx.defs.has(op_type, domain):
        return None
    schema = onnx.defs.get_schema(op_type, domain=domain)
    if any(parameter.is_homogeneous is False for parameter in (*schema.inputs, *schema.outputs)):
        return None  # If, Loop, Scan: the bodies decide
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return (
        [_variable(schema, parameter.type_str) for parameter in schema.inputs],
        [_variable(schema, parameter.type_str) for parameter in schema.outputs],
        bool(schema.inputs) and schema.inputs[-1].option == variadic,
        bool(schema.outputs) and schema.outputs[-1].option == variadic,
    )


def _variable(schema: onnx.defs.OpSchema, type_str: str) -> str:
    # A type variable that allows a single type (IsNaN's T2, DynamicQuantizeLinear's T2) is that type.
    for constraint in schema.type_constraints:
        if constraint.type_param_str == type_str and len(constraint.allowed_type_strs) == 1:
            return next(iter(constraint.allowed_type_strs))
    return type_str


def _concrete(type_str: str) -> np.dtype | None:
    if type_str.startswith("tensor("):
        return from_name(type_str[len("tensor(") : -1])
    return None


def _at(dtypes: Dtypes, index: int) -> np.dtype | None:
    return dtypes[index] if index < len(dtypes) else None


def _code(name: str, default: np.dtype | None) -> _Decide:
    # The attribute holds an ONNX code; without it the dtype is fixed.
    return lambda node, _: [from_onnx(int(node.attr(name))) if node.attr(name) else default]


def _code_or_input(name: str, index: int, default: np.dtype | None = None) -> _Decide:
    # The attribute holds an ONNX code; without it an input decides.
    def decide(node: NodeView, dtypes: Dtypes) -> list[np.dtype | None]:
        return [from_onnx(int(node.attr(name))) if node.attr(name) else _at(dtypes, index) or default]

    return decide


def _inputs(*picks: int | np.dtype | None) -> _Decide:
    # For each output, the input whose dtype it has, or a dtype.
    return lambda _, dtypes: [_at(dtypes, pick) if isinstance(pick, int) else pick for pick in picks]


def _constant(node: NodeView, _: Dtypes) -> list[np.dtype | None]:
    value = node.attr("value")
    if value is not None:
        return [np.asarray(value).dtype]
    for prefix, dtype in (("value_float", F32), ("value_int", I64), ("value_string", STRING)):
        if node.attr(prefix) is not None or node.attr(f"{prefix}s") is not None:
            return [dtype]
    return [None]


def _constant_of_shape(node: NodeView, _: Dtypes) -> list[np.dtype | None]:
    value = node.attr("value")
    return [F32 if value is None else np.asarray(value).dtype]


def _layer_normalization(node: NodeView, dtypes: Dtypes) -> list[np.dtype | None]:
    stash = from_onnx(int(node.attr("stash_type") or 1))
    return [_at(dtypes, 0), stash, stash]


def _linear_attention(_: NodeView, dtypes: Dtypes) -> list[np.dtype | None]:
    return [_at(dtypes, 0), _at(dtypes, 3) or _at(dtypes, 0)]


def _group_query_attention(_: NodeView, dtypes: Dtypes) -> list[np.dtype | None]:
    data = _at(dtypes, 0)
    cache = _at(dtypes, 3) or data  # the cache may be quantized
    return [data, cache, cache, data]


def _label_encoder(node: NodeView, _: Dtypes) -> list[np.dtype | None]:
    for name, dtype in (("values_strings", STRING), ("values_int64s", I64), ("values_floats", F32)):
        if node.attr(name) is not None:
            return [dtype]
    tensor = node.attr("values_tensor")
    return [None if tensor is None else np.asarray(tensor).dtype]


def _category_mapper(_: NodeView, dtypes: Dtypes) -> list[np.dtype | None]:
    given = _at(dtypes, 0)
    return [None if given is None else I64 if given == STRING else STRING]


def _cast_map(node: NodeView, _: Dtypes) -> list[np.dtype | None]:
    dtypes: dict[str, np.dtype] = {"TO_FLOAT": F32, "TO_INT64": I64, "TO_STRING": STRING}
    return [dtypes[node.attr("cast_to", "TO_FLOAT")]]


def _classifier(node: NodeView, _: Dtypes) -> list[np.dtype | None]:
    return [STRING if node.attr("classlabels_strings") else I64, F32]


def _optimizer(groups: int) -> _Decide:
    # The dtypes may differ from tensor to tensor; see the shape rule for the order of the groups.
    def decide(_: NodeView, dtypes: Dtypes) -> list[np.dtype | None]:
        count = (len(dtypes) - 2) // groups
        return [dtypes[2 + group * count + i] for group in range(groups) if group != 1 for i in range(count)]

    return decide


_ML = "ai.onnx.ml"
_TRAINING = "ai.onnx.preview.training"
_MS = "com.microsoft"

# Where the schema's type variables do not say it: an attribute decides, or there is no schema in the onnx package.
_DECIDED: dict[tuple[str, str], _Decide] = {
    ("", "Cast"): _code("to", None),
    ("", "BitCast"): _code("to", None),
    ("", "Constant"): _constant,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "LayerNormalization"): _layer_normalization,
    ("", "LinearAttention"): _linear_attention,
    ("", "QuantizeLinear"): _code_or_input("output_dtype", 2, U8),
    ("", "DequantizeLinear"): _code_or_input("output_dtype", 1),
    ("", "Dropout"): _inputs(0, BOOL),
    ("", "Multinomial"): _code("dtype", I32),
    ("", "RandomNormal"): _code("dtype", F32),
    ("", "RandomUniform"): _code("dtype", F32),
    ("", "OptionalGetElement"): _inputs(0),
    ("", "SimplifiedLayerNormalization"): _inputs(1, F32),
    **{
        ("", op): _code_or_input("dtype", 0) for op in ("Bernoulli", "EyeLike", "RandomNormalLike", "RandomUniformLike")
    },
    **{
        ("", op): _code("output_datatype", F32)
        for op in ("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix")
    },
    (_TRAINING, "Adagrad"): _optimizer(3),
    (_TRAINING, "Adam"): _optimizer(4),
    (_TRAINING, "Momentum"): _optimizer(3),
    (_ML, "CastMap"): _cast_map,
    (_ML, "CategoryMapper"): _category_mapper,
    (_ML, "LabelEncoder"): _label_encoder,
    **{(_ML, op): _classifier for op in ("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier")},
    (_MS, "QuantizeLinear"): _code_or_input("output_dtype", 2, U8),
    (_MS, "DequantizeLinear"): _code_or_input("output_dtype", 1),
    (_MS, "Attention"): _inputs(0, 0),
    (_MS, "DynamicQuantizeLSTM"): _inputs(0, 0, 0),
    (_MS, "EmbedLayerNormalization"): _inputs(2, I32, 2),
    (_MS, "GatherBlockQuantized"): _inputs(2),
    (_MS, "GroupQueryAttention"): _group_query_attention,
    (_MS, "MatMulIntegerToFloat"): _inputs(2),
    (_MS, "MultiHeadAttention"): _inputs(0, 0, 0, 0),
    (_MS, "NGramRepeatBlock"): _inputs(1),
    (_MS, "QAttention"): _inputs(3, 3),
    (_MS, "QGemm"): lambda _, dtypes: [_at(dtypes, 8) or _at(dtypes, 1)],
    (_MS, "QLinearConcat"): _inputs(1),
    (_MS, "QLinearConv"): _inputs(7),
    (_MS, "QLinearWhere"): _inputs(1),
    (_MS, "SimplifiedLayerNormalization"): _inputs(1, F32),
    (_MS, "SkipLayerNormalization"): _inputs(0, F32, F32, 0),
    (_MS, "SkipSimplifiedLayerNormalization"): _inputs(0, F32, F32, 0),
    (_MS, "SkipGroupNorm"): _inputs(0, 0),
    (_MS, "BiasDropout"): _inputs(0, BOOL),
    (_MS, "BitmaskDropout"): _inputs(0, np.dtype(np.uint32)),
    (_MS, "BitmaskBiasDropout"): _inputs(0, np.dtype(np.uint32)),
    (_MS, "IsAllFinite"): _inputs(BOOL),
    (_MS, "MulInteger"): _inputs(I32),
    (_MS, "ReduceSumInteger"): lambda _, dtypes: [np.dtype(np.uint32) if _at(dtypes, 0) == U8 else I32],
    (_MS, "Unique"): _inputs(0, I64, I64),
}
# Operators of com.microsoft whose only output has the dtype of the first input.
_FIRST_INPUT = (
    "BiasAdd BiasGelu BiasSoftmax BiasSplitGelu CDist ConvTransposeWithDynamicPads CropAndResize DynamicQuantizeMatMul "
    "ExpandDims FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation GatherND Gelu GemmFastGelu GridSample "
    "GroupNorm Inverse LongformerAttention MatMulBnb4 MatMulFpQ4 MatMulNBits MoE NhwcConv "
    "NhwcFusedConv NhwcMaxPool Pad QLinearAdd QLinearAveragePool QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul "
    "QLinearReduceMean QLinearSigmoid QLinearSoftmax QMoE QuickGelu Range RotaryEmbedding TransposeMatMul Trilu"
)
_DECIDED.update({(_MS, op): _inputs(0) for op in _FIRST_INPUT.split()})
_DECIDED.update({(channels_last.DOMAIN, op): _inputs(0) for op in channels_last.OPERATORS})
