"""Strings: shapes only, the content is the CPU's."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import BOOL, F32, Inputs, like, need
from gpurt.infer.shapes import broadcast, text
from gpurt.infer.table import rule
from gpurt.spec import Spec, Unknown


@rule("StringConcat")
def string_concat(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, y = need(node, inputs, 0), need(node, inputs, 1)
    return [like(x, broadcast(x.shape, y.shape))]


@rule("RegexFullMatch")
def regex_full_match(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [like(need(node, inputs, 0), dtype=BOOL)]


@rule("StringNormalizer")
def string_normalizer(node: NodeView, inputs: Inputs) -> list[Spec]:
    if node.attr("stopwords"):
        raise Unknown("StringNormalizer with stopwords has an output whose size depends on the data")
    return [like(need(node, inputs, 0))]


@rule("TfIdfVectorizer")
def tf_idf_vectorizer(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    if x.rank not in {1, 2}:
        raise ValueError(f"TfIdfVectorizer: X {text(x.shape)} must have rank 1 or 2")
    return [Spec(F32, (*x.shape[:-1], max(node.attr("ngram_indexes")) + 1))]
