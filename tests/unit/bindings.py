"""Runs of sessions with bound inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpurt import InferenceSession, Tensor


def run(session: InferenceSession, inputs: Mapping[str, Any], outputs: Mapping[str, str | Tensor]) -> list[Tensor]:
    """Run with inputs bound, and each output bound to a device by name or to memory; what the binding then holds."""
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        if isinstance(value, str):
            binding.bind_output(name, value)
        else:
            binding.bind_ortvalue_output(name, value)
    session.run_with_iobinding(binding)
    return binding.get_outputs()
