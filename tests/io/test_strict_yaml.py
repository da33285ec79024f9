import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.errors import UserError
from palr_jax.io.strict_yaml import read_yaml
from tests.outcome import result_or_line


def complaint(text: str) -> str:
    with pytest.raises(UserError) as error:
        read_yaml(text, "FILE")
    message = str(error.value)
    assert message.startswith("FILE")
    assert "\n" not in message
    assert len(message) <= 1_010
    return message


def test_plain_data() -> None:
    text = "a: 1\nb: &b [x, 2.5, null, true]\nc: *b\n"
    assert read_yaml(text, "FILE") == yaml.safe_load(text)
    assert read_yaml("", "FILE") is None
    merged = read_yaml("base: &base {a: 1}\nd: {<<: *base, b: 2}", "FILE")
    assert merged == {"base": {"a": 1}, "d": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    "text, line, key, before",
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a", 1),
        ("x:\n  a: 1\n  'a': 1\n", 3, "a", 2),
        ("x: [{a: 1,\n  a: 1}]\n", 2, "a", 1),
    ],
)
def test_a_key_that_is_there_twice_is_refused(text: str, line: int, key: str, before: int) -> None:
    assert complaint(text) == (
        f"FILE, line {line}: {key} repeats line {before}: delete one of them"
    )


def test_a_key_of_two_sections_is_not_a_duplicate() -> None:
    assert read_yaml("x: {a: 1}\ny: {a: 2}", "FILE") == {"x": {"a": 1}, "y": {"a": 2}}


@pytest.mark.parametrize("width", [3, 9])
@pytest.mark.parametrize("form", ["[{}]", "{{k0: [{}]}}"])
def test_aliases_that_grow_are_refused_at_once(width: int, form: str) -> None:
    lines = ["a0: &a0 [x]"]
    for depth in range(1, 30):
        lines.append(f"a{depth}: &a{depth} " + form.format(", ".join([f"*a{depth - 1}"] * width)))
    begin = time.monotonic()
    assert "holds more than 10,000 values" in complaint("\n".join(lines))
    assert time.monotonic() - begin < 20


def test_merged_aliases_that_grow_are_refused() -> None:
    lines = ["a0: &a0 {x: 1}"]
    for depth in range(1, 25):
        lines.append(f"a{depth}: &a{depth} {{<<: [{', '.join([f'*a{depth - 1}'] * 5)}]}}")
    assert "holds more than 10,000 values" in complaint("\n".join(lines))


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a: &a [*a]", "an alias contains itself"),
        ("a: &a {b: *a}", "an alias contains itself"),
        ("[" * 100_000, "nested too deeply"),
        ("- " * 50_000, "nested too deeply"),
        ("a: " + "x" * 1_000_001, "longer than 1 MB"),
        ("a: !!int abc", "not valid YAML"),
        ("a: !!timestamp soon", "not valid YAML"),
        ("a: !!bool maybe", "not valid YAML"),
        ("a: 2024-13-45", "not valid YAML"),
        ("a: " + "9" * 5_000, "not valid YAML"),
        ("a: !!python/object/apply:os.system [x]", "not valid YAML"),
        ("a: [", "not valid YAML"),
        ("a\0b", "not valid YAML"),
        ("? {a: b}\n: c", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
    ],
)
def test_what_is_no_config_is_one_line(text: str, problem: str) -> None:
    assert problem in complaint(text)


@pytest.mark.parametrize(
    ("text", "base"),
    [("a: 010", 8), ("a: [1, -0_7]", 8), ("a: 1:30", 60), ("a: 1:30.5", 60), ("00: a", 8)],
)
def test_numbers_to_other_bases_are_refused(text: str, base: int) -> None:
    assert complaint(text).endswith(
        f"to the base {base}: write the number without leading zeros or colons"
    )


@pytest.mark.parametrize("text", ["a: 0", "a: '010'", "a: 0x10", "a: 0.5", "a: 08.5", "a: 1_000"])
def test_other_numbers_and_texts_are_not(text: str) -> None:
    assert read_yaml(text, "FILE") == yaml.safe_load(text)


@settings(deadline=None)
@given(
    st.one_of(
        st.text(st.characters(codec=None)),
        st.text(alphabet="ab:[]{},&*!?|>-#'\"%@`\n 0129.e+<~\t", max_size=60),
        st.lists(
            st.sampled_from(
                ["a:", " *a", " &a", " [", "]", " {", "}", "\n", "  ", "- ", "? ", ": ", "<<: ",
                 "!!int ", "!!set ", "!!omap ", "!!binary ", "!!pairs ", "!!timestamp ", "!x ",
                 "1e9", "0x", "1:30", ".inf", "null", "2024-02-30", "---", "%YAML 9.9", "'", '"']
            ),
            max_size=25,
        ).map("".join),
    )
)  # fmt: skip
def test_any_text_gives_a_value_or_one_line(text: str) -> None:
    result_or_line(read_yaml, text, "FILE")
