"""Which nodes of a partition run as one unit: chains of elementwise nodes, with the products that feed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from gpurt.errors import GpurtError, RuntimeException
from gpurt.graph.view import GraphView, NodeView, ValueView
from gpurt_cpu.blockwise import Chain, Step
from gpurt_cpu.memory import Empty
from gpurt_cpu.ops import lookup, products
from gpurt_cpu.ops.images import Convolution, Upsampling
from gpurt_cpu.ops.table import Array
from gpurt_cpu.steps import affine, compute_for, constant, program_for, with_scaled_gates

MOST_NODES: Final = 64
# Their kernels yield memory of their own, which the chain that follows may overwrite.
_PRODUCTS: Final = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])


def groups(partition: GraphView) -> list[list[NodeView]]:
    """The nodes in groups, each in topological order, as the groups are.

    An elementwise node takes in the groups of its producers whose results nobody outside the group wants. Such a group
    stands at the position of its last node: all its inputs are there, and no node in between needs an inner value.
    """
    nodes = partition.nodes
    readers: dict[str, set[int]] = {}
    for number, node in enumerate(nodes):
        for v in node.inputs:
            if v is not None:
                readers.setdefault(v.name, set()).add(number)
    kept = {v.name for v in partition.outputs}
    members: dict[int, list[int]] = {}  # last node of a group -> all of it
    by_result: dict[str, int] = {}
    elementwise = [is_elementwise(n) for n in nodes]
    for number, node in enumerate(nodes):
        inside = {number}
        if elementwise[number]:
            found = True
            while found:
                found = False
                for name in {v.name for i in inside for v in nodes[i].inputs if v is not None} & by_result.keys():
                    group = members[by_result[name]]
                    alone = name not in kept and readers[name] <= inside
                    # A product that reads the result would have to run between steps of the chain.
                    if not alone or not all(elementwise[i] for i in readers[name]):
                        continue
                    if len(inside) + len(group) > MOST_NODES:
                        continue
                    inside.update(members.pop(by_result.pop(name)))
                    found = True
        members[number] = sorted(inside)
        if elementwise[number] or is_product(node):
            by_result[node.outputs[0].name] = number  # type: ignore[union-attr]
    return [[nodes[i] for i in members[last]] for last in sorted(members)]


def is_elementwise(node: NodeView) -> bool:
    """Whether the node can be a step of a chain."""
    if len([v for v in node.outputs if v is not None]) != 1 or node.outputs[0] is None:
        return False
    return _normalization(node) is not None or compute_for(node) is not None


def is_product(node: NodeView) -> bool:
    """Whether the node's kernel yields memory of its own, which a chain may take over."""
    out = node.outputs[0] if node.outputs else None
    return node.op_type in _PRODUCTS and not node.domain and out is not None and out.dtype == np.float32


def _normalization(node: NodeView) -> tuple[Array, Array] | None:
    """Scale and shift, by channel, of a BatchNormalization whose statistics are constants; else None."""
    if node.op_type != "BatchNormalization" or node.domain or node.attr("training_mode", 0):
        return None
    x, y = node.inputs[0], node.outputs[0]
    values = [constant(node, i) for i in range(1, 5)]
    if x is None or y is None or x.dtype != np.float32 or not x.rank or x.rank < 2:
        return None
    if any(v is None or v.dtype != np.float32 for v in values):
        return None
    scale, bias, mean, var = (v.astype(np.float64) for v in values if v is not None)
    factor = scale / np.sqrt(var + node.attr("epsilon", 1e-5))
    return factor, bias - mean * factor


def _channelwise(node: NodeView, source: str, rank: int | None) -> tuple[Array, Array] | None:
    """Scale and shift, by channel or of one element, that a node applies to the value named; None if it does not."""
    found = _normalization(node)
    if found is not None:
        x = node.inputs[0]
        return found if x is not None and x.name == source else None
    if node.op_type not in ("Add", "Sum", "Mul", "Sub", "Div") or len(node.inputs) != 2 or rank is None:
        return None
    names = [v.name if v is not None else "" for v in node.inputs]
    if names.count(source) != 1 or (node.op_type in ("Sub", "Div") and names[0] != source):
        return None
    const = constant(node, 1 - names.index(source))
    if const is None or const.ndim > rank or (const.size > 1 and (const.ndim < rank - 1 or rank < 2)):
        return None
    if const.size > 1 and const.shape[const.ndim - rank + 1] != const.size:
        return None
    c = const.reshape(-1).astype(np.float64)
    if node.op_type == "Mul":
        return c, np.zeros(1)
    if node.op_type == "Div":
        with np.errstate(divide="ignore"):
            return 1 / c, np.zeros(1)
    return np.ones(1), -c if node.op_type == "Sub" else c


def _upsampling(node: NodeView, weights: Array, bias: Array | None) -> Upsampling | None:
    """A ConvTranspose whose windows neither overlap nor are cut, or None if the node is another."""
    if weights.ndim != 4 or weights.dtype != np.float32 or (bias is not None and bias.dtype != np.float32):
        return None
    plain = node.attr("group", 1) == 1 and node.attr("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    zeros = not any(any(node.attr(name, None) or ()) for name in ("pads", "output_padding", "output_shape"))
    ones = all(d == 1 for d in node.attr("dilations", None) or ())
    fits = tuple(node.attr("strides", None) or (1, 1)) == weights.shape[2:]
    return Upsampling(weights, bias) if plain and zeros and ones and fits else None


class FusedUnit:
    """Products, and the elementwise chain that makes one result of them.

    Scales and shifts by channel that follow a convolution of constant weights go into its weights; those that follow
    each other become one.
    """

    def __init__(self, nodes: Sequence[NodeView], empty: Empty) -> None:
        self._empty = empty
        self.nodes: Sequence[NodeView] = tuple(nodes)
        self._readers: dict[str, int] = {}
        for node in nodes:
            for v in node.inputs:
                if v is not None:
                    self._readers[v.name] = self._readers.get(v.name, 0) + 1
        self._numbers: dict[str, int] = {}
        self._constants: dict[int, Array] = {}
        rest = [n for n in nodes if not is_product(n)]
        self._products: list[tuple[NodeView, Any, dict[str, Any], list[int | None], int]] = []
        self._convolution: Convolution | None = None
        for node in nodes:
            if is_product(node):
                rest = self._add_product(node, rest)
        last = nodes[-1].outputs[0]
        assert last is not None
        steps = with_scaled_gates(self._steps(rest), self._constants)
        self._chain = Chain(steps, empty, self._constants) if steps else None
        self._result = self._numbers[last.name]
        if self._chain is not None and self._convolution is not None and self._pointwise(self._chain):
            self._convolution.after, self._chain = self._after(self._chain), None
        made = {v.name for n in nodes for v in n.outputs if v is not None}
        # Constants are inputs too, though the unit holds what it needs of them: so the plan can infer shapes.
        names = [v.name for n in nodes for v in n.inputs if v is not None and v.name not in made]
        self.inputs: Sequence[str | None] = list(dict.fromkeys(names))
        self._entries = [self._numbers.get(str(n), -1) for n in self.inputs]
        self.outputs: Sequence[str | None] = [last.name]

    def call(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run the products, then the chain. Raises RuntimeException naming the node that fails."""
        values = dict(zip(self._entries, inputs, strict=True))
        values.update(self._constants)
        owned: list[int] = []
        node = self.nodes[-1]
        try:
            with np.errstate(all="ignore"):
                for product, fn, attrs, args, out in self._products:
                    node = product
                    values[out] = fn(*(None if a is None else values[a] for a in args), **attrs)
                    owned.append(out)
                node = self.nodes[-1]
                if self._chain is not None:
                    return (self._chain.run(values, owned),)
            return (values[self._result],)
        except GpurtError as e:
            e.node, e.op, e.provider = e.node or node.name, e.op or node.op, e.provider or "cpu"
            raise
        except Exception as e:
            raise RuntimeException(
                f"the kernel failed: {type(e).__name__}: {e}", node=node.name, op=node.op, provider="cpu"
            ) from e

    def _number(self, value: ValueView | None, *, content: bool = True) -> int:
        assert value is not None, "a step reads an input that is left out"
        number = self._numbers.setdefault(value.name, len(self._numbers))
        if content and value.const is not None:
            self._constants[number] = value.const
        return number

    def _add_product(self, node: NodeView, rest: list[NodeView]) -> list[NodeView]:
        """Put a product in front, with what can be folded into its weights; returns the nodes that are left."""
        kernel = lookup("", node.op_type)
        assert kernel is not None
        out = node.outputs[0]
        args = [None if v is None else self._number(v) for v in node.inputs]
        weights, bias = constant(node, 1), constant(node, 2)
        given = len(node.inputs) > 2 and node.inputs[2] is not None
        if node.op_type == "Conv" and weights is not None and weights.ndim > 2 and (bias is not None or not given):
            scale, shift, out, rest = self._absorbed(out, weights.ndim, rest, weights.shape[0])
            if out is not node.outputs[0]:
                start = np.zeros(1) if bias is None else bias.astype(np.float64)
                factor = np.broadcast_to(scale, (weights.shape[0],))
                folded = weights * factor.astype(np.float32).reshape(-1, *(1,) * (weights.ndim - 1))
                offset = np.broadcast_to(start * scale + shift, (weights.shape[0],)).astype(np.float32)
                args = [args[0], self._own(folded), self._own(offset)]
                weights, bias = folded, offset
            if weights.dtype == np.float32 and weights.ndim in (3, 4) and (bias is None or bias.dtype == np.float32):
                relu = self._sole_reader(out, rest, "Relu")
                if relu is not None:
                    out, rest = relu.outputs[0], [n for n in rest if n is not relu]
                self._convolution = Convolution(weights, bias, relu=relu is not None, **node.attrs)
                fn = partial(self._convolution, empty=self._empty)
                self._products.append((node, fn, {}, args[:1], self._number(out, content=False)))
                return rest
        attrs = dict(node.attrs)
        if node.op_type == "ConvTranspose" and weights is not None and (bias is not None or not given):
            upsampling = _upsampling(node, weights, bias)
            if upsampling is not None:
                fn = partial(upsampling, empty=self._empty)
                self._products.append((node, fn, {}, args[:1], self._number(out, content=False)))
                return rest
        if node.op_type in ("MatMul", "Gemm"):
            fn = partial(products.matmul if node.op_type == "MatMul" else products.gemm, empty=self._empty)
            self._products.append((node, fn, attrs, args, self._number(out, content=False)))
            return rest
        if kernel.wants_constants and weights is not None:
            attrs["prepared"] = {}
        self._products.append((node, kernel.fn, attrs, args, self._number(out, content=False)))
        return rest

    def _pointwise(self, chain: Chain) -> bool:
        """Whether a chain is a function of each element of the only product, which nothing else reads."""
        if len(self._products) != 1:
            return False
        numbers = set(chain.outside) - {self._products[0][4]}
        return all(n in self._constants and self._constants[n].size == 1 for n in numbers)

    def _after(self, chain: Chain) -> Callable[[Array], None]:
        """The chain as what happens to memory in place."""
        product = self._products[0][4]
        scalars = {n: self._constants[n].reshape(()) for n in chain.outside if n != product}
        end = chain.steps[-1].result
        self._result = product

        def run(part: Array) -> None:
            result = chain.run({product: part, **scalars}, [product])
            assert result is part, f"the chain that yields {end} makes memory of its own"

        return run

    def _sole_reader(self, value: ValueView | None, rest: Sequence[NodeView], op_type: str) -> NodeView | None:
        """The node that alone reads a value, if it is of a type."""
        if value is None or self._readers.get(value.name) != 1:
            return None
        found = (n for n in rest if n.op_type == op_type and not n.domain)
        return next((n for n in found if any(v is not None and v.name == value.name for v in n.inputs)), None)

    def _own(self, content: Array) -> int:
        number = self._numbers.setdefault(f"\0{len(self._numbers)}", len(self._numbers))
        self._constants[number] = content
        return number

    def _absorbed(
        self, value: ValueView | None, rank: int | None, rest: list[NodeView], channels: int | None = None
    ) -> tuple[Array, Array, ValueView | None, list[NodeView]]:
        """The scale and shift that the nodes after a value amount to, where they end, and the nodes that are left."""
        scale, shift = np.ones(1), np.zeros(1)
        while value is not None and self._readers.get(value.name) == 1:
            reader = next((n for n in rest if any(v is not None and v.name == value.name for v in n.inputs)), None)
            found = None if reader is None else _channelwise(reader, value.name, rank)
            if reader is None or found is None:
                break
            if channels is not None and max(found[0].size, found[1].size) not in (1, channels):
                break
            scale, shift = scale * found[0], shift * found[0] + found[1]
            value = reader.outputs[0]
            rest = [n for n in rest if n is not reader]
        return scale, shift, value, rest

    def _steps(self, rest: list[NodeView]) -> list[Step]:
        """The chain's steps; runs of scales and shifts are one."""
        steps: list[Step] = []
        while rest:
            node = rest[0]
            source = next((v for v in node.inputs if v is not None and v.const is None), None)
            rank = None if node.outputs[0] is None else node.outputs[0].rank
            found = None if source is None or source.rank != rank else _channelwise(node, source.name, rank)
            if found is not None and rank is not None and source is not None:
                scale, shift, end, left = self._absorbed(node.outputs[0], rank, rest[1:])
                if _normalization(node) is not None or len(left) < len(rest) - 1:
                    shift = found[1] * scale + shift
                    scale = found[0] * scale
                    view = (-1, *(1,) * (rank - 2))
                    parts = [c.astype(np.float32).reshape(view if c.size > 1 else ()) for c in (scale, shift)]
                    args = (self._number(source), *(self._own(c) for c in parts))
                    steps.append(Step(node, affine, args, self._number(end, content=False)))
                    rest = left
                    continue
            steps += self._node_steps(node)
            rest = rest[1:]
        return steps

    def _node_steps(self, node: NodeView) -> list[Step]:
        found = compute_for(node)
        assert found is not None, f"{node.op} was grouped"
        compute, count = found
        args = [self._number(v) for v in node.inputs[:count]]
        result = self._number(node.outputs[0], content=False)
        steps: list[Step] = []
        program = program_for(node)
        if program is not None:
            numbers = [args[0]]  # the input, then the results
            for compute, sources in program[:-1]:
                inner = self._numbers.setdefault(f"\0{len(self._numbers)}", len(self._numbers))
                steps.append(Step(node, compute, tuple(numbers[s + 1] for s in sources), inner, apart=True))
                numbers.append(inner)
            compute, sources = program[-1]
            return [*steps, Step(node, compute, tuple(numbers[s + 1] for s in sources), result)]
        if count <= 2:
            return [Step(node, compute, tuple(args), result)]
        for position, arg in enumerate(args[1:]):
            last = position == count - 2
            out = result if last else self._numbers.setdefault(f"\0{len(self._numbers)}", len(self._numbers))
            steps.append(Step(node, compute, (args[0] if position == 0 else steps[-1].result, arg), out))
        return steps
