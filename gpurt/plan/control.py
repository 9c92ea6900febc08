"""If, Loop and Scan: run by the framework over planned bodies; providers only ever see data operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gpurt.errors import InvalidArgument, RuntimeException, Unsupported
from gpurt.graph.view import NodeView
from gpurt.partitioner.result import ControlItem
from gpurt.plan.values import Held, Run

if TYPE_CHECKING:
    from gpurt.plan.runner import Site

CONTROL: Final = frozenset({"If", "Loop", "Scan"})


def execute(site: Site, item: ControlItem, run: Run, env: dict[str, Held]) -> None:
    """Run a control-flow node with its inputs and captures in env; its outputs are put into env."""
    node = item.node
    run_node = {"If": _if, "Loop": _loop, "Scan": _scan}.get(node.op_type)
    if run_node is None:
        raise Unsupported(
            f"control flow {node.op} is not supported", node=node.name, op=node.op, remedy="Use If, Loop or Scan"
        )
    outputs = run_node(site, item, run, env)
    for value, held in zip(node.outputs, outputs, strict=False):
        if value is not None:
            env[value.name] = held


def _body(
    site: Site, item: ControlItem, name: str, run: Run, env: dict[str, Held], inputs: Sequence[Held]
) -> list[Held]:
    graph = item.bodies[name]
    inner = {n: env[n] for n in graph.captures if n in env}
    inner.update(zip(graph.inputs, inputs, strict=True))
    return site.runner(graph).run(run, inner)


def _if(site: Site, item: ControlItem, run: Run, env: dict[str, Held]) -> list[Held]:
    condition = _input(item.node, 0, env)
    assert condition is not None
    truth = bool(np.ravel(condition.on_host(run))[0])
    return _body(site, item, "then_branch" if truth else "else_branch", run, env, ())


def _loop(site: Site, item: ControlItem, run: Run, env: dict[str, Held]) -> list[Held]:
    """Loop-24: trip count and condition are optional; scan outputs are stacked along a new first axis."""
    node = item.node
    trip, condition = _input(node, 0, env), _input(node, 1, env)
    most = None if trip is None else int(np.ravel(trip.on_host(run))[0])
    going = condition is None or bool(np.ravel(condition.on_host(run))[0])
    carried = [_require(node, i, env) for i in range(2, len(node.inputs))]
    scans: list[list[Held]] = [[] for _ in range(len(node.outputs) - len(carried))]
    body = item.bodies["body"]
    count = 0
    while going and (most is None or count < most):
        inputs = [Held(np.asarray(count, np.int64)), Held(np.asarray(True)), *carried]
        outputs = _body(site, item, "body", run, env, inputs[: len(body.inputs)])
        going = bool(np.ravel(outputs[0].on_host(run))[0])
        carried = outputs[1 : 1 + len(carried)]
        for scan, held in zip(scans, outputs[1 + len(carried) :], strict=False):
            scan.append(held)
        count += 1
    stacked = [_stack(node, "body", 1 + len(carried) + i, s, 0, run) for i, s in enumerate(scans)]
    return [*carried, *stacked]


def _scan(site: Site, item: ControlItem, run: Run, env: dict[str, Held]) -> list[Held]:
    """Scan-9 to 25: axes and directions of the scanned inputs and outputs are attributes."""
    node = item.node
    count = int(node.attr("num_scan_inputs"))
    states = [_require(node, i, env) for i in range(len(node.inputs) - count)]
    scanned = [_require(node, i, env).on_host(run) for i in range(len(states), len(node.inputs))]
    axes = node.attr("scan_input_axes") or (0,) * count
    backward = node.attr("scan_input_directions") or (0,) * count
    lengths = {a.shape[axis] for a, axis in zip(scanned, axes, strict=True)}
    if len(lengths) != 1:
        raise InvalidArgument(
            f"the scanned inputs have lengths {sorted(lengths)}", node=node.name, op="Scan", remedy="They must agree"
        )
    (length,) = lengths
    moved = [np.moveaxis(a, axis, 0) for a, axis in zip(scanned, axes, strict=True)]
    wanted = len(node.outputs) - len(states)
    scans: list[list[Held]] = [[] for _ in range(wanted)]
    for step in range(length):
        slices = [a[length - 1 - step if back else step] for a, back in zip(moved, backward, strict=True)]
        outputs = _body(site, item, "body", run, env, [*states, *(Held(np.array(s, order="C")) for s in slices)])
        states = outputs[: len(states)]
        for scan, held in zip(scans, outputs[len(states) :], strict=False):
            scan.append(held)
    out_axes = node.attr("scan_output_axes") or (0,) * wanted
    out_back = node.attr("scan_output_directions") or (0,) * wanted
    stacked = []
    for i, scan in enumerate(scans):
        ordered = scan[::-1] if out_back[i] else scan
        stacked.append(_stack(node, "body", len(states) + i, ordered, out_axes[i], run))
    return [*states, *stacked]


def _stack(node: NodeView, body: str, position: int, values: Sequence[Held], axis: int, run: Run) -> Held:
    if values:
        arrays: list[Any] = [v.on_host(run) for v in values]
        shapes = {a.shape for a in arrays}
        if len(shapes) > 1:
            raise RuntimeException(
                f"scan output {position} has shapes {sorted(shapes)} in different iterations",
                node=node.name,
                op=node.op,
            )
        return Held(np.stack(arrays, axis if axis >= 0 else axis + arrays[0].ndim + 1))
    # No iteration: an empty tensor whose inner shape comes from what the body declares, with 0 for unknown dimensions.
    view = node.attr(body).outputs[position]
    inner = [d if isinstance(d, int) else 0 for d in view.shape or ()]
    inner.insert(axis if axis >= 0 else axis + len(inner) + 1, 0)
    return Held(np.zeros(inner, view.dtype if view.dtype is not None else np.float32))


def _input(node: NodeView, position: int, env: dict[str, Held]) -> Held | None:
    value = node.inputs[position] if position < len(node.inputs) else None
    return None if value is None else env[value.name]


def _require(node: NodeView, position: int, env: dict[str, Held]) -> Held:
    held = _input(node, position, env)
    return Held(None) if held is None else held
