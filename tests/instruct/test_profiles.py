import numpy as np

from palr_jax.data.catalog import Catalog
from palr_jax.instruct.config import InstructConfig, ProfileConfig, TemplateConfig
from palr_jax.instruct.profiles import category_table, keyword_profiles
from palr_jax.instruct.templates import profile_text
from palr_jax.ragged import Ragged


def test_specific_categories_come_before_common_ones() -> None:
    # Drama is in most items, so it is uninformative; Western and War are rare.
    categories = [("Drama",)] * 6 + [("Drama", "Western"), ("Drama", "War"), ("War",), ()]
    catalog = Catalog(np.array([str(i) for i in range(10)]), ("t",) * 10, tuple(categories))
    table = category_table(catalog)
    histories = Ragged.from_rows([[6, 7, 8], [0, 1, 2, 3], [9], []])
    films = InstructConfig(item_kind="films")
    assert keyword_profiles(histories, table, ProfileConfig(keywords=2), films) == [
        "The user enjoys war and western films.",
        "The user enjoys drama films.",
        "",
        "",
    ]


def test_kind_none_writes_no_profile(catalog: Catalog, train: Ragged) -> None:
    config = ProfileConfig(kind="none")
    found = keyword_profiles(train, category_table(catalog), config, InstructConfig())
    assert set(found) == {""}


def test_the_sentence_lists_keywords() -> None:
    config = InstructConfig()
    assert profile_text(config, ("a", "b", "c")) == "The user enjoys a, b and c movies."
    assert profile_text(config, ("a",)) == "The user enjoys a movies."
    own = InstructConfig(item_kind="soaps", template=TemplateConfig(profile="{kind}: {keywords}"))
    assert profile_text(own, ("a", "b")) == "soaps: a and b"
