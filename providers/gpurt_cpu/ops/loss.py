"""Losses of classification: negative log likelihood and softmax cross entropy."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.activation import log_softmax
from gpurt_cpu.ops.common import lifted
from gpurt_cpu.ops.table import Array, op


def _negative_log_likelihood(
    log_prob: Array, target: Array, weight: Array | None, ignore_index: int | None, reduction: str
) -> Any:
    classes = log_prob.shape[1]
    counted = None if ignore_index is None else target != ignore_index
    index = target.astype(np.int64)
    if counted is not None:
        index = np.where(counted, index, 0)
    if index.size and not (-classes <= index.min() and index.max() < classes):
        raise InvalidArgument(f"a target lies outside {classes} classes", remedy="Use ignore_index for unlabelled data")
    loss = -np.take_along_axis(log_prob, index[:, None], axis=1)[:, 0]
    factor: Array | None = None if weight is None else weight[index].astype(loss.dtype)
    if counted is not None:
        factor = counted.astype(loss.dtype) if factor is None else np.where(counted, factor, 0)
    if factor is not None:
        loss = np.where(factor == 0, 0, loss * factor).astype(loss.dtype)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return np.sum(loss, dtype=loss.dtype)
    if reduction != "mean":
        raise InvalidArgument(f"reduction is {reduction!r}", remedy="Use 'none', 'sum' or 'mean'")
    if factor is None:
        return np.mean(loss, dtype=loss.dtype)
    return np.sum(loss, dtype=loss.dtype) / np.sum(factor, dtype=loss.dtype)


@op("NegativeLogLikelihoodLoss")
@lifted
def negative_log_likelihood_loss(
    log_prob: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Any:
    return _negative_log_likelihood(log_prob, target, weight, ignore_index, reduction)


@op("SoftmaxCrossEntropyLoss", wants_outputs=True)
@lifted
def softmax_cross_entropy_loss(
    scores: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    outputs: tuple[bool, ...] = (True,),
) -> Any:
    log_prob = log_softmax(scores, axis=1)
    loss = _negative_log_likelihood(log_prob, labels, weights, ignore_index, reduction)
    return (loss, log_prob) if any(outputs[1:]) else loss
