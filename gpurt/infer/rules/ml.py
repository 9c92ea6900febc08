"""The operators of ai.onnx.ml that give tensors; rows are samples, and a 1-D input is a single row."""

from __future__ import annotations

import numpy as np

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import F32, I64, STRING, Inputs, like, need
from gpurt.infer.table import rule
from gpurt.spec import Spec, Unknown

ML = "ai.onnx.ml"


def _rows(x: Spec) -> int:
    return x.shape[0] if x.rank > 1 else 1


@rule("Binarizer", "Imputer", domain=ML)
def same(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [like(need(node, inputs, 0))]


@rule("Normalizer", "Scaler", domain=ML)
def to_float(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [like(need(node, inputs, 0), dtype=F32)]


@rule("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, indices = need(node, inputs, 0), need(node, inputs, 1)
    return [like(x, (*(x.shape[:-1] if x.rank > 1 else (1,)), indices.size))]


@rule("CategoryMapper", domain=ML)
def category_mapper(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    return [like(x, dtype=I64 if x.dtype == STRING else STRING)]


@rule("LabelEncoder", domain=ML)
def label_encoder(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    for name, dtype in (("values_strings", STRING), ("values_int64s", I64), ("values_floats", F32)):
        if node.attr(name) is not None:
            return [like(x, dtype=dtype)]
    return [like(x, dtype=np.asarray(node.attr("values_tensor")).dtype)]


@rule("OneHotEncoder", domain=ML)
def one_hot_encoder(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    categories = node.attr("cats_int64s") or node.attr("cats_strings") or ()
    return [Spec(F32, (*x.shape, len(categories)))]


@rule("FeatureVectorizer", domain=ML)
def feature_vectorizer(node: NodeView, inputs: Inputs) -> list[Spec]:
    specs = [need(node, inputs, i) for i in range(max(len(inputs), 1))]
    widths = node.attr("inputdimensions") or [spec.size // max(_rows(spec), 1) for spec in specs]
    return [Spec(F32, (_rows(specs[0]), sum(widths)))]


@rule("LinearRegressor", domain=ML)
def linear_regressor(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [Spec(F32, (_rows(need(node, inputs, 0)), node.attr("targets", 1)))]


@rule("SVMRegressor", domain=ML)
def svm_regressor(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [Spec(F32, (_rows(need(node, inputs, 0)), 1))]


@rule("TreeEnsemble", "TreeEnsembleRegressor", domain=ML)
def tree_ensemble(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    dtype = x.dtype if node.op_type == "TreeEnsemble" else F32
    return [Spec(dtype, (_rows(x), node.attr("n_targets", 1)))]


def _classes(node: NodeView) -> tuple[int, np.dtype]:
    labels = node.attr("classlabels_strings")
    if labels:
        return len(labels), STRING
    return len(node.attr("classlabels_int64s") or node.attr("classlabels_ints") or ()), I64


@rule("LinearClassifier", "TreeEnsembleClassifier", domain=ML)
def classifier(node: NodeView, inputs: Inputs) -> list[Spec]:
    rows = _rows(need(node, inputs, 0))
    count, dtype = _classes(node)
    if node.op_type == "LinearClassifier":
        # One set of coefficients for two classes: runtimes write the score of both. Without labels sets are counted.
        count = max(count, len(node.attr("intercepts") or ()), 1)
    return [Spec(dtype, (rows,)), Spec(F32, (rows, count))]


@rule("SVMClassifier", domain=ML)
def svm_classifier(node: NodeView, inputs: Inputs) -> list[Spec]:
    rows = _rows(need(node, inputs, 0))
    count, dtype = _classes(node)
    # Raw scores come one for each pair of classes, and two for the single pair of a binary classifier; without support
    # vectors the coefficients are linear, one set for each class.
    votes = bool(node.attr("vectors_per_class")) and not node.attr("prob_a")
    columns = count * (count - 1) // 2 if votes and count > 2 else count
    return [Spec(dtype, (rows,)), Spec(F32, (rows, columns))]


@rule("CastMap", "DictVectorizer", domain=ML)
def from_map(node: NodeView, inputs: Inputs) -> list[Spec]:
    raise Unknown(f"{node.op} needs the entries of a map")
