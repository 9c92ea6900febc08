"""Provider-neutral transformations of the graph, before it is partitioned."""

from gpurt.optimizer.passes import Evaluate, GraphTransformer, Removed, optimize

__all__ = ["Evaluate", "GraphTransformer", "Removed", "optimize"]
