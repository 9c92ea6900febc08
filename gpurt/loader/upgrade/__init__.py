"""Old forms of operators rewritten to the newest: below the loader nothing ever asks for an opset.

``registry`` holds the table, ``site`` what rules work with; the other modules are the rules, by kind of operator.
"""

from __future__ import annotations

import onnx_ir as ir

from gpurt.loader.names import Names
from gpurt.loader.opsets import CANONICAL_OPSETS, since
from gpurt.loader.upgrade import rules_legacy, rules_math, rules_ml, rules_nn, rules_scan, rules_shape  # noqa: F401
from gpurt.loader.upgrade.registry import LEGACY, RULES, Rule
from gpurt.loader.upgrade.site import ORIGIN, Site
from gpurt.loader.walk import graphs

__all__ = ["ORIGIN", "is_legacy", "upgrade", "upgrade_node", "wants_types"]


def is_legacy(op_type: str, domain: str) -> bool:
    """Whether there is a rule for an experimental operator that ONNX's schemas have forgotten."""
    return (domain, op_type) in LEGACY


def wants_types(model: ir.Model) -> bool:
    """Whether a rule that will run does better with dtypes and ranks."""
    return any(rule.types for graph in graphs(model.graph) for node in graph for rule in _rules(node))


def upgrade(model: ir.Model, names: Names) -> None:
    """Bring every node of a model to its canonical form; ``node.version`` is its opset before and its form's after."""
    for graph in graphs(model.graph):
        for node in list(graph):
            upgrade_node(graph, node, names)


def upgrade_node(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    """Bring one node to its canonical form; it may be replaced by others."""
    if node.domain not in CANONICAL_OPSETS:
        return  # a provider's own operator: its version stays what the model imports
    opset = node.version or CANONICAL_OPSETS[node.domain]
    before = node.op_type
    if node.domain == "" and opset < 7:
        node.attributes.pop("consumed_inputs", None)  # a hint for in-place execution that opset 1 put on every operator
    for rule in _rules(node):
        rule.fn(Site(graph, node, names, opset))
        if node.graph is None:
            return
        if node.op_type != before:
            break
    node.version = since(node.op_type, node.domain)


def _rules(node: ir.Node) -> list[Rule]:
    opset = node.version or CANONICAL_OPSETS.get(node.domain, 1)
    return [rule for rule in RULES.get((node.domain, node.op_type), ()) if opset <= rule.upto]
