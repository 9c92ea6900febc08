"""Text: tensors of Python strings, and the counting of n-grams in them."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from gpurt.errors import InvalidArgument
from gpurt_cpu.ops.table import Array, op


def texts(values: list[Any], shape: tuple[int, ...]) -> Array:
    """Object array of the strings given."""
    out = np.empty(len(values), object)
    out[:] = values
    return out.reshape(shape)


@op("StringConcat")
def string_concat(x: Array, y: Array) -> Array:
    left, right = np.broadcast_arrays(x, y)
    pairs = zip(left.reshape(-1).tolist(), right.reshape(-1).tolist(), strict=True)
    return texts([a + b for a, b in pairs], left.shape)


@op("StringSplit")
def string_split(x: Array, *, delimiter: str | None = None, maxsplit: int | None = None) -> tuple[Array, Array]:
    parts = [s.split(delimiter or None, -1 if maxsplit is None else maxsplit) for s in x.reshape(-1).tolist()]
    counts = np.array([len(p) for p in parts], np.int64)
    width = int(counts.max(initial=0))
    filled = [piece for p in parts for piece in p + [""] * (width - len(p))]
    return texts(filled, (*x.shape, width)), counts.reshape(x.shape)


@op("StringNormalizer")
def string_normalizer(
    x: Array,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str | None = None,  # noqa: ARG001 - Python changes case the same way everywhere
    stopwords: tuple[str, ...] | None = None,
) -> Array:
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise InvalidArgument(f"StringNormalizer got {x.shape}", remedy="Give it [C] or [1, C]")
    words = x.reshape(-1).tolist()
    if stopwords:
        refused = set(stopwords) if is_case_sensitive else {w.lower() for w in stopwords}
        words = [w for w in words if (w if is_case_sensitive else w.lower()) not in refused]
    if case_change_action == "LOWER":
        words = [w.lower() for w in words]
    elif case_change_action == "UPPER":
        words = [w.upper() for w in words]
    elif case_change_action != "NONE":
        raise InvalidArgument(f"case_change_action is {case_change_action!r}", remedy="Use 'LOWER', 'UPPER' or 'NONE'")
    words = words or [""]
    return texts(words, (1, len(words)) if x.ndim == 2 else (len(words),))


@op("RegexFullMatch")
def regex_full_match(x: Array, *, pattern: str | None = None) -> Array:
    try:
        found = re.compile(pattern or "")
    except re.error as error:
        raise InvalidArgument(f"pattern {pattern!r} is not a regular expression: {error}") from None
    return np.array([found.fullmatch(s) is not None for s in x.reshape(-1).tolist()], bool).reshape(x.shape)


@functools.lru_cache(maxsize=32)
def _ngrams(pool: tuple[Any, ...], counts: tuple[int, ...], low: int, high: int) -> dict[tuple[Any, ...], int]:
    """Each n-gram of the wanted lengths with its place among all n-grams of the pool."""
    out: dict[tuple[Any, ...], int] = {}
    place = 0
    for i, start in enumerate(counts):
        size = i + 1
        end = counts[i + 1] if i + 1 < len(counts) else len(pool)
        for at in range(start, end, size):
            if low <= size <= high:
                out[pool[at : at + size]] = place
            place += 1
    return out


@op("TfIdfVectorizer")
def tfidf_vectorizer(
    x: Array,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: tuple[int, ...],
    ngram_indexes: tuple[int, ...],
    pool_int64s: tuple[int, ...] | None = None,
    pool_strings: tuple[str, ...] | None = None,
    weights: tuple[float, ...] | None = None,
) -> Array:
    if mode not in ("TF", "IDF", "TFIDF"):
        raise InvalidArgument(f"mode is {mode!r}", remedy="Use 'TF', 'IDF' or 'TFIDF'")
    pool = pool_strings or pool_int64s or ()
    grams = _ngrams(tuple(pool), tuple(ngram_counts), min_gram_length, max_gram_length)
    rows = x.reshape(1, -1) if x.ndim < 2 else x
    width = max(ngram_indexes, default=-1) + 1
    y = np.zeros((rows.shape[0], width), np.float32)
    sizes = sorted({len(g) for g in grams})
    for out, row in zip(y, rows.tolist(), strict=True):
        for size in sizes:
            # Single items have nothing to skip between.
            for skip in range(1, (max_skip_count if size > 1 else 0) + 2):
                for at in range(len(row) - (size - 1) * skip):
                    place = grams.get(tuple(row[at : at + (size - 1) * skip + 1 : skip]))
                    if place is not None:
                        out[ngram_indexes[place]] += 1
    if mode != "TF":
        factor = np.ones(width, np.float32)
        if weights is not None:
            factor[list(ngram_indexes)] = weights
        y = (np.minimum(y, 1) if mode == "IDF" else y) * factor
    return y[0] if x.ndim < 2 else y
