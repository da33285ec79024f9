from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.item_tokens import tokenize_items
from palr_jax.llm.tokenizer import Tokenizer

MISTRAL = Path(__file__).resolve().parents[2].parent / "shared/models/mistral-32k-tokenizer"


def small_catalog(titles: list[str]) -> Catalog:
    ids = np.array([f"B{i:03}" for i in range(len(titles))])
    return Catalog(ids, tuple(titles), tuple(() for _ in titles))


def texts(catalog: Catalog, tokenizer: Tokenizer, config: InstructConfig) -> list[str]:
    rows = tokenize_items(catalog, tokenizer, config).tokens
    return [tokenizer.decode(rows[i]) for i in range(len(rows))]


def test_an_item_is_its_quoted_title_on_a_line(
    catalog: Catalog, tokenizer: Tokenizer, instruct_config: InstructConfig
) -> None:
    expected = [f'"{title}"\n' for title in catalog.titles]
    assert texts(catalog, tokenizer, instruct_config) == expected


def test_id_style_names_the_id_first(tokenizer: Tokenizer, instruct_config: InstructConfig) -> None:
    config = replace(instruct_config, item_style="id_title")
    assert texts(small_catalog(["Soap"]), tokenizer, config) == ['"B000 (Soap)"\n']


def test_no_item_begins_with_another(tokenizer: Tokenizer, instruct_config: InstructConfig) -> None:
    titles = ["Alien", "Alien 3", 'Alien" 3', "A", "A\u200b", "🎬", "“”", "…"]
    rows = tokenize_items(small_catalog(titles), tokenizer, instruct_config).tokens
    keys = [tuple(rows[i].tolist()) for i in range(len(rows))]
    for i, a in enumerate(keys):
        for j, b in enumerate(keys):
            assert i == j or b[: len(a)] != a


def test_long_titles_are_cut_to_the_budget_and_stay_distinct(
    tokenizer: Tokenizer, instruct_config: InstructConfig
) -> None:
    config = replace(instruct_config, title_tokens=24)
    titles = ["x" * 841, "x" * 840, "x" * 839 + "y", "short"]
    found = tokenize_items(small_catalog(titles), tokenizer, config)
    assert found.cut == 3
    assert found.tokens.lengths_R.max() <= 24
    written = texts(small_catalog(titles), tokenizer, config)
    assert len(set(written)) == 4
    assert written[0].startswith('"xx')
    assert written[0].endswith('…"\n')
    assert written[1].endswith('… [B001]"\n')


def test_a_budget_too_small_for_an_id_is_refused(
    tokenizer: Tokenizer, instruct_config: InstructConfig
) -> None:
    config = replace(instruct_config, title_tokens=8)
    with pytest.raises(UserError, match=r"item B001 needs more than instruct.title_tokens \(8\)"):
        tokenize_items(small_catalog(["ж" * 50, "ж" * 51]), tokenizer, config)


@pytest.mark.skipif(not MISTRAL.exists(), reason="the 32,000-piece tokenizer is not here")
def test_a_llama_tokenizer_writes_the_same_text(
    catalog: Catalog, instruct_config: InstructConfig
) -> None:
    tokenizer = Tokenizer.from_file(MISTRAL / "tokenizer.model")
    expected = [f'"{title}"\n' for title in catalog.titles]
    assert texts(catalog, tokenizer, instruct_config) == expected
