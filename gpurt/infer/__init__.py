"""Shape and dtype rules: for each operator in canonical form, the outputs' Specs from the inputs' Specs.

Planning runs these with concrete shapes; nothing here looks at symbolic dimensions or touches a device.
"""

from gpurt.infer.table import infer, known, rule

__all__ = ["infer", "known", "rule"]
