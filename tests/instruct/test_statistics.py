from dataclasses import replace

import numpy as np
import pytest

from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.packing import Packing
from palr_jax.instruct.pipeline import WINDOW, batches, visit
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.instruct.statistics import marked_text, measure
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged
from tests.instruct.test_examples import make_maker


def test_statistics_are_those_of_the_batches(
    catalog: Catalog, train: Ragged, writer: PromptWriter, instruct_config: InstructConfig
) -> None:
    config = replace(instruct_config, swap=0.2, enrich_label=3)
    maker = make_maker(catalog, train, writer, config, 0.5)
    packing = Packing(rows=1, length=900, label_length=300)
    found = measure(maker, np.arange(12), packing)
    examples = list(visit(maker, np.arange(12), 0, WINDOW))
    tokens = sorted(len(e.prompt_T) + len(e.label_M) - 1 for e in examples)
    labels = sum(len(e.label_M) for e in examples)
    assert found.examples == WINDOW
    assert found.tokens_median == np.median(tokens)
    assert tokens[int(0.94 * WINDOW)] <= found.tokens_95 <= tokens[int(0.96 * WINDOW)]
    assert found.label == pytest.approx(labels / sum(tokens))
    assert found.enriched == np.mean([e.enriched for e in examples])
    assert found.swapped == np.mean([e.swapped for e in examples])
    assert 0 < found.enriched < 1
    assert 0 < found.swapped < 1
    iterator = iter(batches(maker, np.arange(12), packing))
    filled = rows = 0
    while filled < sum(tokens):
        filled += int((next(iterator)["segment_BT"] > 0).sum())
        rows += 1
    assert found.padding == pytest.approx(1 - filled / (rows * 900))
    assert f"{WINDOW:,} examples of {np.median(tokens):,.0f} tokens" in str(found)


def test_an_example_is_shown_with_its_label_marked(
    catalog: Catalog,
    train: Ragged,
    writer: PromptWriter,
    instruct_config: InstructConfig,
    tokenizer: Tokenizer,
) -> None:
    example = make_maker(catalog, train, writer, instruct_config, 1.0).example(9, 0)
    prompt, label = tokenizer.decode(example.prompt_T), tokenizer.decode(example.label_M)
    assert marked_text(example, tokenizer) == f"{prompt}«{label}<end>»"


def test_examples_that_cannot_fit_are_met_before_training(
    catalog: Catalog,
    train: Ragged,
    tokenizer: Tokenizer,
    item_tokens: Ragged,
    instruct_config: InstructConfig,
) -> None:
    config = replace(instruct_config, length=150)
    maker = make_maker(catalog, train, PromptWriter(tokenizer, item_tokens, config), config, 1.0)
    with pytest.raises(UserError, match=r"raise instruct.length \(150\)"):
        measure(maker, np.arange(12), Packing(1, 900, 300))
