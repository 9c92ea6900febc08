"""Linear models and support vector machines of ai.onnx.ml, and the transforms of scores that all models share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.activation import sigmoid, softmax
from gpurt_cpu.ops.string import texts
from gpurt_cpu.ops.table import Array, op

DOMAIN = "ai.onnx.ml"


def transformed(scores: Array, post_transform: str) -> Array:
    """Scores (rows, classes) after the transform that the attribute names."""
    match post_transform:
        case "NONE":
            return scores
        case "LOGISTIC":
            return np.asarray(sigmoid(scores), scores.dtype)
        case "SOFTMAX":
            return softmax(scores)
        case "SOFTMAX_ZERO":
            top = scores.max(axis=1, keepdims=True)
            small = np.abs(scores) <= 1e-7
            y = np.where(small, scores * np.exp(-top), np.exp(scores - top))
            total = y.sum(axis=1, keepdims=True)
            return np.asarray(np.where(total == 0, 0.5, y / np.where(total == 0, 1, total))).astype(scores.dtype)
        case "PROBIT":
            return _probit(scores)
    raise InvalidArgument(
        f"post_transform is {post_transform!r}", remedy="Use NONE, LOGISTIC, SOFTMAX, SOFTMAX_ZERO or PROBIT"
    )


def _probit(p: Array) -> Array:
    """Inverse of the normal distribution, by Winitzki's approximation, which ONNX Runtime uses too."""
    x = 2 * p - 1
    log = np.log((1 - x) * (1 + x))
    half = 2 / (np.pi * 0.147) + 0.5 * log
    y = 1.41421356 * np.sign(x) * np.sqrt(np.sqrt(half * half - log / 0.147) - half)
    return np.asarray(y).astype(p.dtype)


def labels_of(index: Array, ints: tuple[int, ...] | None, strings: tuple[str, ...] | None) -> Array:
    """Class labels of indices; without labels, the indices."""
    if strings:
        return texts([strings[i] for i in index.tolist()], index.shape)
    return np.array(ints, np.int64)[index] if ints else index.astype(np.int64)


def paired(score: Array, post_transform: str, *, complement: bool) -> Array:
    """Scores of both classes from the second one's (rows, 1), as ONNX Runtime fills them in.

    The first class gets the complement to one, or the negative; only LOGISTIC is then applied.
    """
    if post_transform == "LOGISTIC":
        return transformed(np.concatenate([-score, score], axis=1), post_transform)
    return np.concatenate([1 - score if complement else -score, score], axis=1)


def _rows(x: Array) -> Array:
    return np.atleast_2d(x).astype(np.float32, copy=False)


@op("LinearRegressor", domain=DOMAIN)
def linear_regressor(
    x: Array,
    *,
    coefficients: tuple[float, ...] | None = None,
    intercepts: tuple[float, ...] | None = None,
    post_transform: str = "NONE",
    targets: int = 1,
) -> Array:
    y = _rows(x) @ np.array(coefficients or (), np.float32).reshape(targets, -1).T
    if intercepts:
        y += np.array(intercepts, np.float32)
    return transformed(y, post_transform)


@op("LinearClassifier", domain=DOMAIN)
def linear_classifier(
    x: Array,
    *,
    coefficients: tuple[float, ...],
    classlabels_ints: tuple[int, ...] | None = None,
    classlabels_strings: tuple[str, ...] | None = None,
    intercepts: tuple[float, ...] | None = None,
    multi_class: int = 0,  # noqa: ARG001 - neither way changes the scores
    post_transform: str = "NONE",
) -> tuple[Array, Array]:
    rows = _rows(x)
    weights = np.array(coefficients, np.float32)
    if intercepts:
        # ONNX Runtime takes one class for each intercept, and of the coefficients as many as the features need.
        weights = weights[: len(intercepts) * rows.shape[1]]
    scores = rows @ weights.reshape(-1, rows.shape[1]).T
    if intercepts:
        scores += np.array(intercepts, np.float32)
    classes = len(classlabels_strings or classlabels_ints or ())
    if scores.shape[1] == 1 and classes == 2:
        index = (scores[:, 0] > 0).astype(np.int64)
        both = paired(scores, post_transform, complement=True)
        return labels_of(index, classlabels_ints, classlabels_strings), both
    elif scores.shape[1] == 1:
        # One score and one label: what is not the label is 0, or no text.
        positive = scores[:, 0] > (0 if post_transform == "NONE" else 0.5)
        if classlabels_strings:
            label = texts([classlabels_strings[0] if p else "" for p in positive.tolist()], positive.shape)
        else:
            label = np.where(positive, np.int64((classlabels_ints or (1,))[0]), np.int64(0))
        return label, transformed(scores, post_transform)
    else:
        index = np.argmax(scores, axis=1)
    return labels_of(index, classlabels_ints, classlabels_strings), transformed(scores, post_transform)


def _kernel(x: Array, vectors: Array, kernel_type: str, params: tuple[float, ...] | None) -> Array:
    """Kernel of each row with each support vector."""
    gamma, coef0, degree = params or (0.0, 0.0, 0.0)
    match kernel_type:
        case "LINEAR":
            return np.asarray(x @ vectors.T)
        case "POLY":
            return np.asarray(np.power(gamma * (x @ vectors.T) + coef0, degree))
        case "SIGMOID":
            return np.asarray(np.tanh(gamma * (x @ vectors.T) + coef0))
        case "RBF":
            square = np.square(x).sum(axis=1)[:, None] + np.square(vectors).sum(axis=1) - 2 * (x @ vectors.T)
            return np.asarray(np.exp(-gamma * np.maximum(square, 0)))
    raise InvalidArgument(f"kernel_type is {kernel_type!r}", remedy="Use LINEAR, POLY, RBF or SIGMOID")


@op("SVMRegressor", domain=DOMAIN)
def svm_regressor(
    x: Array,
    *,
    coefficients: tuple[float, ...] | None = None,
    kernel_params: tuple[float, ...] | None = None,
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: tuple[float, ...] | None = None,
    support_vectors: tuple[float, ...] | None = None,
) -> Array:
    rows, weights = _rows(x), np.array(coefficients or (), np.float32)
    if n_supports:
        vectors = np.array(support_vectors or (), np.float32).reshape(n_supports, -1)
        y = _kernel(rows, vectors, kernel_type, kernel_params) @ weights[:, None]
    else:
        y = _kernel(rows, weights[None, :], "LINEAR", None)
    y = y + np.float32((rho or (0.0,))[0])
    if one_class:
        return np.where(y > 0, np.float32(1), np.float32(-1))
    return transformed(y, post_transform)


@op("SVMClassifier", domain=DOMAIN)
def svm_classifier(
    x: Array,
    *,
    classlabels_ints: tuple[int, ...] | None = None,
    classlabels_strings: tuple[str, ...] | None = None,
    coefficients: tuple[float, ...] | None = None,
    kernel_params: tuple[float, ...] | None = None,
    kernel_type: str = "LINEAR",
    post_transform: str = "NONE",
    prob_a: tuple[float, ...] | None = None,
    prob_b: tuple[float, ...] | None = None,
    rho: tuple[float, ...] | None = None,
    support_vectors: tuple[float, ...] | None = None,
    vectors_per_class: tuple[int, ...] | None = None,
) -> tuple[Array, Array]:
    rows, weights = _rows(x), np.array(coefficients or (), np.float32)
    shift = np.array(rho or (0.0,), np.float32)
    classes = max(len(classlabels_strings or classlabels_ints or ()), 1)
    count = sum(vectors_per_class or ())
    votes = None
    if count:
        vectors = np.array(support_vectors or (), np.float32).reshape(count, -1)
        kernel = _kernel(rows, vectors, kernel_type, kernel_params)
        scores, votes = _duels(kernel, weights.reshape(-1, count), shift, vectors_per_class or ())
    else:
        scores = _kernel(rows, weights.reshape(classes, -1), kernel_type, kernel_params) + shift[0]
    has_proba = bool(prob_a) and votes is not None
    if has_proba:
        pairs = scores * np.array(prob_a, np.float32) + np.array(prob_b, np.float32)
        scores = _coupled(np.clip(1 / (1 + np.exp(pairs)), 1e-7, 1 - 1e-7), classes)
    index = np.argmax(scores if votes is None else votes, axis=1)
    labels = labels_of(index, classlabels_ints, classlabels_strings)
    if scores.shape[1] == 1 and classes == 2:
        return labels, paired(scores.astype(np.float32), post_transform, complement=post_transform != "NONE")
    return labels, transformed(scores.astype(np.float32), post_transform)


def _duels(kernel: Array, weights: Array, rho: Array, per_class: tuple[int, ...]) -> tuple[Array, Array]:
    """Score of each pair of classes, and the number of pairs that each class wins."""
    starts = list(itertools.accumulate(per_class, initial=0))
    spans = [slice(a, b) for a, b in itertools.pairwise(starts)]
    scores, votes = [], np.zeros((kernel.shape[0], len(per_class)), np.float32)
    for k, (i, j) in enumerate(itertools.combinations(range(len(per_class)), 2)):
        score = kernel[:, spans[i]] @ weights[j - 1, spans[i]] + kernel[:, spans[j]] @ weights[i, spans[j]] + rho[k]
        votes[:, i] += score > 0
        votes[:, j] += score <= 0
        scores.append(score)
    return np.stack(scores, axis=1), votes


def _coupled(pairs: Array, classes: int) -> Array:
    """Probabilities of the classes from those of the pairs, as libsvm couples them (Wu, Lin and Weng, 2004)."""
    n = pairs.shape[0]
    r = np.zeros((n, classes, classes))
    for k, (i, j) in enumerate(itertools.combinations(range(classes), 2)):
        r[:, i, j], r[:, j, i] = pairs[:, k], 1 - pairs[:, k]
    q = -np.swapaxes(r, 1, 2) * r
    diagonal = np.square(r).sum(axis=1)
    q[:, range(classes), range(classes)] = diagonal
    p = np.full((n, classes), 1 / classes)
    live = np.ones(n, bool)
    for _ in range(max(100, classes)):
        qp = np.einsum("nij,nj->ni", q, p)
        total = (p * qp).sum(axis=1)
        live &= np.abs(qp - total[:, None]).max(axis=1) >= 0.005 / classes
        if not live.any():
            break
        for t in range(classes):
            step: Any = np.where(live, (total - qp[:, t]) / diagonal[:, t], 0)
            p[:, t] += step
            total = (total + step * (step * diagonal[:, t] + 2 * qp[:, t])) / (1 + step) ** 2
            p /= (1 + step)[:, None]
            qp = (qp + step[:, None] * q[:, t]) / (1 + step)[:, None]
    return p.astype(np.float32)
