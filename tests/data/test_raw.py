import pytest

from palr_jax.data.raw import items_table


def test_texts_are_in_normal_form_and_categories_neither_empty_nor_repeated() -> None:
    items = items_table(["1"], [" a\ne\u0301"], [["Hair ", "", "Nails", "Hair", " \t"]])
    assert items.rows() == [("1", "a é", ["Hair", "Nails"])]


@pytest.mark.parametrize(
    "word", ["(no genres listed)", "\\N", "NaN", "None", "null", "N/A", "<NA>"]
)
def test_what_says_that_there_is_no_category_is_none(word: str) -> None:
    assert items_table(["1"], ["a"], [[word, "Drama", f" {word}"]])["categories"].to_list() == [
        ["Drama"]
    ]
