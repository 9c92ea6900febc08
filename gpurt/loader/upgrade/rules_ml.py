"""Upgrades in ai.onnx.ml. The tree ensembles of old stay as they are: kernels read their tables directly."""

from __future__ import annotations

from gpurt.loader.upgrade.registry import upgrade
from gpurt.loader.upgrade.site import Site

_ML = "ai.onnx.ml"


@upgrade("LabelEncoder", upto=1, domain=_ML, types=True)
def label_encoder(at: Site) -> None:
    """``LabelEncoder-1(x; classes_strings) -> LabelEncoder(x; keys, values)``: strings to positions, or back."""
    classes = list(at.pop("classes_strings", ()))
    default_int, default_string = at.pop("default_int64", -1), at.pop("default_string", "_Unused")
    dtype = at.dtype(at.need(0))
    if dtype is None:
        at.refuse("whether it maps strings to integers or back depends on an input type that is not known")
    elif dtype.kind == "O":
        at.set(keys_strings=classes, values_int64s=list(range(len(classes))), default_int64=default_int)
    else:
        at.set(keys_int64s=list(range(len(classes))), values_strings=classes, default_string=default_string)
