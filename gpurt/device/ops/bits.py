"""BitCast: the same bits under another element type."""

from __future__ import annotations

import numpy as np

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering
from gpurt.device.table import ANY, op
from gpurt.dtypes import from_onnx
from gpurt.graph.view import NodeView


def _check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    given = node.inputs[0].dtype if node.inputs[0] is not None else None
    # Kernels count on a bool to be 0 or 1.
    if from_onnx(int(node.attr("to"))) == np.bool_ and given != np.bool_:
        return "BitCast to bool from a type that has other values than 0 and 1"
    return None


@op("BitCast", types=ANY, check=_check)
def bit_cast(c: Lowering) -> None:
    """BitCast-26: the result is the input's memory."""
    c.alias()
