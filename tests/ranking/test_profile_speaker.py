"""An LLM that is asked for keywords: what it reads, and what it chooses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flax import nnx

from palr_jax.config import Config
from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig, ProfileConfig
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged
from palr_jax.ranking.profile_speaker import Speaker
from tests.decoding.slow import Logits, full_passes

NAMES = ("War", "War Film", "warlike", "Sea", "Seaside", "Ice; Fire", "noir")


@pytest.fixture(scope="module")
def items() -> Catalog:
    """Seven items with one to three categories; some categories begin like others."""
    categories = tuple(
        tuple(NAMES[(item + step) % 7] for step in range(1 + item % 3)) for item in range(7)
    )
    titles = tuple(f"Story {item}" for item in range(7))
    return Catalog(np.array([f"i{item}" for item in range(7)]), titles, categories)


def speaker(
    items: Catalog, tokenizer: Tokenizer, max_length: int = 2_000, **profile: Any
) -> Speaker:
    shape = LlamaConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2, num_kv_heads=1,
        head_dim=8, ffn_dim=24, max_length=max_length,
    )  # fmt: skip
    settings = ProfileConfig(kind="llm", weights="llm", batch_size=4, **profile)
    config = replace(Config(name="x"), profile=settings, instruct=InstructConfig(history=5))
    return Speaker(Llama(shape, nnx.Rngs(params=0)), tokenizer, items, config)


def greedy(logits: Logits, prompt: list[int], texts: list[list[int]], keywords: int) -> list[int]:
    """Which texts plain greedy decoding writes, one after the other, if it may write only these."""
    written, left = list(prompt), list(range(len(texts)))
    chosen: list[int] = []
    while left and len(chosen) < keywords:
        alive, depth = left, 0
        while len({tuple(texts[text]) for text in alive}) > 1 or depth == 0:
            allowed = sorted({texts[text][depth] for text in alive})
            fed = [*written, *texts[alive[0]][:depth]]
            best = allowed[int(np.argmax(logits(fed)[allowed]))]
            alive = [text for text in alive if texts[text][depth] == best]
            depth += 1
        chosen.append(alive[0])
        left = [text for text in left if text != alive[0]]
        written += texts[alive[0]]
    return chosen


def test_keywords_are_what_greedy_decoding_of_them_alone_writes(
    items: Catalog, tokenizer: Tokenizer
) -> None:
    asked = speaker(items, tokenizer, keywords=2)
    histories = Ragged.from_rows([[0, 1, 2], [5], [3, 4, 6, 0, 2]])
    prompts = [asked._prompt(history).tolist() for history in histories]
    logits = full_passes(asked.model, width=max(map(len, prompts)) + 64)
    answers = asked.answers(histories)
    for history, prompt, (answer, words) in zip(histories, prompts, answers, strict=True):
        own = sorted({name for item in history for name in items.categories[item]})
        texts = [
            [*tokenizer.encode(f" {name.lower().replace(';', ',')}"), *tokenizer.encode(";")]
            for name in own
        ]
        expected = greedy(logits, prompt, texts, keywords=2)
        assert words == tuple(own[text].lower() for text in expected)
        assert answer == "; ".join(words)


def test_a_user_without_categories_gets_no_keyword(items: Catalog, tokenizer: Tokenizer) -> None:
    bare = Catalog(items.item_ids, items.titles, ((), *items.categories[1:]))
    (none, some) = speaker(bare, tokenizer).answers(Ragged.from_rows([[0], [1]]))
    assert none == ("", ())
    assert some[1]


@pytest.mark.parametrize("answer", ["free", "categories"])
def test_the_oldest_items_give_way_to_a_short_model(
    items: Catalog, tokenizer: Tokenizer, answer: str
) -> None:
    history = np.arange(5)
    long = speaker(items, tokenizer, answer=answer)
    room = len(long._prompt(history[2:])) + 64
    short = speaker(items, tokenizer, room, answer=answer, new_tokens=64)
    assert list(long._shown(history)) == list(history)
    assert list(short._shown(history)) == [2, 3, 4]
    with pytest.raises(UserError, match="too few for a request about one item"):
        speaker(items, tokenizer, 80, answer=answer).answers(Ragged.from_rows([history]))
