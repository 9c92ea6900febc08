"""Texts of kernels as parts of one program: names and macros of one are not seen by another."""

import re

import pytest

from gpurt.device.persistent import text as texts
from gpurt.device.persistent.text import TENSOR, Kind, key, merged

HEADER = """#define SIZE {size}
#define HELPER(T) \\
  FN T T##_twice(const T v) {{ return v + v; }}
HELPER(float)
struct __attribute__((packed)) pair {{ float a, b; }};
FN float scaled(const float v) {{ return SIZE * float_twice(v); }}
#define ROW_KERNEL KFN(1, 1, 1)
"""
FIRST = HEADER.format(size=2) + "KFN(1, 1, 1) scale(INPUT(float, x), TENSOR(float, y), const i32 n) {}\n"
SECOND = HEADER.format(size=3) + "ROW_KERNEL scale(TENSOR(float, y), const float by) {}\nKFN(1, 1, 1)\nother() {}\n"


def defined(text: str, directive: str) -> list[str]:
    return re.findall(rf"^#{directive} (\w+)", text, re.MULTILINE)


def test_names_of_a_text_get_its_number():
    text = merged([Kind(FIRST, "scale", (TENSOR, TENSOR, "i32")), Kind(SECOND, "scale", (TENSOR, "float"))], "opencl")
    for name in ("scale", "scaled", "float_twice", "pair"):
        assert f"#define {name} {name}_0\n" in text
        assert f"#define {name} {name}_1\n" in text
        assert text.count(f"#undef {name}\n") == 2
    assert "#define other other_1\n" in text


def test_macros_end_with_their_text():
    text = merged([Kind(FIRST, "scale", (TENSOR, TENSOR, "i32"))], "opencl")
    own = text[: text.index("#undef GP_PERSISTENT")]
    for name in ("SIZE", "HELPER", "ROW_KERNEL"):
        assert own.count(f"#undef {name}\n") == 1
        assert own.index(f"#undef {name}\n") > own.index("KFN(1, 1, 1) scale")


def test_each_kernel_takes_its_group():
    text = merged([Kind(SECOND, "scale", (TENSOR, "float"))], "opencl")
    assert re.search(r"ROW_KERNEL scale\(const i32 group_x, .*const i32 groups_z, TENSOR\(float, y\)", text)
    assert re.search(r"KFN\(1, 1, 1\)\nother\(const i32 group_x", text)


def test_a_kernel_for_two_classes_is_one_kernel():
    text = "#ifdef A\nKFN(1, 1, 1)\n#else\n#define STRIDE 64\nKFN(64, 1, 1)\n#endif\nboth(INPUT(float, x)) {}\n"
    assert "#endif\nboth(const i32 group_x" in merged([Kind(text, "both", (TENSOR,))], "opencl")


def test_parameters_are_read_from_words():
    text = merged([Kind(FIRST, "scale", (TENSOR, TENSOR, "i32")), Kind(SECOND, "scale", (TENSOR, "float"))], "opencl")
    assert "CASE(0, scale_0, (GLOBAL void *)p[0], (i64)p[1], (GLOBAL void *)p[2], (i64)p[3], (i32)p[4])" in text
    assert "CASE(1, scale_1, (GLOBAL void *)p[0], (i64)p[1], as_float((u32)p[2]))" in text


def test_a_text_without_the_kernel_is_refused():
    with pytest.raises(ValueError, match="no kernel scal"):
        merged([Kind(FIRST, "scal", (TENSOR,))], "opencl")


def test_a_program_is_known_by_all_that_its_text_depends_on(monkeypatch):
    kinds = [Kind(FIRST, "scale", (TENSOR, TENSOR, "i32")), Kind(SECOND, "scale", (TENSOR, "float"))]
    known = {
        key(kinds),
        key(kinds[::-1]),
        key(kinds[:1]),
        key([Kind(FIRST, "scale", (TENSOR, TENSOR, "u32")), kinds[1]]),
    }
    monkeypatch.setattr(texts, "VERSION", texts.VERSION + 1)
    known.add(key(kinds))
    monkeypatch.setattr(texts.gpurt_kernels, "text", lambda name: "another walk")
    assert len(known | {key(kinds)}) == 6
