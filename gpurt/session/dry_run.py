"""A dry run: the decision for a model, what it copies, how long it should take and what memory it needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from gpurt.errors import Fail, InvalidArgument, suggest
from gpurt.graph.view import GraphView, NodeView
from gpurt.loader import GraphInput, Views
from gpurt.partitioner import Decisions, Settings
from gpurt.partitioner.budget import Resident, overflow
from gpurt.partitioner.cost import work
from gpurt.partitioner.decide import estimate
from gpurt.partitioner.estimate import Estimate
from gpurt.partitioner.flow import HOST_VERTEX, Value, levels, values
from gpurt.partitioner.placement import memory_limit, spaces, specs_of, streams, transfer_seconds
from gpurt.partitioner.rates import rates
from gpurt.provider import HOST, Provider, Rates
from gpurt.session.explain import Explanation


class NotCompiled:
    """Stands in a dry run for everything that compiling would have made."""

    def __getattr__(self, name: str) -> Any:
        raise Fail("a dry run has compiled nothing that could run", remedy="Make a session without dry_run")


def check_shapes(shapes: Mapping[str, Sequence[int]], inputs: Sequence[GraphInput]) -> None:
    """Shapes to reckon with must fit the model's inputs; raises InvalidArgument."""
    known = {i.name: i for i in inputs}
    if not isinstance(shapes, Mapping):
        raise InvalidArgument(f"expected_shapes is {shapes!r}", remedy='Give {"x": (1, 3, 224, 224)}')
    for name, shape in shapes.items():
        if name not in known:
            raise InvalidArgument(
                f"the model has no input {name!r}{suggest(str(name), known)}",
                remedy=f"Its inputs are {', '.join(known) or 'none'}",
            )
        sizes = isinstance(shape, Sequence) and all(isinstance(n, (int, np.integer)) and n >= 0 for n in shape)
        if not sizes:
            raise InvalidArgument(f"the shape of {name!r} is {shape!r}", remedy="Give a tuple of sizes")
        declared = known[name].shape
        if declared is not None and (
            len(declared) != len(shape)
            or any(isinstance(d, int) and 0 <= d != n for d, n in zip(declared, shape, strict=True))
        ):
            raise InvalidArgument(f"the shape {list(shape)} does not fit input {name!r}", remedy=f"It is {declared}")


def predict(
    model: ir.Model,
    providers: Sequence[Provider],
    owners: Mapping[str, int],
    groups: Sequence[tuple[int, tuple[str, ...]]],
    decisions: Decisions,
    settings: Settings,
) -> Explanation:
    """Describe a placed model that is not compiled.

    Besides what Explanation.to_dict tells of a session there is ``predicted``: ``assumed`` are the inputs' shapes,
    ``devices`` has by device ``nodes``, ``seconds``, ``weights``, ``streamed`` (bytes of these that each run copies, at
    least) and ``peak`` (bytes of the values alive at once),
    ``copies_seconds`` is the time of all copies and waits, and ``seconds`` the sum of it all.
    """
    graph = Views().graph(model.graph)
    shapes = estimate(graph, providers, settings.shapes)
    speeds = [rates(p, settings.folder) for p in providers]
    found = levels(graph, shapes.trips)
    known = {n for level in found for n in level.known}
    order = [n for level in found for n in level.graph.nodes]
    device = {n.name: providers[owners[n.name]].device for n in order}
    host = next(p.device for p in providers if p.memory_space == HOST)
    made = values(graph, found, set(), shapes.trips)
    folded = {n.name for n in order if n.outputs and all(v is None or v.name in known for v in n.outputs)}

    member = {name: group for _, group in groups for name in group}
    records = []
    for node in _all_nodes(graph):
        fused = list(member.get(node.name, ()))
        if fused and node.name != fused[-1]:
            continue
        refused = {d: r for n in fused or [node.name] for d, r in decisions.refused.get(n, {}).items()}
        provider = providers[owners[node.name]]
        records.append(
            {
                "name": node.name,
                "op_type": node.op_type,
                "domain": node.domain,
                "provider": provider.name,
                "device": provider.device,
                "fused_from": fused,
                "refused": refused,
            }
        )
    copies, copying = _copies(made, providers, owners, speeds, shapes, host)
    seconds: dict[str, float] = defaultdict(float)
    for level in found:
        followed = _followers(level.graph, owners)
        for node in level.graph.nodes:
            if node.name in folded or any(isinstance(a, GraphView) for a in node.attrs.values()):
                continue
            position = owners[node.name]
            job = work(node, *specs_of(node, shapes))
            took = job.seconds(speeds[position])
            if node.name in followed and providers[position].memory_space != HOST:
                took = max(took - speeds[position].launch, 0.0) / 2  # computed where its input was made
            seconds[device[node.name]] += level.times * took
    devices: dict[str, Any] = {}
    for position, provider in enumerate(providers):
        mine = [n for n in order if owners[n.name] == position and n.name not in folded]
        resident = Resident(shapes)
        weights = {name: n for node in mine for name, n in resident.weights(node).items()}
        _, needed = overflow(mine, made, resident, 0)
        limit, total = memory_limit(provider), sum(weights.values())
        devices[provider.device] = {
            "nodes": sum(r["device"] == provider.device for r in records),
            "seconds": seconds[provider.device],
            "weights": total,
            "streamed": max(0, min(needed - limit, total)) if limit and streams(provider) else 0,
            "peak": needed - total,
        }
    return Explanation(
        {
            "version": 1,
            "nodes": records,
            "removed": list(decisions.removed),
            "copies": copies,
            "casts": list(decisions.casts),
            "layouts": list(decisions.layouts),
            "predicted": {
                "assumed": {v.name: list(s.shape) for v in graph.inputs if (s := shapes.specs.get(v.name)) is not None},
                "devices": devices,
                "copies_seconds": copying,
                "seconds": copying + sum(seconds.values()),
            },
        }
    )


def _copies(
    made: Sequence[Value], providers: Sequence[Provider], owners: Mapping[str, int], speeds: Sequence[Rates],
    shapes: Estimate, host: str,
) -> tuple[list[dict[str, Any]], float]:  # fmt: skip
    """Predicted copies, one for each value and device that reads it, and the seconds they take together."""
    numbers = spaces(providers)
    by_number = {n: (p, r) for n, p, r in zip(numbers, providers, speeds, strict=True) if n}

    def space(name: str) -> int:
        return 0 if name == HOST_VERTEX or name not in owners else numbers[owners[name]]

    found, seconds = [], 0.0
    for value in made:
        home = space(value.maker)
        wanted: dict[int, float] = {}
        causes: dict[int, str] = {}
        for reader, times in value.readers.items():
            target = space(reader)
            if target != home:
                # What devices that share the host's memory pass to it is a wait, and no copy.
                wanted[target] = max(wanted.get(target, 0.0), times)
                causes.setdefault(target, f"read by {reader}" if reader else "wanted on the host")
        nbytes = shapes.nbytes(value.name)
        if home and wanted:
            seconds += max(wanted.values()) * transfer_seconds(*by_number[home], nbytes)[0]
        for target, times in wanted.items():
            source, to = (host if not s else by_number[s][0].device for s in (home, target))
            if target:
                seconds += times * transfer_seconds(*by_number[target], nbytes)[1]
            cause = causes[target]
            if not any(getattr(by_number[s][0], "shares_host", False) for s in (home, target) if s):
                found.append({"value": value.name, "from": source, "to": to, "bytes": nbytes, "cause": cause})
    return found, seconds


def _followers(graph: GraphView, owners: Mapping[str, int]) -> set[str]:
    """Elementwise nodes whose first input has no other reader and is made on the same device: providers fuse them."""
    readers: dict[str, int] = defaultdict(int)
    for node in graph.nodes:
        for value in node.inputs:
            if value is not None:
                readers[value.name] += 1
    producer = {v.name: n.name for n in graph.nodes for v in n.outputs if v is not None}
    found = set()
    for node in graph.nodes:
        for value in node.inputs:
            source = None if value is None else producer.get(value.name)
            if source is None or value is None or readers[value.name] != 1 or owners[source] != owners[node.name]:
                continue
            out = node.outputs[0] if node.outputs else None
            if node.op_type in _ELEMENTWISE and out is not None and not node.domain:
                found.add(node.name)
    return found


_ELEMENTWISE: Final = {
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Min",
        "Max",
        "Neg",
        "Abs",
        "Sqrt",
        "Exp",
        "Erf",
        "Cast",
        "Clip",
        "Relu",
        "LeakyRelu",
    ),
    *("PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Tanh", "Gelu", "BatchNormalization"),
}


def _all_nodes(graph: GraphView) -> Iterator[NodeView]:
    for node in graph.nodes:
        for body in node.attrs.values():
            if isinstance(body, GraphView):
                yield from _all_nodes(body)
        yield node
