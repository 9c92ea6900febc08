"""The text of a persistent kernel: the texts of many kernels as functions of one program, and the walk over the table.

Each text keeps its own macros and helper functions: what it defines in file scope gets the number of its kernel, and
its macros end with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import gpurt_kernels

VERSION: Final = 1
"""Of the way in which texts are merged: programs that another version made are not used again."""

ENTRY: Final = "persistent"
WORDS: Final = 8
"""Words of 64 bits in the table for each launch: kernel, first parameter, groups along three axes; the rest is free."""

TENSOR: Final = "tensor"
"""A parameter that is a tensor: two words, the address of the buffer and the offset in elements."""

_GROUP: Final = "".join(f"const i32 {what}_{axis}, " for what in ("group", "groups") for axis in "xyz")
_DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)(?:\(([^)]*)\))?((?:.*\\\n)*.*)", re.MULTILINE)
_FUNCTION = re.compile(r"^FN\s+(?:[\w ]+[ *])?(\w+)\(", re.MULTILINE)
_STRUCT = re.compile(r"\bstruct\s+(?:__attribute__\(\([^{]*?\)\)\s*)?(\w+)\s*\{")
_PASTED = re.compile(r"\w*(?:##\w+)+")
_READ: Final = {"float": "as_float((u32)p[{}])", "double": "as_double(p[{}])"}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kernel as a persistent kernel has it.

    Attributes:
        text: the whole text of its program.
        entry: its name there.
        params: for each parameter TENSOR or the type of a number as the dialect header spells it.
    """

    text: str
    entry: str
    params: tuple[str, ...]


def merged(kinds: Sequence[Kind], dialect: str) -> str:
    """One program with a kernel ENTRY that runs all of these; the number of a kind is its position.

    Raises ValueError for a text without a kernel of the name.
    """
    parts = [_scoped(kind, number) for number, kind in enumerate(kinds)]
    cases = "".join(_case(kind, number) for number, kind in enumerate(kinds))
    parts += [gpurt_kernels.header(dialect), f"#define WORDS {WORDS}\n#define CASES {cases}\n"]
    return "".join([*parts, gpurt_kernels.text("persistent.cl")])


def key(kinds: Sequence[Kind]) -> str:
    """All that the merged text depends on, told without making it."""
    words = [str(VERSION), gpurt_kernels.text("persistent.cl")]
    words += (word for kind in kinds for word in (kind.entry, *kind.params, kind.text))
    return "\0".join(words)


def _scoped(kind: Kind, number: int) -> str:
    """A kernel's text as a function of its own, whose names and macros nothing else sees."""
    text = kind.text
    macros = [(m[1], m[2] or "", m[3].strip()) for m in _DEFINE.finditer(text)]
    taken = {name for name, _, _ in macros}
    markers = [r"KFN\([^)]*\)", *{name for name, _, body in macros if body.startswith("KFN(")}]
    marker = f"(?:{'|'.join(markers)})"  # may depend on a condition: then directives and others follow
    kernel = re.compile(rf"^({marker}(?:\s+#.*|\s+{marker})*\s*)\b(?!KFN\b)(\w+)\(", re.MULTILINE)
    entries = {m[2] for m in kernel.finditer(text)}
    if kind.entry not in entries:
        raise ValueError(f"the text has no kernel {kind.entry}")
    names = (set(_STRUCT.findall(text)) | set(_pasted(text, macros))) - taken
    names |= entries | set(_FUNCTION.findall(text))  # one that is a macro under another condition replaces its new name
    renamed = "".join(f"#define {name} {name}_{number}\n" for name in sorted(names))
    ended = "".join(f"#undef {name}\n" for name in sorted(names | taken))
    body = kernel.sub(rf"\1\2({_GROUP}", text)
    return f"#define GP_PERSISTENT 1\n{renamed}{body}\n{ended}#undef GP_PERSISTENT\n"


def _pasted(text: str, macros: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Names that macros put together with ## where they are used."""
    for macro, params, body in macros:
        pieces = [found[0].split("##") for found in _PASTED.finditer(body)]
        names = [p.strip() for p in params.split(",")]
        for use in re.finditer(rf"\b{macro}\(([^()]*)\)", text) if pieces else ():
            values = dict(zip(names, (v.strip() for v in use[1].split(",")), strict=False))
            made = ("".join(values.get(word, word) for word in piece) for piece in pieces)
            yield from (name for name in made if name.isidentifier())


def _case(kind: Kind, number: int) -> str:
    """The branch of the walk that runs some groups of a kernel."""
    args, word = [], 0
    for param in kind.params:
        if param == TENSOR:
            args.append(f"(GLOBAL void *)p[{word}], (i64)p[{word + 1}]")
            word += 2
        else:
            args.append(_READ.get(param, f"({param})p[{{}}]").format(word))
            word += 1
    return f"CASE({number}, {kind.entry}_{number}, {', '.join(args)}) "
