from palr_jax.errors import UserError


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    message = str(UserError("the name a\nb\x1b[31m\ud800 is wrong: Léon, 漢字 are fine"))
    assert message == r"the name a\nb\x1b[31m\ud800 is wrong: Léon, 漢字 are fine"
    assert str(UserError("plain")) == "plain"


def test_a_long_message_keeps_what_is_wrong_and_how_to_mend_it() -> None:
    message = str(UserError(f"k is {'x' * 10**6}: choose another one"))
    assert len(message) < 1000
    assert message.startswith("k is xxx")
    assert message.endswith("xxx: choose another one")
