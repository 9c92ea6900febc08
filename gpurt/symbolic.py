"""Sizes with an expression beside their value: what planning computes from them can be computed again for others.

A walk over shapes made of :class:`Size` yields the plan for the sizes at hand, and with it what would have to be true
of others for every decision to come out the same (the guards). Arithmetic keeps the expression; a comparison answers
for the sizes at hand and leaves a guard; whatever else asks for a plain number gets one and leaves the guard that the
expression has this very value. So code that knows nothing of this stays right: it only narrows what the walk is good
for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

Monomial = tuple[str, ...]
"""Atoms (symbols, or quotients written as text) that are multiplied, sorted; empty for a number."""

Poly = tuple[tuple[Monomial, int], ...]
"""Sum of monomials with their coefficients, sorted, none of them 0: equal polynomials are equal tuples."""

MOST_TERMS: Final = 64  # longer expressions cost more to evaluate than a plan of its own saves


class Guards:
    """The conditions under which a walk would take the same course, for sizes given by symbols ``s0``, ``s1``, ..."""

    def __init__(self, symbols: int) -> None:
        self.symbols = [f"s{i}" for i in range(symbols)]
        self.conditions: dict[str, None] = {}
        self._closed = False
        self._owner = threading.get_ident()

    def add(self, condition: str) -> None:
        """Note a condition, written in Python over the symbols. RuntimeError once the walk is over."""
        if self._closed:
            raise RuntimeError(f"a size was asked for its value after the plan was made: {condition}")
        self.conditions[condition] = None

    def close(self) -> None:
        """The walk is over: whoever still decides by a size would decide for one case only."""
        self._closed = True


class Size:
    """An integer that knows how it came from the symbols. It is no int: see the module's text.

    Attributes:
        value: the number in the walk at hand.
        poly: the expression.
    """

    __slots__ = ("_guards", "poly", "value")

    def __init__(self, guards: Guards, value: int, poly: Poly) -> None:
        self._guards = guards
        self.poly = poly
        self.value = value

    @staticmethod
    def symbol(guards: Guards, number: int, value: int) -> Size:
        """The size that a symbol stands for."""
        return Size(guards, value, (((guards.symbols[number],), 1),))

    @property
    def text(self) -> str:
        """The expression in Python over the symbols."""
        return _text(self.poly)

    # --- plain numbers: the value, and the guard that it is this one

    def __index__(self) -> int:
        self._guards.add(f"{self.text} == {self.value}")
        return self.value

    __int__ = __index__

    def __hash__(self) -> int:
        return hash(self.__index__())

    def __float__(self) -> float:
        return float(self.__index__())

    def __str__(self) -> str:
        return str(self.__index__())

    def __format__(self, spec: str) -> str:
        return format(self.__index__(), spec)

    def __repr__(self) -> str:
        return f"Size({self.value}: {self.text})"

    def __truediv__(self, other: Any) -> float:
        return self.__index__() / other  # type: ignore[no-any-return]

    def __rtruediv__(self, other: Any) -> float:
        return other / self.__index__()  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        # What an int can do besides (shifts, powers, divmod's relatives by name) is done with the plain number.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__index__(), name)

    def __bool__(self) -> bool:
        return self != 0

    def bit_length(self) -> int:
        """As int's, for sizes that are not negative: the guard is the range of sizes of this length."""
        bits = self.value.bit_length()
        if self < 0:
            return self.__index__().bit_length()
        if bits:
            self._guards.add(f"{self.text} >= {1 << (bits - 1)}")
        self._guards.add(f"{self.text} < {1 << bits}")
        return bits

    # --- arithmetic

    def _make(self, value: int, poly: Poly) -> Any:
        if not poly:
            return 0
        if len(poly) == 1 and not poly[0][0]:
            return poly[0][1]
        if len(poly) > MOST_TERMS:
            self._guards.add(f"{self.text} == {self.value}")
            return value
        return Size(self._guards, value, poly)

    def __add__(self, other: Any) -> Any:
        o = _operand(other)
        return NotImplemented if o is None else self._make(self.value + o[0], _sum(self.poly, o[1], 1))

    __radd__ = __add__

    def __neg__(self) -> Any:
        return self._make(-self.value, _sum((), self.poly, -1))

    def __pos__(self) -> Size:
        return self

    def __abs__(self) -> Any:
        return -self if self < 0 else self

    def __sub__(self, other: Any) -> Any:
        o = _operand(other)
        return NotImplemented if o is None else self._make(self.value - o[0], _sum(self.poly, o[1], -1))

    def __rsub__(self, other: Any) -> Any:
        return -(self - other)

    def __mul__(self, other: Any) -> Any:
        o = _operand(other)
        return NotImplemented if o is None else self._make(self.value * o[0], _product(self.poly, o[1]))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        return _quotient(self._guards, self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _quotient(self._guards, other, self)

    def __mod__(self, other: Any) -> Any:
        if _operand(other) is None:
            return NotImplemented
        return self - self // other * other

    def __rmod__(self, other: Any) -> Any:
        if _operand(other) is None:
            return NotImplemented
        return other - other // self * self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __lshift__(self, other: Any) -> Any:
        return self * (1 << int(other))

    def __rshift__(self, other: Any) -> Any:
        return self // (1 << int(other))

    def __rlshift__(self, other: Any) -> Any:
        return other << self.__index__()

    def __pow__(self, other: Any) -> Any:
        return self.__index__() ** other

    def __rpow__(self, other: Any) -> Any:
        return other ** self.__index__()

    def __and__(self, other: Any) -> Any:
        return self.__index__() & int(other)

    __rand__ = __and__

    # --- comparisons: the outcome, and the guard that it stays so

    def _compare(self, other: Any, sign: str, inverse: str, outcome: bool) -> bool:
        difference = self - other
        if isinstance(difference, Size):
            self._guards.add(f"{difference.text} {sign if outcome else inverse} 0")
        return outcome

    def __eq__(self, other: object) -> bool:
        o = _operand(other)
        return NotImplemented if o is None else self._compare(other, "==", "!=", self.value == o[0])

    def __ne__(self, other: object) -> bool:
        o = _operand(other)
        return NotImplemented if o is None else self._compare(other, "!=", "==", self.value != o[0])

    def __lt__(self, other: Any) -> bool:
        o = _operand(other)
        return (self.__index__() < other) if o is None else self._compare(other, "<", ">=", self.value < o[0])

    def __le__(self, other: Any) -> bool:
        o = _operand(other)
        return (self.__index__() <= other) if o is None else self._compare(other, "<=", ">", self.value <= o[0])

    def __gt__(self, other: Any) -> bool:
        o = _operand(other)
        return (self.__index__() > other) if o is None else self._compare(other, ">", "<=", self.value > o[0])

    def __ge__(self, other: Any) -> bool:
        o = _operand(other)
        return (self.__index__() >= other) if o is None else self._compare(other, ">=", "<", self.value >= o[0])


def key(value: Any) -> Any:
    """What stands for a size among the keys of a dictionary, without a guard: equal expressions are one key.

    For what may as well find two sizes different that are equal at hand.
    """
    return value.text if isinstance(value, Size) else value


def plain(value: Any) -> int:
    """The number at hand of a size, or the number itself, without a guard: for what does not decide anything."""
    return value.value if isinstance(value, Size) else int(value)


def _operand(x: Any) -> tuple[int, Poly] | None:
    if isinstance(x, Size):
        return x.value, x.poly
    if isinstance(x, (int, np.integer)):
        number = int(x)
        return number, (((), number),) if number else ()
    return None


def _sum(a: Poly, b: Poly, factor: int) -> Poly:
    terms = dict(a)
    for monomial, n in b:
        terms[monomial] = terms.get(monomial, 0) + factor * n
    return tuple(sorted((m, n) for m, n in terms.items() if n))


def _product(a: Poly, b: Poly) -> Poly:
    terms: dict[Monomial, int] = {}
    for one, n in a:
        for two, k in b:
            monomial = tuple(sorted(one + two))
            terms[monomial] = terms.get(monomial, 0) + n * k
    return tuple(sorted((m, n) for m, n in terms.items() if n))


def _text(poly: Poly) -> str:
    parts = []
    for monomial, n in poly:
        factors = list(monomial) if n == 1 and monomial else [str(n), *monomial]
        parts.append("*".join(factors))
    return f"({' + '.join(parts)})" if parts else "0"


def _quotient(guards: Guards, a: Any, b: Any) -> Any:
    left, right = _operand(a), _operand(b)
    if left is None or right is None:
        return NotImplemented
    if not right[1]:
        raise ZeroDivisionError("integer division or modulo by zero")
    if right[1][0][0] or len(right[1]) > 1:  # not a number: the quotient has a meaning only while it is not 0
        guards.add(f"{_text(right[1])} != 0")
        if not right[0]:
            raise ZeroDivisionError("integer division or modulo by zero")
    value = left[0] // right[0]
    made = Size(guards, value, ())
    exact = _divide(left[1], right[1])
    if exact is not None:
        return made._make(value, exact)
    # Whole multiples come out of the quotient, so that (n + 64) // 64 is n // 64 + 1.
    whole: Poly = ()
    rest = left[1]
    if len(right[1]) == 1 and not right[1][0][0]:
        by = right[1][0][1]
        whole = tuple((m, n // by) for m, n in left[1] if n % by == 0)
        rest = tuple((m, n) for m, n in left[1] if n % by)
    atom: Poly = (((f"({_text(rest)}//{_text(right[1])})",), 1),)
    return made._make(value, _sum(atom, whole, 1))


def _divide(a: Poly, b: Poly) -> Poly | None:
    """A / b where that is a polynomial."""
    quotient: Poly = ()
    lead, factor = b[-1]
    for _ in range(MOST_TERMS):
        if not a:
            return quotient
        monomial, n = a[-1]
        rest = list(monomial)
        for atom in lead:
            if atom not in rest:
                return None
            rest.remove(atom)
        if n % factor:
            return None
        term: Poly = ((tuple(rest), n // factor),)
        quotient = _sum(quotient, term, 1)
        a = _sum(a, _product(term, b), -1)
    return None


class Expressions:
    """Sizes that are wanted for other symbols, each once: compiled to one function that yields their values."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self._index: dict[str, int] = {}
        self._function: Any = None
        self._compiled = 0

    def index(self, size: Size) -> int:
        """Where a size's value is in what the compiled function returns."""
        return self._index.setdefault(size.text, len(self._index))

    def __len__(self) -> int:
        return len(self._index)

    def values(self, symbols: Sequence[int]) -> tuple[int, ...]:
        """The values of all sizes for these symbols."""
        if self._function is None or self._compiled < len(self._index):
            texts = "".join(f"{text}, " for text in self._index)
            self._function, self._compiled = self._make(f"({texts})"), len(self._index)
        found: tuple[int, ...] = self._function(*symbols)
        return found

    def compile(self, limits: Sequence[tuple[Size, int]]) -> Any:
        """A function of the symbols: whether all guards and limits (size <= number) hold."""
        tests = list(self._guards.conditions)
        tests += dict.fromkeys(f"{size.text} <= {most}" for size, most in limits)
        return self._make(" and ".join(tests) or "True")

    def _make(self, expression: str) -> Any:
        scope: dict[str, Any] = {}
        source = f"def function({', '.join(self._guards.symbols)}):\n    return {expression}\n"
        exec(compile(source, "<sizes>", "exec"), scope)  # noqa: S102 - text that only this module has written
        return scope["function"]


class NeedsNumbers(Exception):
    """Raised by what cannot work with sizes in a place where a guard would not do; it is asked again with numbers."""


def pinned(values: Iterable[Any]) -> tuple[int, ...]:
    """Plain numbers, and the guards that sizes among them keep their values."""
    return tuple(int(v) for v in values)
