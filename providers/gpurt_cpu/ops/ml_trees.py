"""Tree ensembles of ai.onnx.ml: all rows walk down all trees together, one level at a time."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.ml_linear import DOMAIN, labels_of, paired, transformed
from gpurt_cpu.ops.table import Array, op

_MODES = {"BRANCH_LEQ": 0, "BRANCH_LT": 1, "BRANCH_GTE": 2, "BRANCH_GT": 3, "BRANCH_EQ": 4, "BRANCH_NEQ": 5,
          "BRANCH_MEMBER": 6, "LEAF": 7}  # fmt: skip
_LEAF = 7
_BLOCK = 1 << 20  # (row, tree) pairs that are walked at once


@dataclass(frozen=True, slots=True, eq=False)
class _Forest:
    """Nodes of all trees; a leaf leads to itself. Weights are (leaf, target), with a mask of those that exist."""

    feature: Array
    split: Array
    mode: Array
    missing: Array  # where a NaN follows the true branch
    true: Array
    false: Array
    roots: Array
    leaf: Array  # node -> row of the weights
    weights: Array
    present: Array
    members: dict[int, Array]
    mixed: bool  # whether the nodes use more than one comparison


def _walk(forest: _Forest, x: Array) -> Array:
    """Row of the weights that each row of the data reaches in each tree."""
    rows, trees = x.shape[0], forest.roots.size
    node = np.tile(forest.roots, rows)
    row = np.repeat(np.arange(rows), trees)
    live = np.flatnonzero(forest.mode[node] != _LEAF)
    while live.size:
        at = node[live]
        value = x[row[live], forest.feature[at]]
        go = _compare(forest, at, value) | (np.isnan(value) & forest.missing[at])
        at = np.where(go, forest.true[at], forest.false[at])
        node[live] = at
        live = live[forest.mode[at] != _LEAF]
    return np.asarray(forest.leaf[node].reshape(rows, trees))


def _compare(forest: _Forest, at: Array, value: Array) -> Array:
    split, mode = forest.split[at], forest.mode[at]
    if not forest.mixed:
        return _compare_as(forest, int(mode[0]), at, value, split)
    go = np.zeros(at.shape, bool)
    for kind in np.unique(mode).tolist():
        chosen = mode == kind
        go[chosen] = _compare_as(forest, kind, at[chosen], value[chosen], split[chosen])
    return go


def _compare_as(forest: _Forest, mode: int, at: Array, value: Array, split: Array) -> Array:
    match mode:
        case 0:
            return np.asarray(value <= split)
        case 1:
            return np.asarray(value < split)
        case 2:
            return np.asarray(value >= split)
        case 3:
            return np.asarray(value > split)
        case 4:
            return np.asarray(value == split)
        case 5:
            return np.asarray(value != split)
    go = np.zeros(at.shape, bool)
    for node in np.unique(at).tolist():
        chosen = at == node
        go[chosen] = np.isin(value[chosen], forest.members[node])
    return go


def _aggregate(forest: _Forest, x: Array, function: str) -> tuple[Array, Array]:
    """Combined weights (rows, targets), and which of them any tree contributed to."""
    if function not in ("SUM", "AVERAGE", "MIN", "MAX"):
        raise InvalidArgument(f"aggregate_function is {function!r}", remedy="Use SUM, AVERAGE, MIN or MAX")
    targets = forest.weights.shape[1]
    y = np.zeros((x.shape[0], targets), forest.weights.dtype)
    hit = np.zeros(y.shape, bool)
    step = max(1, _BLOCK // max(forest.roots.size * targets, 1))
    for i in range(0, x.shape[0], step):
        leaves = _walk(forest, x[i : i + step])
        weights, present = forest.weights[leaves], forest.present[leaves]
        hit[i : i + step] = present.any(axis=1)
        if function in ("SUM", "AVERAGE"):
            y[i : i + step] = weights.sum(axis=1)
        else:
            reduce, start = (np.min, np.inf) if function == "MIN" else (np.max, -np.inf)
            y[i : i + step] = reduce(np.where(present, weights, start), axis=1)
    y[~hit] = 0
    return (y / forest.roots.size if function == "AVERAGE" else y).astype(y.dtype), hit


@functools.lru_cache(maxsize=16)
def _from_columns(
    dtype: np.dtype[Any],
    targets: int,
    nodes: tuple[tuple[Any, ...], ...],
    leaves: tuple[tuple[Any, ...], ...],
) -> _Forest:
    """Forest of the older operators, whose nodes are named by (tree, node) pairs and whose leaves are nodes too."""
    tree, name, feature, mode, split, true_id, false_id, missing = nodes
    count = len(tree)
    place = {key: i for i, key in enumerate(zip(tree, name, strict=True))}
    kinds = np.array([_MODES[m] for m in mode], np.int64)
    here = np.arange(count)
    true, false = here.copy(), here.copy()
    for i in np.flatnonzero(kinds != _LEAF).tolist():
        true[i], false[i] = place[tree[i], true_id[i]], place[tree[i], false_id[i]]
    inner = kinds != _LEAF
    child = np.zeros(count, bool)
    child[true[inner]] = child[false[inner]] = True
    roots: dict[int, int] = {}
    for i in np.flatnonzero(~child).tolist():
        roots.setdefault(tree[i], i)
    weights, present = np.zeros((count, targets), dtype), np.zeros((count, targets), bool)
    leaf_tree, leaf_node, target, weight = leaves
    at = np.array([place[key] for key in zip(leaf_tree, leaf_node, strict=True)], np.int64)
    np.add.at(weights, (at, np.array(target, np.int64)), np.array(weight, dtype))
    present[at, np.array(target, np.int64)] = True
    tracks = np.array(missing, bool) if missing else np.zeros(count, bool)
    return _Forest(
        feature=np.array(feature, np.int64),
        split=np.array(split, dtype),
        mode=kinds,
        missing=tracks,
        true=true,
        false=false,
        roots=np.array(list(roots.values()), np.int64),
        leaf=here,
        weights=weights,
        present=present,
        members={},
        mixed=len(set(kinds[inner].tolist())) > 1,
    )


def _values(floats: tuple[float, ...] | None, tensor: Array | None) -> tuple[tuple[float, ...], np.dtype[Any]]:
    if tensor is not None and tensor.size:
        return tuple(tensor.reshape(-1).tolist()), tensor.dtype
    return tuple(floats or ()), np.dtype(np.float32)


def _columns(a: dict[str, Any], prefix: str, targets: int) -> _Forest:
    splits, dtype = _values(a.get("nodes_values"), a.get("nodes_values_as_tensor"))
    weights, _ = _values(a.get(f"{prefix}_weights"), a.get(f"{prefix}_weights_as_tensor"))
    nodes = ("treeids", "nodeids", "featureids", "modes", "", "truenodeids", "falsenodeids",
             "missing_value_tracks_true")  # fmt: skip
    return _from_columns(
        dtype,
        targets,
        tuple(tuple(a.get(f"nodes_{n}") or ()) if n else splits for n in nodes),
        (*(tuple(a.get(f"{prefix}_{n}") or ()) for n in ("treeids", "nodeids", "ids")), weights),
    )


def _data(x: Array, dtype: np.dtype[Any]) -> Array:
    rows = np.atleast_2d(x)
    return rows if rows.dtype.kind == "f" and rows.dtype == dtype else rows.astype(dtype)


@op("TreeEnsembleRegressor", domain=DOMAIN)
def tree_ensemble_regressor(
    x: Array,
    *,
    aggregate_function: str = "SUM",
    base_values: tuple[float, ...] | None = None,
    base_values_as_tensor: Array | None = None,
    n_targets: int = 1,
    post_transform: str = "NONE",
    **nodes: Any,
) -> Array:
    forest = _columns(nodes, "target", n_targets)
    y, _ = _aggregate(forest, _data(x, forest.split.dtype), aggregate_function)
    base, _ = _values(base_values, base_values_as_tensor)
    if base:
        y = y + np.array(base, y.dtype)
    return transformed(y.astype(np.float32, copy=False), post_transform)


@op("TreeEnsembleClassifier", domain=DOMAIN)
def tree_ensemble_classifier(
    x: Array,
    *,
    base_values: tuple[float, ...] | None = None,
    base_values_as_tensor: Array | None = None,
    class_ids: tuple[int, ...] = (),
    classlabels_int64s: tuple[int, ...] | None = None,
    classlabels_strings: tuple[str, ...] | None = None,
    post_transform: str = "NONE",
    **nodes: Any,
) -> tuple[Array, Array]:
    classes = max(len(classlabels_strings or classlabels_int64s or ()), 1)
    # With two classes and weights for one of them only, there is a single score, of the second class; if the weights
    # say that it is the second class's, the first one's stays as it is.
    single = classes == 2 and len(set(class_ids)) == 1
    binary = single and class_ids[0] == 0
    forest = _columns({**nodes, "class_ids": tuple(class_ids)}, "class", 1 if binary else classes)
    scores, _ = _aggregate(forest, _data(x, forest.split.dtype), "SUM")
    base, _ = _values(base_values, base_values_as_tensor)
    if base:
        scores = scores + np.array(base[-1:] if binary else base, scores.dtype)
    scores = scores.astype(np.float32, copy=False)
    positive = bool(forest.weights.min(initial=0) >= 0)
    if not binary:
        if scores.shape[1] == 1:
            index = (scores[:, 0] > 0).astype(np.int64)
            labels = index if classlabels_strings is None else labels_of(index * 0, None, classlabels_strings)
            return labels, scores  # ONNX Runtime leaves a lone score as it is
        index = np.argmax(scores, axis=1)
        if single:
            index = (scores[:, 1] > (0.5 if positive else 0)).astype(np.int64)
        return labels_of(index, classlabels_int64s, classlabels_strings), transformed(scores, post_transform)
    index = (scores[:, 0] > (0.5 if positive else 0)).astype(np.int64)
    labels = labels_of(index, classlabels_int64s, classlabels_strings)
    if post_transform == "PROBIT":
        return labels, transformed(scores, post_transform)
    return labels, paired(scores, post_transform, complement=positive)


@functools.lru_cache(maxsize=16)
def _from_leaves(
    dtype: np.dtype[Any],
    targets: int,
    roots: tuple[int, ...],
    nodes: tuple[tuple[Any, ...], ...],
    leaves: tuple[tuple[Any, ...], ...],
    members: tuple[float, ...],
) -> _Forest:
    """Forest of TreeEnsemble-5: inner nodes first, then the leaves, which have lists of their own."""
    feature, mode, split, true_id, true_leaf, false_id, false_leaf, missing = (np.array(column) for column in nodes)
    target, weight = leaves
    inner, count = len(feature), len(target)
    here = np.arange(inner + count)
    fill = np.zeros(count, np.int64)
    weights, present = np.zeros((count, targets), dtype), np.zeros((count, targets), bool)
    weights[np.arange(count), np.array(target)] = np.array(weight, dtype)
    present[np.arange(count), np.array(target)] = True
    sets: dict[int, Array] = {}
    if members:
        values = np.array(members, dtype)
        parts = np.split(values, np.flatnonzero(np.isnan(values)))
        for node, part in zip(np.flatnonzero(mode == 6).tolist(), parts, strict=False):
            sets[node] = part[~np.isnan(part)]
    true_node = np.where(true_leaf != 0, true_id + inner, true_id)
    false_node = np.where(false_leaf != 0, false_id + inner, false_id)
    return _Forest(
        feature=np.concatenate([feature, fill]).astype(np.int64),
        split=np.concatenate([split, fill]).astype(dtype),
        mode=np.concatenate([mode, fill + _LEAF]).astype(np.int64),
        missing=np.concatenate([missing if missing.size else np.zeros(inner), fill]).astype(bool),
        true=np.concatenate([true_node, here[inner:]]).astype(np.int64),
        false=np.concatenate([false_node, here[inner:]]).astype(np.int64),
        roots=np.array(roots, np.int64),
        leaf=np.maximum(here - inner, 0),
        weights=weights,
        present=present,
        members=sets,
        mixed=len(set(mode.tolist())) > 1,
    )


@op("TreeEnsemble", domain=DOMAIN)
def tree_ensemble(
    x: Array,
    *,
    leaf_targetids: tuple[int, ...],
    leaf_weights: Array,
    nodes_falseleafs: tuple[int, ...],
    nodes_falsenodeids: tuple[int, ...],
    nodes_featureids: tuple[int, ...],
    nodes_modes: Array,
    nodes_splits: Array,
    nodes_trueleafs: tuple[int, ...],
    nodes_truenodeids: tuple[int, ...],
    tree_roots: tuple[int, ...],
    aggregate_function: int = 1,
    membership_values: Array | None = None,
    n_targets: int = 1,
    nodes_hitrates: Array | None = None,  # noqa: ARG001 - says only which nodes are popular
    nodes_missing_value_tracks_true: tuple[int, ...] | None = None,
    post_transform: int = 0,
) -> Array:
    functions = ("AVERAGE", "SUM", "MIN", "MAX")
    transforms = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
    if not (0 <= aggregate_function < len(functions) and 0 <= post_transform < len(transforms)):
        raise InvalidArgument(f"aggregate_function {aggregate_function} and post_transform {post_transform}")
    forest = _from_leaves(
        nodes_splits.dtype,
        n_targets,
        tuple(tree_roots),
        (
            tuple(nodes_featureids),
            tuple(nodes_modes.tolist()),
            tuple(nodes_splits.tolist()),
            tuple(nodes_truenodeids),
            tuple(nodes_trueleafs),
            tuple(nodes_falsenodeids),
            tuple(nodes_falseleafs),
            tuple(nodes_missing_value_tracks_true or ()),
        ),
        (tuple(leaf_targetids), tuple(leaf_weights.reshape(-1).tolist())),
        () if membership_values is None else tuple(membership_values.reshape(-1).tolist()),
    )
    y, _ = _aggregate(forest, _data(x, forest.split.dtype), functions[aggregate_function])
    return transformed(y, transforms[post_transform]).astype(x.dtype, copy=False)
