"""A LLaMA that is asked for the keywords of users (paper, Figure 2).

Shapes: B users at a time, T prompt tokens, C choices, K keywords.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from palr_jax.config import Config
from palr_jax.data.catalog import Catalog
from palr_jax.decoding.generate import generate
from palr_jax.decoding.trie import build
from palr_jax.decoding.write import write_text
from palr_jax.errors import UserError
from palr_jax.instruct.keyword_choices import choices_of, keyword_tokens
from palr_jax.instruct.llm_profiles import (
    instruction,
    item_list,
    prompt_tokens,
    read_keywords,
    stop_ids,
)
from palr_jax.instruct.profiles import CategoryTable, category_table
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.padding import to_multiple
from palr_jax.ragged import Ragged

# Prompts are padded to a multiple of this, so that few programs serve all lengths.
_PROMPT_BUCKET = 128
# Room that a choice of keywords takes after the prompt.
_CHOICE_TOKENS = 64

# What was written, and the keywords in it.
Answer = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Speaker:
    """Asks for the keywords of users.

    Attributes:
        model: any LLaMA; the better it follows instructions, the better the keywords.
        tokenizer: its tokenizer.
        catalog: titles and categories of the items.
        config: of the run.
    """

    model: Llama
    tokenizer: Tokenizer
    catalog: Catalog
    config: Config

    def answers(self, histories: Ragged) -> list[Answer]:
        """What the LLaMA answers about each history, and the keywords in it; () for no keywords.

        Args:
            histories: items per user, oldest first; at most `profile.batch_size` users.

        Raises:
            UserError: the LLaMA reads too few tokens for a request about one item.
        """
        shown = Ragged.from_rows(self._shown(history) for history in histories)
        prompts = Ragged.from_rows(map(self._prompt, shown))
        if self.config.profile.answer == "categories":
            return self._chosen(shown, prompts)
        return self._free(histories, prompts)

    def _free(self, histories: Ragged, prompts: Ragged) -> list[Answer]:
        """Written without constraint."""
        settings = self.config.profile
        tokens_BT, length_B = self._padded(prompts)
        written_BN = write_text(
            self.model, tokens_BT, length_B, settings.new_tokens, stop_ids(self.tokenizer)
        )
        answers = []
        for history, row in zip(histories, written_BN, strict=False):
            answer = self.tokenizer.decode(row[row >= 0])
            titles = [self.catalog.titles[item] for item in history]
            words = read_keywords(answer, self._instruction, titles, settings.keywords)
            answers.append((answer, words))
        return answers

    def _chosen(self, shown: Ragged, prompts: Ragged) -> list[Answer]:
        """Written along a trie of the categories of each history, none twice."""
        tokens_BT, length_B = self._padded(prompts)
        choices_BC = choices_of(shown, self._table, self._keywords)
        choices_BC = choices_BC[np.resize(np.arange(len(shown)), len(length_B))]
        trie = build(self._keywords, choices_BC)
        count = self.config.profile.keywords
        slate = generate(self.model, tokens_BT, length_B, trie, choices_BC >= 0, count)
        answers = []
        for choice_C, slot_K in zip(
            choices_BC[: len(shown)], np.asarray(slate.slot_BK), strict=False
        ):
            names = tuple(self._table.names[choice_C[slot]].lower() for slot in slot_K[slot_K >= 0])
            answers.append(("; ".join(names), names))
        return answers

    @cached_property
    def _table(self) -> CategoryTable:
        return category_table(self.catalog)

    @cached_property
    def _keywords(self) -> Ragged:
        return keyword_tokens(self._table, self.tokenizer)

    @property
    def _instruction(self) -> str:
        return instruction(self.config.profile, self.config.instruct.item_kind)

    def _shown(self, history: np.ndarray) -> np.ndarray:
        """The newest items, as many as `instruct.history` and the model allow."""
        settings = self.config.profile
        answer = _CHOICE_TOKENS if settings.answer == "categories" else settings.new_tokens
        room = self.model.config.max_length - answer
        for kept in range(min(len(history), self.config.instruct.history), 0, -1):
            shown = history[len(history) - kept :]
            if len(self._prompt(shown)) <= room:
                return shown
        raise UserError(
            f"{settings.weights} reads {self.model.config.max_length} tokens at most, too few for "
            "a request about one item and its answer: lower profile.new_tokens or name another"
        )

    def _prompt(self, shown: Sequence[int] | np.ndarray) -> np.ndarray:
        """The request about some items, int32 [T]."""
        return prompt_tokens(self.tokenizer, self._instruction + item_list(self.catalog, shown))

    def _padded(self, prompts: Ragged) -> tuple[np.ndarray, np.ndarray]:
        """Prompts of one width and their lengths; a smaller last batch is filled up."""
        size = self.config.profile.batch_size
        length_B = np.resize(prompts.lengths_R, size).astype(np.int32)
        width = to_multiple(int(length_B.max()), _PROMPT_BUCKET)
        tokens_BT = np.zeros((size, width), np.int32)
        for row in range(size):
            tokens_BT[row, : length_B[row]] = prompts[row % len(prompts)]
        return tokens_BT, length_B
