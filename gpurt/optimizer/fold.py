"""What can be computed before the run: nodes over constants, shapes that are known, branches that are decided."""

from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir

from gpurt import logs
from gpurt.errors import GpurtError
from gpurt.graph.edit import is_constant
from gpurt.infer import infer
from gpurt.loader import Views
from gpurt.optimizer import facts
from gpurt.optimizer.build import annotate
from gpurt.optimizer.transformer import Result, Tools
from gpurt.spec import Spec, Unknown

logger = logs.get(__name__)


class ConstantFolding:
    """f(constants) -> constant, bounded in size and time; computed by the host provider's kernels."""

    name = "ConstantFolding"

    def __init__(self) -> None:
        self._bytes = 0
        self._seconds = 0.0

    def apply(self, model: ir.Model, tools: Tools) -> Result:
        """Run once over the model; nodes come after what they read, so chains of any length fold."""
        result = Result()
        for graph in facts.all_graphs(model.graph):
            for node in list(graph):
                if self._candidate(node) and not self._operand(node, tools) and self._seconds < tools.fold_seconds:
                    start = time.perf_counter()
                    self._fold(graph, node, tools, result)
                    self._seconds += time.perf_counter() - start
        return result

    @staticmethod
    def _candidate(node: ir.Node) -> bool:
        if not facts.deterministic(node) or facts.has_body(node):
            return False
        return all(facts.absent(v) or is_constant(v) for v in node.inputs)

    @staticmethod
    def _operand(node: ir.Node, tools: Tools) -> bool:
        """Whether a node makes floats of numbers that an integer operator may take as they are."""
        if node.op_type != "DequantizeLinear" or not tools.integers or tools.owner is None:
            return False
        for user in node.outputs[0].consumers():
            owner = tools.owner(user)
            if any(user.op_type in ops for p, ops in tools.integers.items() if owner is None or p <= owner):
                return True
        return False

    def _fold(self, graph: ir.Graph, node: ir.Node, tools: Tools, result: Result) -> None:
        view = Views().node(node)  # views remember values, and these change with every fold
        if self._too_large(node, tools):
            return
        try:
            values = tools.evaluate(view, [None if v is None else v.const for v in view.inputs])
        except GpurtError as error:  # it may stand in a branch that is never taken, and if not, the run will say so
            logger.debug("%s is not folded: %s", node.name, error)
            return
        if values is None or not all(isinstance(v, np.ndarray) for v in values):
            return
        self._bytes += sum(v.nbytes for v in values)
        for old, content in zip(node.outputs, values, strict=False):
            if old.name != "":
                replace_by_constant(graph, old, content)
        result.remove(node, "constant")

    def _too_large(self, node: ir.Node, tools: Tools) -> bool:
        view = Views().node(node)
        try:
            outs = infer(view, [None if v is None or v.const is None else Spec.of(v.const) for v in view.inputs])
        except (Unknown, ValueError):
            return False
        size = sum(s.nbytes for s in outs)
        return size > tools.fold_bytes or self._bytes + size > tools.fold_total


class StaticShapes:
    """Shape(x), Size(x) -> constant where all dimensions of x are known."""

    name = "StaticShapes"

    def apply(self, model: ir.Model, tools: Tools) -> Result:  # noqa: ARG002 - every transformation is given the tools
        """Run once over the model."""
        result = Result()
        for graph in facts.all_graphs(model.graph):
            for node in list(graph):
                # onnx's inference ran before anything was folded.
                if not all(v.shape is not None and v.shape.is_static() for v in node.outputs):
                    annotate(node)
                content = self._content(node)
                if content is not None:
                    replace_by_constant(graph, node.outputs[0], content)
                    result.remove(node, "its input's shape is static")
        return result

    @staticmethod
    def _content(node: ir.Node) -> np.ndarray | None:
        if node.domain or node.op_type not in ("Shape", "Size"):
            return None
        dims = facts.shape(node.inputs[0])
        if dims is None:
            return None
        shape = np.asarray(dims, np.int64)
        if node.op_type == "Size":
            return np.asarray(shape.prod(), np.int64)
        return shape[facts.attr(node, "start", 0) : facts.attr(node, "end", len(dims))]


class ConstantBranches:
    """If(constant) -> the nodes of the branch that is taken."""

    name = "ConstantBranches"

    def apply(self, model: ir.Model, tools: Tools) -> Result:  # noqa: ARG002 - every transformation is given the tools
        """Run once over the model; a branch inside a branch is inner, and so comes first."""
        result = Result()
        for graph in facts.all_graphs(model.graph):
            for node in list(graph):
                condition = facts.scalar(node.inputs[0]) if node.op_type == "If" and not node.domain else None
                if condition is not None:
                    self._inline(graph, node, bool(condition), result)
        return result

    @staticmethod
    def _inline(graph: ir.Graph, node: ir.Node, condition: bool, result: Result) -> None:
        branch = node.attributes["then_branch" if condition else "else_branch"].as_graph()
        outputs, nodes, constants = list(branch.outputs), list(branch), list(branch.initializers.values())
        own = {*constants, *(v for n in nodes for v in n.outputs)}
        if not own.issuperset(outputs) or len(set(outputs)) < len(outputs):
            return
        branch.outputs.clear()
        branch.remove(nodes)
        branch.initializers.clear()
        for value in constants:  # names are unique in the whole model
            graph.register_initializer(value)
        graph.insert_before(node, nodes)
        for old, new in zip(node.outputs, outputs, strict=True):
            if not facts.absent(old):
                name, old.name = old.name, f"{old.name}__branch"
                new.name = name
                new.type = new.type if new.type is not None else old.type
                old.replace_all_uses_with(new, replace_graph_outputs=True)
        result.remove(node, f"its condition is always {condition}")


def replace_by_constant(graph: ir.Graph, old: ir.Value, content: np.ndarray) -> ir.Value:
    """Let an initializer with this content take the place and name of a value."""
    name = old.name or ""
    old.name = f"{name}__folded"
    new = facts.constant(content, name)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.register_initializer(new)
    return new
