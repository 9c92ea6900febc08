"""The preparing half of ai.onnx.ml: scalers, encoders of categories, and conversions to and from maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.cast import cast_to
from gpurt_cpu.ops.string import texts
from gpurt_cpu.ops.table import Array, op

DOMAIN = "ai.onnx.ml"


@op("Binarizer", domain=DOMAIN)
def binarizer(x: Array, *, threshold: float = 0.0) -> Array:
    return (x > threshold).astype(x.dtype)


@op("Scaler", domain=DOMAIN)
def scaler(x: Array, *, offset: tuple[float, ...] | None = None, scale: tuple[float, ...] | None = None) -> Array:
    y = x.astype(np.float32)
    if offset:
        y -= np.array(offset, np.float32)
    if scale:
        y *= np.array(scale, np.float32)
    return y


@op("Normalizer", domain=DOMAIN)
def normalizer(x: Array, *, norm: str = "MAX") -> Array:
    rows = np.atleast_2d(x).astype(np.float32)
    if norm == "MAX":
        size = rows.max(axis=1, keepdims=True, initial=-np.inf)
    elif norm == "L1":
        size = np.abs(rows).sum(axis=1, keepdims=True)
    elif norm == "L2":
        size = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    else:
        raise InvalidArgument(f"norm is {norm!r}", remedy="Use 'MAX', 'L1' or 'L2'")
    return (rows / np.where(size == 0, np.float32(1), size)).reshape(x.shape)


@op("Imputer", domain=DOMAIN)
def imputer(
    x: Array,
    *,
    imputed_value_floats: tuple[float, ...] | None = None,
    imputed_value_int64s: tuple[int, ...] | None = None,
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Array:
    values = imputed_value_floats if x.dtype.kind == "f" else imputed_value_int64s
    if not values:
        raise InvalidArgument(
            f"Imputer has no values for {x.dtype.name}", remedy="Give imputed_value_floats or _int64s"
        )
    if len(values) not in (1, x.shape[-1]):
        raise InvalidArgument(f"Imputer has {len(values)} values", remedy=f"Give 1 or {x.shape[-1]}")
    missing = replaced_value_float if x.dtype.kind == "f" else replaced_value_int64
    where = np.isnan(x) if x.dtype.kind == "f" and np.isnan(missing) else x == np.asarray(missing, x.dtype)
    return np.where(where, np.array(values, x.dtype), x)


@op("FeatureVectorizer", domain=DOMAIN)
def feature_vectorizer(*arrays: Array, inputdimensions: tuple[int, ...] | None = None) -> Array:
    columns = []
    for i, x in enumerate(arrays):
        rows = x.reshape(1, -1) if x.ndim < 2 else x.reshape(x.shape[0], -1)
        rows = rows.astype(np.float32)
        if inputdimensions and rows.shape[1] != inputdimensions[i]:
            width = inputdimensions[i]
            rows = np.pad(rows[:, :width], ((0, 0), (0, max(width - rows.shape[1], 0))))
        columns.append(rows)
    return np.concatenate(columns, axis=1)


def _looked_up(x: Array, keys: Array, values: Array, default: Any) -> Array:
    """The value of each element's key, or the default. Numbers are searched for; texts go through a dict."""
    flat = x.reshape(-1)
    if values.dtype == object:
        lookup_values = values
    else:
        lookup_values = values.reshape(-1)
    if keys.dtype == object:
        table = dict(zip(keys.tolist(), range(keys.size), strict=True))
        place = np.array([table.get(v, -1) for v in flat.tolist()], np.int64)
    else:
        order = np.argsort(keys, kind="stable")  # NaN sorts last
        ranked = keys[order]
        at = np.minimum(np.searchsorted(ranked, flat.astype(keys.dtype, copy=False)), max(keys.size - 1, 0))
        same = ranked[at] == flat
        if keys.dtype.kind == "f":
            same |= np.isnan(ranked[at]) & np.isnan(flat)
        place = np.where(same, order[at], -1)
    if values.dtype == object:
        known = lookup_values.tolist()
        return texts([known[i] if i >= 0 else default for i in place.tolist()], x.shape)
    out = np.where(place >= 0, lookup_values[place], np.asarray(default, values.dtype))
    return np.asarray(out).reshape(x.shape)


def _given(*choices: tuple[Any, type[Any]]) -> Array | None:
    """The first attribute that is set, as an array."""
    for values, dtype in choices:
        if isinstance(values, np.ndarray):
            return values.reshape(-1)
        if values:
            return texts(list(values), (len(values),)) if dtype is object else np.array(values, dtype)
    return None


@op("LabelEncoder", domain=DOMAIN)
def label_encoder(
    x: Array,
    *,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: Array | None = None,
    keys_floats: tuple[float, ...] | None = None,
    keys_int64s: tuple[int, ...] | None = None,
    keys_strings: tuple[str, ...] | None = None,
    keys_tensor: Array | None = None,
    values_floats: tuple[float, ...] | None = None,
    values_int64s: tuple[int, ...] | None = None,
    values_strings: tuple[str, ...] | None = None,
    values_tensor: Array | None = None,
) -> Array:
    keys = _given((keys_tensor, object), (keys_floats, np.float32), (keys_int64s, np.int64), (keys_strings, object))
    values = _given(
        (values_tensor, object), (values_floats, np.float32), (values_int64s, np.int64), (values_strings, object)
    )
    if keys is None or values is None or keys.size != values.size:
        raise InvalidArgument("LabelEncoder needs as many values as keys", remedy="Set one keys_ and one values_ list")
    if default_tensor is not None:
        default: Any = default_tensor.reshape(-1)[0]
    elif values.dtype == object:
        default = default_string
    else:
        default = default_float if values.dtype.kind == "f" else default_int64
    return _looked_up(x, keys, values, default)


@op("CategoryMapper", domain=DOMAIN)
def category_mapper(
    x: Array,
    *,
    cats_int64s: tuple[int, ...] | None = None,
    cats_strings: tuple[str, ...] | None = None,
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Array:
    numbers = np.array(cats_int64s or (), np.int64)
    words = texts(list(cats_strings or ()), (len(cats_strings or ()),))
    if x.dtype == object:
        return _looked_up(x, words, numbers, default_int64)
    return _looked_up(x, numbers, words, default_string)


@op("OneHotEncoder", domain=DOMAIN)
def one_hot_encoder(
    x: Array,
    *,
    cats_int64s: tuple[int, ...] | None = None,
    cats_strings: tuple[str, ...] | None = None,
    zeros: int = 1,
) -> Array:
    if x.dtype == object:
        keys = texts(list(cats_strings or ()), (len(cats_strings or ()),))
    else:
        keys, x = np.array(cats_int64s or (), np.int64), x.astype(np.int64)
    place = _looked_up(x, keys, np.arange(keys.size), -1)
    if not zeros and (place < 0).any():
        raise InvalidArgument("OneHotEncoder met a category that it does not list", remedy="Set zeros to 1 to allow it")
    return np.asarray((place[..., None] == np.arange(keys.size)).astype(np.float32))


@op("DictVectorizer", domain=DOMAIN)
def dict_vectorizer(
    x: dict[Any, Any],
    *,
    int64_vocabulary: tuple[int, ...] | None = None,
    string_vocabulary: tuple[str, ...] | None = None,
) -> Array:
    values = [x.get(key) for key in string_vocabulary or int64_vocabulary or ()]
    some = next(iter(x.values()), 0.0)
    if isinstance(some, str):
        return texts(["" if v is None else v for v in values], (1, len(values)))
    dtype = (
        some.dtype if isinstance(some, np.generic | np.ndarray) else np.int64 if isinstance(some, int) else np.float32
    )
    return np.array([[0 if v is None else v for v in values]], dtype)


@op("CastMap", domain=DOMAIN)
def cast_map(x: dict[int, Any], *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1) -> Array:
    dtypes = {"TO_FLOAT": np.dtype(np.float32), "TO_STRING": np.dtype(object), "TO_INT64": np.dtype(np.int64)}
    if cast_to not in dtypes or map_form not in ("DENSE", "SPARSE"):
        raise InvalidArgument(f"CastMap with cast_to {cast_to!r} and map_form {map_form!r}")
    keys = sorted(x)
    dense = _map_values([x[k] for k in keys], dtypes[cast_to])
    if map_form == "DENSE":
        return dense.reshape(1, -1)
    if keys and not 0 <= keys[0] <= keys[-1] < max_map:
        raise InvalidArgument(f"a key lies outside max_map {max_map}", remedy="Use a larger max_map")
    out = np.full((1, max_map), "" if cast_to == "TO_STRING" else 0, dtypes[cast_to])
    out[0, keys] = dense
    return out


def _map_values(values: list[Any], dtype: np.dtype[Any]) -> Array:
    source = texts(values, (len(values),)) if any(isinstance(v, str) for v in values) else np.array(values, np.float32)
    return cast_to(source, dtype)


@op("ZipMap", domain=DOMAIN)
def zip_map(
    x: Array,
    *,
    classlabels_int64s: tuple[int, ...] | None = None,
    classlabels_strings: tuple[str, ...] | None = None,
) -> list[dict[Any, Any]]:
    labels = tuple(classlabels_strings or classlabels_int64s or ())
    rows = np.atleast_2d(x)
    if rows.shape[1] != len(labels):
        raise InvalidArgument(
            f"{rows.shape[1]} scores for {len(labels)} labels", remedy="Give one label for each score"
        )
    return [dict(zip(labels, row, strict=True)) for row in rows.tolist()]
