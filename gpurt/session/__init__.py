"""The session: the pipeline from a model file to plans that run."""

from gpurt.session.binding import IOBinding
from gpurt.session.explain import Explanation
from gpurt.session.session import InferenceSession, NodeArg

__all__ = ["Explanation", "IOBinding", "InferenceSession", "NodeArg"]
