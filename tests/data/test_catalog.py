import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palr_jax.data.catalog import Catalog, normal_title, unique_titles
from tests.data.conftest import Complaint


def catalog_of(*titles: str) -> Catalog:
    return Catalog(np.array([f"i{n}" for n in range(len(titles))]), titles, ((),) * len(titles))


def test_later_items_of_a_title_carry_their_id() -> None:
    titles = unique_titles(["Emma", "Eros", "Emma", "Emma"], ["7", "8", "9", "10"])
    assert titles == ("Emma", "Eros", "Emma [9]", "Emma [10]")


def test_a_made_up_title_does_not_collide_with_a_real_one() -> None:
    titles = unique_titles(["Emma", "Emma [9]", "Emma"], ["7", "8", "9"])
    assert titles == ("Emma", "Emma [9]", "Emma [9] [9]")


@given(st.lists(st.sampled_from(["x", "x [1]", "x [2]", "x [2] [1]", "y"]), max_size=8))
def test_titles_are_unique_and_begin_as_they_were(titles: list[str]) -> None:
    unique = unique_titles(titles, [str(n) for n in range(len(titles))])
    assert len(set(unique)) == len(titles)
    assert all(new.startswith(old) for new, old in zip(unique, titles, strict=True))


def test_index_of_prefers_the_exact_title() -> None:
    catalog = catalog_of("heat", "Heat", "Up (2009)")
    assert (catalog.index_of("heat"), catalog.index_of("Heat")) == (0, 1)
    assert catalog.index_of("up (2009)") == 2


def test_index_of_names_the_three_nearest(complaint: Complaint) -> None:
    catalog = catalog_of(
        "Toy Story (1995)", "Heat (1995)", "Toy Story 2 (1999)", "Toys (1992)", "M"
    )
    message = complaint(catalog.index_of, "toy story")
    assert "'Toy Story (1995)', 'Toy Story 2 (1999)', 'Toys (1992)'" in message
    assert "'Heat (1995)'" not in message


def test_index_of_does_not_choose_between_cases(complaint: Complaint) -> None:
    message = complaint(catalog_of("heat", "Heat", "Up").index_of, "HEAT")
    assert "'heat', 'Heat'" in message


def test_index_of_in_a_catalog_of_one(complaint: Complaint) -> None:
    assert "'Heat'" in complaint(catalog_of("Heat").index_of, "zzz")


@pytest.mark.parametrize(
    "asked", ["Ame\u0301lie  (2001)", "Amélie\n(2001)", "AMÉLIE (2001) ", "ame\u0301lie\t(2001)"]
)
def test_index_of_knows_all_forms_of_a_title(asked: str) -> None:
    assert catalog_of("Heat", "Amélie (2001)").index_of(asked) == 1
    assert catalog_of("Heat", "Ame\u0301lie  (2001)").index_of(asked) == 1


def test_index_of_is_quick_among_many_titles_and_short_about_long_ones(
    complaint: Complaint,
) -> None:
    catalog = catalog_of(*(f"Film {n} ({1900 + n % 120})" for n in range(200_000)))
    assert catalog.index_of("FILM 1 (1901)") == 1  # makes the table
    start = time.monotonic()
    assert "'Film 77777 (1917)'" in complaint(catalog.index_of, "Filn 77777 (1917)")
    assert len(complaint(catalog.index_of, "x" * 1_000_000)) < 500
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("position", [0, 1, 2])
def test_every_title_leads_to_its_item(position: int) -> None:
    catalog = catalog_of("a", "b", "c")
    assert catalog.index_of(catalog.titles[position]) == position


@pytest.mark.parametrize(
    "text, expected",
    [
        ("  a \t\r\n b ", "a b"),
        ("a\x00\x1f\x7f\x85b", "a b"),
        ("a\u00a0\u2028b", "a b"),
        ("a\ud800b", "a b"),
        ("Ame\u0301lie (2001)", "Am\u00e9lie (2001)"),
        ("\n", ""),
    ],
)
def test_the_normal_form_of_a_title(text: str, expected: str) -> None:
    assert normal_title(text) == expected


@given(st.text(st.characters(codec=None)))
def test_the_normal_form_is_stable_and_can_be_written(text: str) -> None:
    normal = normal_title(text)
    assert normal_title(normal) == normal
    assert normal.encode().decode() == normal
