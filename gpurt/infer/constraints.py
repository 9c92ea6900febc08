"""Whether a node's input types and named modes are in the standard: what providers refuse when a session is made."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import onnx.defs

from gpurt.dtypes import from_name, onnx_name
from gpurt.graph.view import NodeView

_AUTO_PAD: Final = {"auto_pad": "NOTSET SAME_UPPER SAME_LOWER VALID"}
_DIRECTION: Final = {"direction": "forward reverse bidirectional"}
_LOSS: Final = {"reduction": "none sum mean"}
_SCATTER: Final = {"reduction": "none add mul max min"}
_ROUND: Final = "round_prefer_floor round_prefer_ceil floor ceil"
# Operator of ai.onnx -> attribute -> the values that it may have; the schemas tell only that it is a string.
_CHOICES: Final[dict[str, dict[str, str]]] = {
    **dict.fromkeys(
        ("Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "AveragePool", "LpPool", "MaxPool"), _AUTO_PAD
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _DIRECTION),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), _LOSS),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _SCATTER),
    "BitShift": {"direction": "LEFT RIGHT"},
    "DepthToSpace": {"mode": "DCR CRD"},
    "Gelu": {"approximate": "none tanh"},
    "GridSample": {"mode": "linear nearest cubic", "padding_mode": "zeros border reflection"},
    "Pad": {"mode": "constant reflect edge wrap"},
    "Resize": {
        "mode": "nearest linear cubic",
        "nearest_mode": _ROUND,
        "keep_aspect_ratio_policy": "stretch not_larger not_smaller",
        "coordinate_transformation_mode": (
            "half_pixel half_pixel_symmetric pytorch_half_pixel align_corners asymmetric tf_crop_and_resize"
        ),
    },
    "RoiAlign": {"mode": "avg max", "coordinate_transformation_mode": "half_pixel output_half_pixel"},
    "StringNormalizer": {"case_change_action": "LOWER UPPER NONE"},
    "TfIdfVectorizer": {"mode": "TF IDF TFIDF"},
}


def objection(node: NodeView) -> str | None:
    """Why the standard does not allow a node, by its input types and string attributes; None if it may."""
    return _mode_error(node) or type_mismatch(node)


def _mode_error(node: NodeView) -> str | None:
    if node.domain:
        return None
    for name, choices in _CHOICES.get(node.op_type, {}).items():
        value = node.attr(name)
        if value is not None and value not in choices.split():
            return f"{node.op} has no {name} {value!r}; it has {', '.join(choices.split())}"
    return None


def type_mismatch(node: NodeView) -> str | None:
    """Why the types of a node's inputs break the operator's signature, or None; what is not known breaks nothing."""
    found = _signature(node.op_type, node.domain, node.version)
    if found is None:
        return None
    bound: dict[str, tuple[int, np.dtype]] = {}
    for position, value in enumerate(node.inputs):
        if value is None or value.dtype is None:
            continue
        if position >= len(found) and (not found or not found[-1].variadic):
            return f"{node.op} has no input {position}"
        formal = found[min(position, len(found) - 1)]
        if formal.allowed and value.dtype not in formal.allowed:
            names = ", ".join(sorted(onnx_name(d) for d in formal.allowed))
            return f"{node.op} takes no {_name(value.dtype)} at input {position} ({formal.name}); it takes {names}"
        if not formal.alike:
            continue
        first, dtype = bound.setdefault(formal.variable, (position, value.dtype))
        if value.dtype != dtype:
            return (
                f"{node.op} takes one type at inputs {first} and {position}, not {_name(dtype)} and "
                f"{_name(value.dtype)}; a Cast makes them alike"
            )
    return None


class _Formal:
    """A formal input: its type variable, the tensor types that it may have, and whether all of its kind are alike."""

    def __init__(self, parameter: onnx.defs.OpSchema.FormalParameter, types: set[str]) -> None:
        self.name = parameter.name
        self.variable = parameter.type_str
        self.variadic = parameter.option == onnx.defs.OpSchema.FormalParameterOption.Variadic
        self.alike = not self.variadic or parameter.is_homogeneous
        tensors = {t[len("tensor(") : -1] for t in types if t.startswith("tensor(")}
        self.allowed = frozenset(d for t in tensors if (d := _dtype(t)) is not None)
        # Of sequences and maps only some dtypes are known here, so whoever takes them is not checked.
        if any(t.startswith(("seq(", "map(", "optional(", "sparse")) for t in types):
            self.allowed, self.alike = frozenset(), False


@cache
def _signature(op_type: str, domain: str, version: int) -> list[_Formal] | None:
    schemas = _history(op_type, domain, version)
    if not schemas:
        return None
    found = []
    for position, parameter in enumerate(schemas[0].inputs):
        # A new version may allow less than an old one (ReduceLogSum-18 took integers), and nodes of both come here.
        older = [s.inputs[position].types for s in schemas if position < len(s.inputs)]
        found.append(_Formal(parameter, {t for types in older for t in types}))
    return found


def _history(op_type: str, domain: str, version: int) -> list[onnx.defs.OpSchema]:
    """The forms of an operator, from a version (0: the newest) to the oldest."""
    found = []
    try:
        newest = onnx.defs.get_schema(op_type, domain=domain)
        version = version or newest.since_version
        while version > 0:
            found.append(onnx.defs.get_schema(op_type, version, domain))
            version = found[-1].since_version - 1
    except onnx.defs.SchemaError:  # there is none as old as that
        pass
    return found


def _dtype(name: str) -> np.dtype | None:
    try:
        return from_name(name)
    except KeyError:
        return None


def _name(dtype: np.dtype) -> str:
    try:
        return onnx_name(dtype)
    except KeyError:
        return str(dtype)
