"""Reverse-mode differentiation of graphs: each Gradient node becomes the ordinary nodes that compute its outputs."""

from gpurt.autodiff.gradient import differentiate
from gpurt.autodiff.table import Step, rule

__all__ = ["Step", "differentiate", "rule"]
