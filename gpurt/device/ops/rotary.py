"""RotaryEmbedding: pairs of elements that turn by the angle of their position."""

from __future__ import annotations

from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering
from gpurt.device.ops.movement import launch_rows
from gpurt.device.scalars import i32, i64
from gpurt.device.table import op
from gpurt.graph.view import NodeView
from gpurt.provider import Refused


def _rotary_check(node: NodeView, info: DeviceInfo) -> str | None:  # noqa: ARG001
    x = node.inputs[0]
    if x is not None and x.rank == 3 and not node.attr("num_heads", 0):
        return "RotaryEmbedding of rank 3 without num_heads"
    return None


@op("RotaryEmbedding", types={None: "float32 float16", 3: "int64"}, check=_rotary_check)
def rotary_embedding(c: Lowering) -> None:
    """RotaryEmbedding-23."""
    x, y, node = c.input(0), c.output(), c.node
    if y.size == 0:
        return
    if len(x.shape) == 4:
        batch, heads, length, size = x.shape
    else:
        batch, length, hidden = x.shape
        heads = node.attr("num_heads", 0)
        if not heads or hidden % heads:
            raise Refused(f"RotaryEmbedding: {hidden} elements do not divide into {heads} heads")
        size = hidden // heads
    half = (node.attr("rotary_embedding_dim", 0) or size) // 2
    cosines, sines = c.input(1), c.input(2)
    places = c.input(3).shape if c.has(3) else cosines.shape[:-1]
    wanted = 2 if c.has(3) else 3
    if 2 * half > size or cosines.shape != sines.shape or len(cosines.shape) != wanted or cosines.shape[-1] != half:
        raise Refused(f"RotaryEmbedding: tables of {list(cosines.shape)} for {half} angles")
    if len(places) != 2 or places[0] not in (1, batch) or places[1] != length or cosines.size == 0:
        raise Refused(f"RotaryEmbedding: {list(places)} positions for {batch} sequences of {length}")
    defines: dict[str, int | float | str] = {"ROTARY": 1}
    if len(x.shape) == 4:
        defines["HEADS_FIRST"] = 1
    if c.has(3):
        defines["POSITIONS"] = 1
    if node.attr("interleaved", 0):
        defines["INTERLEAVED"] = 1
    launch_rows(
        c,
        "recurrence.cl",
        "rotary",
        [
            x, cosines, sines, *([c.input(3)] if c.has(3) else []), y, i32(heads), i32(length),
            i32(half), i64(0 if places[0] == 1 else length), i64(cosines.shape[0]),
        ],
        batch * heads * length,
        size,
        types={"T": x.dtype},
        defines=defines,
        work=4,
    )  # fmt: skip
