"""Elementwise operators as C expressions, one text for scalar OpenCL, eight-wide OpenCL and CUDA.

Templates are format strings over {a}, {b}, {c} (operands), {f} (prefix of the helper functions in math.h, by type),
{t} (prefix of those in integer.h), {T} (type of the result), {U} (as the unsigned type, in which integers wrap) and the
names of an operator's attributes. Reals are written as C doubles; where the operand is single they get the suffix f.
Conditions are vectors of 0 and -1 in eight-wide code: a text combines them with & and | and never counts with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from gpurt.device.ops.registers import F16, F32, F64, FLOAT8, cast, literals, prefix, register, unsigned, width
from gpurt.dtypes import kernel_name
from gpurt.graph.view import NodeView
from gpurt.spec import Spec


@dataclass(slots=True)
class Site:
    """Where an expression is written: its node, the variables of its operands and what is known of them."""

    node: NodeView
    args: Sequence[str | None]
    dtypes: Sequence[np.dtype | None]
    dtype: np.dtype
    vector: bool
    consts: Sequence[np.ndarray | None] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)

    def has(self, position: int) -> bool:
        """Whether an operand is present."""
        return position < len(self.args) and self.args[position] is not None

    def arg(self, position: int) -> str:
        """Variable of an operand, which is then read."""
        name = self.args[position]
        assert name is not None
        self.used.add(position)
        return name

    def of(self, position: int = 0) -> np.dtype:
        """Dtype of an operand."""
        dtype = self.dtypes[position]
        assert dtype is not None
        return dtype

    def const(self, position: int) -> float | None:
        """Content of an operand that is one known number."""
        array = self.consts[position] if position < len(self.consts) else None
        return None if array is None or array.size != 1 else float(array.reshape(()))

    @property
    def real(self) -> bool:
        """Whether the first operand is of a floating type."""
        return self.of().kind == "f"

    def format(self, template: str) -> str:
        """A template with operands, helpers and attributes filled in."""
        return template.format_map(_Names(self))

    def condition(self, text: str) -> str:
        """A comparison of first operands as the value of a bool."""
        return f"convert_int8({text})" if self.vector and width(self.of()) != 4 else text


class _Names(dict[str, str]):
    # Looks names up only when a template mentions them, so that operands count as read only then.
    def __init__(self, site: Site) -> None:
        self._site = site

    def __missing__(self, name: str) -> str:
        site = self._site
        if name in site.params:
            return site.params[name]
        if name == "f":
            return prefix(site.of(), site.vector)
        if name == "t":
            return kernel_name(site.of()) + "_"
        if name == "T":
            return register(site.dtype, site.vector)
        if name == "U":
            return unsigned(site.of(), site.vector)
        return site.arg("abc".index(name))


Text = str | Callable[[Site], str]


@dataclass(frozen=True, slots=True)
class Expression:
    """How an operator is computed.

    Attributes:
        real: text for floating operands; None where they are not supported.
        whole: text for integers.
        truth: text for bool.
        params: attributes that become scalar arguments, with their defaults.
        condition: whether the result is bool by comparison of the operands.
        costly: whether repeating it for each use of a broadcast value would cost more than storing the value.
        scalar: says for which nodes the text cannot be eight-wide, by node and operand dtypes.
        arrange: views operands that do not broadcast as they are, such as a scale for each index of an axis.
    """

    real: Text | None = None
    whole: Text | None = None
    truth: Text | None = None
    params: tuple[tuple[str, float], ...] = ()
    condition: bool = False
    costly: bool = False
    scalar: Callable[[NodeView, Sequence[np.dtype | None], np.dtype], bool] | None = None
    arrange: Callable[[NodeView, Sequence[Any], Spec], Sequence[Any]] | None = None

    def write(self, site: Site) -> str:
        """The expression's text; its value has the type register(site.dtype)."""
        kind = site.of().kind
        text = self.real if kind == "f" else self.truth if kind == "b" else self.whole
        assert text is not None, f"{site.node.op} has no expression for {site.of()}"
        written = site.format(text) if isinstance(text, str) else text(site)
        written = literals(written, site.of())
        if self.condition:
            return site.condition(written)
        return written


def _whole_is_scalar(_: NodeView, dtypes: Sequence[np.dtype | None], __: np.dtype) -> bool:
    return dtypes[0] is not None and dtypes[0].kind in "iu"


def _fold(binary: str) -> Callable[[Site], str]:
    # (a op b) op c ... as nested text; each operand appears once.
    def write(site: Site) -> str:
        text = site.arg(0)
        for i in range(1, len(site.args)):
            text = binary.format(a=text, b=site.arg(i), f=prefix(site.of(), site.vector))
        return text

    return write


def _mean(site: Site) -> str:
    return f"({_fold('{a} + {b}')(site)}) / {float(len(site.args))!r}"


def _clip(low: str, high: str) -> Callable[[Site], str]:
    # The lower bound first: where the bounds cross, the upper one wins.
    def write(site: Site) -> str:
        f = prefix(site.of(), site.vector)
        text = site.arg(0)
        if site.has(1):
            text = low.format(a=text, b=site.arg(1), f=f)
        return high.format(a=text, b=site.arg(2), f=f) if site.has(2) else text

    return write


def _mod(site: Site) -> str:
    name = "fmod" if site.node.attr("fmod", 0) else "mod"
    if site.real:
        return site.format("fmod({a}, {b})" if name == "fmod" else "{f}mod({a}, {b})")
    return site.format("{t}" + name + "({a}, {b})")


_POWERS: Final = {1.0: "{a}", 2.0: "{a} * {a}", 3.0: "{a} * {a} * {a}", 0.5: "sqrt({a})", -1.0: "1.0 / {a}"}


def _power(site: Site) -> str:
    known = _POWERS.get(site.const(1) or 0.0)
    if known is not None and site.real:
        return site.format(known)
    exponent = site.of(1)
    if site.real:
        wide = F64 if site.of() == F64 else F32
        return f"pow({site.arg(0)}, {cast(site.arg(1), exponent, wide, site.vector)})"
    if exponent.kind == "f":
        return f"pow((double){site.arg(0)}, (double){site.arg(1)})"
    y = site.arg(1)
    negative = f"{y} < 0" if exponent.kind == "i" else "0"
    return site.format("{t}pow({a}, (u64)" + y + f", {negative})")


def _power_is_scalar(_: NodeView, dtypes: Sequence[np.dtype | None], __: np.dtype) -> bool:
    return dtypes[0] not in (F16, F32)  # PoCL's pow of double8 gives wrong lanes beside infinities


def _shift(site: Site) -> str:
    return site.format("{t}shl({a}, {b})" if site.node.attr("direction") == "LEFT" else "{t}shr({a}, {b})")


def _is_inf(site: Site) -> str:
    tests = [
        test
        for name, test in (("detect_positive", "({a} == INFINITY)"), ("detect_negative", "({a} == -INFINITY)"))
        if site.node.attr(name, 1)
    ]
    return site.format(" | ".join(tests) or "({a} != {a}) & ({a} == {a})")


def _where(site: Site) -> str:
    condition = site.arg(0)
    if site.vector and width(site.dtype) != 4:
        condition = f"convert_{register(np.dtype(f'i{width(site.dtype)}'), True)}({condition})"
    return f"{condition} ? {site.arg(1)} : {site.arg(2)}"


def _cast(site: Site) -> str:
    flags = int(bool(site.node.attr("saturate", 1))) + _ROUND_MODES[site.node.attr("round_mode", "up")]
    return cast(site.arg(0), site.of(), site.dtype, site.vector, flags)


_ROUND_MODES: Final = {"up": 0, "nearest": 2, "down": 4}


def narrow_is_scalar(_: NodeView, dtypes: Sequence[np.dtype | None], dtype: np.dtype) -> bool:
    """Whether float8, which is converted one element at a time, is read or written."""
    return dtype in FLOAT8 or any(d in FLOAT8 for d in dtypes)


def _cast_is_scalar(node: NodeView, dtypes: Sequence[np.dtype | None], dtype: np.dtype) -> bool:
    source = dtypes[0]
    if narrow_is_scalar(node, dtypes, dtype):
        return True
    return source is not None and ((dtype == F16 and source == F64) or (dtype == np.uint64 and source.kind == "f"))


def _shrink_whole(site: Site) -> str:
    x = f"(double){site.arg(0)}"
    text = f"({x} < -{{lambd}} ? {x} + {{bias}} : {x} > {{lambd}} ? {x} - {{bias}} : 0.0)"
    return cast(site.format(text), F64, site.dtype, False)


def _gelu(site: Site) -> str:
    return site.format("{f}gelu_tanh({a})" if site.node.attr("approximate", "none") == "tanh" else "{f}gelu({a})")


def _biased(function: str) -> Callable[[Site], str]:
    return lambda site: site.format(f"{{f}}{function}({{a}} + {{b}})" if site.has(1) else f"{{f}}{function}({{a}})")


def _real(text: Text, *, costly: bool = False, **params: float) -> Expression:
    return Expression(text, params=tuple(params.items()), costly=costly)


# Built-ins of both dialects whose names are the operators'.
_FUNCTIONS: Final = (
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Exp", "Log", "Sinh",
)  # fmt: skip
_COMPARISONS: Final = {"Less": "<", "LessOrEqual": "<=", "Greater": ">", "GreaterOrEqual": ">="}

EXPRESSIONS: Final[dict[tuple[str, str], Expression]] = {
    **{("", name): _real(f"{name.lower()}({{a}})", costly=True) for name in _FUNCTIONS},
    **{("", name): Expression(f"{{a}} {sign} {{b}}", f"{{a}} {sign} {{b}}", condition=True)
       for name, sign in _COMPARISONS.items()},
    **{("", name): Expression(whole=f"{{a}} {sign} {{b}}")
       for name, sign in (("BitwiseAnd", "&"), ("BitwiseOr", "|"), ("BitwiseXor", "^"))},
    **{("", name): Expression(truth=f"{{a}} {sign} {{b}}") for name, sign in (("And", "&"), ("Or", "|"), ("Xor", "^"))},
    ("", "Equal"): Expression("{a} == {b}", "{a} == {b}", "{a} == {b}", condition=True),
    ("", "IsInf"): Expression(_is_inf, condition=True),
    ("", "IsNaN"): Expression("{a} != {a}", condition=True),
    ("", "Not"): Expression(truth="{a} == 0"),
    ("", "BitwiseNot"): Expression(whole="~{a}"),
    ("", "BitShift"): Expression(whole=_shift, scalar=_whole_is_scalar),
    ("", "Add"): Expression("{a} + {b}", "{U}({a}) + {U}({b})"),
    ("", "Sub"): Expression("{a} - {b}", "{U}({a}) - {U}({b})"),
    ("", "Mul"): Expression("{a} * {b}", "{U}({a}) * {U}({b})"),
    ("", "Div"): Expression("{a} / {b}", "{t}div({a}, {b})", scalar=_whole_is_scalar),
    # PoCL's eight-wide fmod gives wrong lanes beside a lane that divides by zero.
    ("", "Mod"): Expression(_mod, _mod, costly=True, scalar=lambda *_: True),
    ("", "Pow"): Expression(_power, _power, costly=True, scalar=_power_is_scalar),
    ("", "Abs"): Expression("fabs({a})", "{a} < ({T})0 ? -{U}({a}) : {U}({a})"),
    ("", "Neg"): Expression("-{a}", "-{U}({a})"),
    ("", "Sign"): Expression("{a} > 0.0 ? 1.0 : {a} < 0.0 ? -1.0 : {a}",
                             "{a} > ({T})0 ? ({T})1 : {a} < ({T})0 ? ({T})-1 : {a}"),
    ("", "Ceil"): _real("ceil({a})"),
    ("", "Floor"): _real("floor({a})"),
    ("", "Round"): _real("rint({a})"),
    ("", "Sqrt"): _real("sqrt({a})"),
    ("", "Reciprocal"): _real("1.0 / {a}"),
    ("", "Sin"): _real("{f}sin({a})", costly=True),
    ("", "Cos"): _real("{f}cos({a})", costly=True),
    ("", "Tan"): _real("{f}tan({a})", costly=True),
    ("", "Erf"): _real("{f}erf({a})", costly=True),
    ("", "Tanh"): _real("{f}tanh({a})", costly=True),
    ("", "Max"): Expression(_fold("{f}max({a}, {b})"), _fold("max({a}, {b})")),
    ("", "Min"): Expression(_fold("{f}min({a}, {b})"), _fold("min({a}, {b})")),
    ("", "Sum"): _real(_fold("{a} + {b}")),
    ("", "Mean"): _real(_mean),
    ("", "Clip"): Expression(_clip("{f}max({a}, {b})", "{f}min({a}, {b})"), _clip("max({a}, {b})", "min({a}, {b})")),
    ("", "Where"): Expression(truth=_where),
    ("", "Cast"): Expression(_cast, _cast, _cast, scalar=_cast_is_scalar),
    ("", "CastLike"): Expression(_cast, _cast, _cast, scalar=_cast_is_scalar),
    ("", "Relu"): Expression("{a} < 0.0 ? 0.0 : {a}", "{a} < ({T})0 ? ({T})0 : {a}"),
    ("", "LeakyRelu"): _real("{a} < 0.0 ? {alpha} * {a} : {a}", alpha=0.01),
    ("", "PRelu"): Expression("{a} < 0.0 ? {b} * {a} : {a}", "{a} < ({T})0 ? {U}({a}) * {U}({b}) : {U}({a})"),
    ("", "ThresholdedRelu"): _real("{a} > {alpha} ? {a} : 0.0", alpha=1.0),
    ("", "Elu"): _real("{a} > 0.0 ? {a} : {alpha} * expm1({a})", costly=True, alpha=1.0),
    ("", "Selu"): _real("{gamma} * ({a} > 0.0 ? {a} : {alpha} * expm1({a}))", costly=True,
                        alpha=1.6732631921768188, gamma=1.0507010221481323),
    ("", "Celu"): _real("{a} > 0.0 ? {a} : {alpha} * expm1({a} / {alpha})", costly=True, alpha=1.0),
    ("", "Sigmoid"): _real("1.0 / (1.0 + exp(-{a}))", costly=True),
    ("", "HardSigmoid"): _real("{f}unit({alpha} * {a} + {beta})", alpha=0.2, beta=0.5),
    ("", "HardSwish"): _real("{a} * {f}unit({a} * 0.16666666666666666 + 0.5)"),
    ("", "Softplus"): _real("{f}softplus({a})", costly=True),
    ("", "Softsign"): _real("{a} / (1.0 + fabs({a}))"),
    ("", "Mish"): _real("{f}mish({a})", costly=True),
    ("", "Swish"): _real("{a} / (1.0 + exp(-({alpha} * {a})))", costly=True, alpha=1.0),
    ("", "Shrink"): Expression("{a} < -{lambd} ? {a} + {bias} : {a} > {lambd} ? {a} - {bias} : 0.0", _shrink_whole,
                               params=(("bias", 0.0), ("lambd", 0.5)), scalar=_whole_is_scalar),
    ("", "Gelu"): _real(_gelu, costly=True),
    ("com.microsoft", "Gelu"): _real("{f}gelu({a})", costly=True),
    ("com.microsoft", "BiasGelu"): _real(_biased("gelu"), costly=True),
    ("com.microsoft", "FastGelu"): _real(_biased("gelu_tanh"), costly=True),
    ("com.microsoft", "QuickGelu"): _real("{a} / (1.0 + exp(-({alpha} * {a})))", costly=True, alpha=1.702),
}  # fmt: skip
"""By domain and operator."""
