import string
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import tokenizers as hf

from palr_jax.data.catalog import Catalog
from palr_jax.data.config import DataConfig
from palr_jax.data.prepare import prepare
from palr_jax.decoding.trie import Trie, build
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.item_tokens import tokenize_items
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.tokenizers.json_tokenizer import JsonTokenizer
from palr_jax.llm.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.llm.tokenizers.test_tokenizer import byte_level
from tests.locations import SHARED

MISTRAL = SHARED / "models/mistral-32k-tokenizer"


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
    tokenizer = load_tokenizer(MISTRAL)
    expected = [f'"{title}"\n' for title in catalog.titles]
    assert texts(catalog, tokenizer, instruct_config) == expected


def test_a_title_that_a_tokenizer_writes_as_nothing_carries_its_id(
    instruct_config: InstructConfig,
) -> None:
    tokenizer = JsonTokenizer(only_letters(), [], 0)
    written = texts(small_catalog(["Ant", "...", "Bee", "!"]), tokenizer, instruct_config)
    assert written == ['"Ant"\n', '" [B001]"\n', '"Bee"\n', '" [B003]"\n']


def test_titles_that_a_tokenizer_writes_alike_stay_distinct(
    instruct_config: InstructConfig,
) -> None:
    tokenizer = JsonTokenizer(only_letters(), [], 0)
    found = tokenize_items(small_catalog(["Ant", "An.t", "A.nt"]), tokenizer, instruct_config)
    written = [tokenizer.decode(found.tokens[i]) for i in range(3)]
    assert written == ['"Ant"\n', '"Ant [B001]"\n', '"Ant [B002]"\n']
    assert found.cut == 0


def test_items_that_stay_alike_even_with_their_ids_are_refused(
    instruct_config: InstructConfig,
) -> None:
    tokenizer = JsonTokenizer(only_letters(keep="a-zA-Z"), [], 0)
    catalog = Catalog(np.array(["1", "2", "3"]), ("Ant", "Ant.", "Ant..."), ((), (), ()))
    with pytest.raises(
        UserError, match="tokens of item 2 are those of another item even with its id"
    ):
        tokenize_items(catalog, tokenizer, instruct_config)


def only_letters(keep: str = r"a-zA-Z0-9\[\] ") -> str:
    """A tokenizer.json of single characters that drops all but `keep`, quotes and line breaks."""
    characters = sorted({*string.ascii_letters, *string.digits, *'"\n []'})
    vocab = {"<end>": 0} | {character: i for i, character in enumerate(characters, 1)}
    pieces = hf.Tokenizer(hf.models.BPE(vocab, []))
    pieces.normalizer = hf.normalizers.Replace(hf.Regex(f'[^{keep}"\n]'), "")
    pieces.decoder = hf.decoders.Fuse()
    return pieces.to_str()


def shared_catalog(name: str) -> Catalog:
    folder = SHARED / "data" / name
    config = DataConfig(
        source="table",
        interactions=str(folder / "interactions.csv.gz"),
        items=str(folder / "items.csv.gz"),
    )
    return prepare(config).catalog


@pytest.mark.parametrize(("name", "style"), [("ml-1m", "title"), ("beauty", "id_title")])
def test_every_item_has_the_same_tokens_everywhere(
    name: str,
    style: Literal["title", "id_title"],
    tokenizer: Tokenizer,
    instruct_config: InstructConfig,
) -> None:
    if not (SHARED / "data" / name).exists() or not MISTRAL.exists():
        pytest.skip("the shared data is not here")
    catalog = shared_catalog(name)
    config = replace(instruct_config, item_style=style, title_tokens=160, length=10_000)
    byte_pair = JsonTokenizer(byte_level(), [], 1)
    for each in (tokenizer, load_tokenizer(MISTRAL), byte_pair):
        tokens = tokenize_items(catalog, each, config).tokens
        writer = PromptWriter(each, tokens, config)
        assert len({row.tobytes() for row in tokens}) == len(catalog)
        for start in range(0, len(catalog), 40):
            items = np.arange(start, min(start + 40, len(catalog)))
            trie = build(tokens, items[None])
            label = iter(writer.label(items)[:-1].tolist())
            prompt = writer.prompt([], "", items).tokens_T
            front = len(prompt) - len(tokens.join(items)) - len(each.encode("Recommendations:\n"))
            listed = iter(prompt[front:].tolist())
            for item in items:
                expected = tokens[item].tolist()
                assert [next(label) for _ in expected] == expected
                assert [next(listed) for _ in expected] == expected
            assert sorted(walks(trie)) == sorted(tokens[item].tolist() for item in items)


def walks(trie: Trie) -> list[list[int]]:
    """The tokens from the root to each leaf of a trie."""
    token, parent, children = (
        np.asarray(array[0]) for array in (trie.token_RN, trie.parent_RN, trie.num_children_RN)
    )
    leaves = np.flatnonzero((children == 0) & (np.asarray(trie.last_leaf_RN[0]) >= 0))
    found = []
    for node in leaves:
        walk = []
        while node:
            walk.append(int(token[node]))
            node = parent[node]
        found.append(walk[::-1])
    return found
