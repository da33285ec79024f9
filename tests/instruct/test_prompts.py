from dataclasses import replace

import numpy as np
import pytest

from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged

PROFILE = "The user enjoys drama movies."


def test_the_prompt_reads_as_the_paper_has_it(writer: PromptWriter, tokenizer: Tokenizer) -> None:
    text = tokenizer.decode(writer.prompt([0, 1], PROFILE, candidates=[4, 2, 3]).tokens_T)
    assert text == (
        "Recommend 4 other movies based on the user's history from the candidate list.\n"
        "The user enjoys drama movies.\n"
        "The user watched these movies:\n"
        '"Night 0 (1980)"\n"Return of the King 1 (1981)"\n'
        "The candidate movies are:\n"
        '"Léon 4 (1984)"\n"Day 2 (1982)"\n"Ice, Fire 3 (1983)"\n'
        "Recommendations:\n"
    )


def test_candidates_are_numbered_by_rank_on_request(
    tokenizer: Tokenizer, item_tokens: Ragged, instruct_config: InstructConfig
) -> None:
    config = replace(instruct_config, candidate_order="ranks")
    writer = PromptWriter(tokenizer, item_tokens, config)
    prompt = writer.prompt([0, 1], PROFILE, candidates=[4, 2, 3])
    assert '\n1. "Léon 4 (1984)"\n2. "Day 2 (1982)"\n3. "Ice, Fire 3 (1983)"\n' in (
        tokenizer.decode(prompt.tokens_T)
    )
    # The tokens of the items are those of the trie, and each ends where it is marked.
    for item in (0, 1, 4, 2, 3):
        (end,) = np.flatnonzero(prompt.marks_T == item)
        start = end + 1 - len(item_tokens[item])
        np.testing.assert_array_equal(prompt.tokens_T[start : end + 1], item_tokens[item])
    assert (prompt.marks_T >= 0).sum() == 5


def test_candidates_are_listed_by_letters_if_those_are_the_answer(
    tokenizer: Tokenizer, item_tokens: Ragged, instruct_config: InstructConfig
) -> None:
    config = replace(instruct_config, answer="letter", length=4096)
    writer = PromptWriter(tokenizer, item_tokens, config)
    text = tokenizer.decode(writer.prompt([0, 1], PROFILE, candidates=[4, 2, 3]).tokens_T)
    assert '\n(A) "Léon 4 (1984)"\n(B) "Day 2 (1982)"\n(C) "Ice, Fire 3 (1983)"\n' in text
    assert '"Night 0 (1980)"\n"Return of the King 1 (1981)"\n' in text  # the history as ever
    with pytest.raises(UserError, match="at most 52 candidates: give fewer"):
        writer.prompt([0], PROFILE, [item % 30 for item in range(53)])


def test_without_candidates_and_profile_both_parts_vanish(
    writer: PromptWriter, tokenizer: Tokenizer
) -> None:
    text = tokenizer.decode(writer.prompt([0], "").tokens_T)
    assert text == (
        "Recommend 4 other movies based on the user's history.\n"
        'The user watched these movies:\n"Night 0 (1980)"\nRecommendations:\n'
    )


def test_item_tokens_are_the_same_in_history_candidates_and_label(
    writer: PromptWriter, item_tokens: Ragged, tokenizer: Tokenizer
) -> None:
    (bos,), eos = tokenizer.begin_ids, tokenizer.eos_id
    prompt = writer.prompt([5, 6], PROFILE, candidates=[7, 8]).tokens_T
    assert prompt[0] == bos
    history, candidates = np.concatenate([item_tokens[5], item_tokens[6]]), item_tokens[7]
    for part in (history, candidates):
        windows = np.lib.stride_tricks.sliding_window_view(prompt, len(part))
        assert (windows == part).all(1).sum() == 1
    np.testing.assert_array_equal(writer.label([7, 8]), [*item_tokens[7], *item_tokens[8], eos])


def test_only_the_newest_items_stand_in_the_history(
    writer: PromptWriter, tokenizer: Tokenizer
) -> None:
    text = tokenizer.decode(writer.prompt(list(range(9)), "").tokens_T)
    assert "Ice, Fire 3" not in text
    assert text.index("Léon 4") < text.index("Day 8")


def test_a_long_prompt_loses_its_oldest_history_and_nothing_else(
    tokenizer: Tokenizer, item_tokens: Ragged, instruct_config: InstructConfig
) -> None:
    writer = PromptWriter(tokenizer, item_tokens, instruct_config)
    full_T, _, kept_H = writer.prompt([0, 1, 2], PROFILE, [3, 4])
    assert kept_H.tolist() == [0, 1, 2]
    config = replace(instruct_config, length=len(full_T) + 9)
    writer = PromptWriter(tokenizer, item_tokens, config)
    cut_T, _, kept_H = writer.prompt([0, 1, 2], PROFILE, [3, 4], 10)
    assert tokenizer.decode(cut_T) == tokenizer.decode(full_T).replace('"Night 0 (1980)"\n', "")
    assert kept_H.tolist() == [1, 2]
    assert len(cut_T) + 10 <= config.length


def test_a_prompt_that_cannot_fit_is_refused(
    tokenizer: Tokenizer, item_tokens: Ragged, instruct_config: InstructConfig
) -> None:
    writer = PromptWriter(tokenizer, item_tokens, replace(instruct_config, length=64))
    with pytest.raises(UserError, match=r"without any history item: raise instruct.length \(64\)"):
        writer.prompt([0], PROFILE, list(range(12)))
