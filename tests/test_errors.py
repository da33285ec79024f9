from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.errors import UserError, shown


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    message = str(UserError("the name a\nb\x1b[31m\ud800 is wrong: Léon, 漢字 are fine"))
    assert message == r"the name a\nb\x1b[31m\ud800 is wrong: Léon, 漢字 are fine"
    assert str(UserError("plain")) == "plain"


def test_a_long_message_keeps_what_is_wrong_and_how_to_mend_it() -> None:
    message = str(UserError(f"k is {'x' * 10**6}: choose another one"))
    assert len(message) < 1000
    assert message.startswith("k is xxx")
    assert message.endswith("xxx: choose another one")


@settings(deadline=None)
@given(st.text(st.characters(codec=None)) | st.text(min_size=1_001).map(lambda text: text * 3))
def test_a_message_is_one_line_that_can_be_written(text: str) -> None:
    message = str(UserError(text))
    assert len(message.splitlines()) <= 1
    assert len(message) <= 1_003
    message.encode()


def test_long_values_are_shown_by_their_ends() -> None:
    assert shown("short") == "'short'"
    assert len(shown("x" * 1_000_000)) <= 80
    assert len(shown({"a": ["x" * 1_000] * 1_000})) < 1_000
    assert shown(16**5_000) == "a number that is too long to print"
