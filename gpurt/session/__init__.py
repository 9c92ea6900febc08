"""The session: the pipeline from a model file to plans that run."""

from gpurt.session.binding import IOBinding
from gpurt.session.explain import Explanation
from gpurt.session.node_arg import NodeArg
from gpurt.session.session import InferenceSession

__all__ = ["Explanation", "IOBinding", "InferenceSession", "NodeArg"]
