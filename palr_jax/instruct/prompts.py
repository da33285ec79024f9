"""Prompts as concatenations of token segments that were tokenised separately.

Shapes: M label tokens, H history items.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from palr_jax.errors import UserError
from palr_jax.instruct.config import LETTERS, InstructConfig
from palr_jax.instruct.templates import template
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged


class Prompt(NamedTuple):
    """A prompt, and which items are where in it.

    Attributes:
        tokens_T: int32.
        marks_T: int32, the item whose text ends at each token; -1 at all other tokens.
        kept_H: int64, the items of the history that the prompt holds, oldest first.
    """

    tokens_T: np.ndarray
    marks_T: np.ndarray
    kept_H: np.ndarray


class PromptWriter:
    """Writes the prompts of both tasks as token ids.

    Attributes:
        tokenizer: of the ranker.
        config: the form of the prompts.
        letters: the tokens of each of `LETTERS`.
    """

    def __init__(self, tokenizer: Tokenizer, items: Ragged, config: InstructConfig) -> None:
        parts = template(config)
        self.config = config
        self.tokenizer = tokenizer
        self._items = items
        self._encoded: dict[str, np.ndarray] = {"": np.zeros(0, np.int32)}
        self.letters = Ragged.from_rows(tokenizer.encode(letter) for letter in LETTERS)
        if config.answer == "letter" and len({tuple(row) for row in self.letters}) < len(LETTERS):
            raise UserError(
                "instruct.answer letter: the tokenizer encodes two letters alike: set title"
            )
        begin = np.array(tokenizer.begin_ids, np.int32)
        self._recommend = np.concatenate([begin, tokenizer.encode(parts.recommend)])
        self._retrieval = np.concatenate([begin, tokenizer.encode(parts.recommend_retrieval)])
        self._history = tokenizer.encode(parts.history)
        self._begin_history = np.concatenate([begin, self._history])
        self._candidates = tokenizer.encode(parts.candidates)
        self._answer = tokenizer.encode(parts.answer)
        self._end = np.array([tokenizer.eos_id], np.int32)

    def prompt(
        self,
        history: Sequence[int] | np.ndarray,
        profile: str,
        candidates: Sequence[int] | np.ndarray | None = None,
        label_tokens: int = 0,
    ) -> Prompt:
        """A prompt; with candidates, one of the task Recommend_Retrieval.

        The history is cut to the newest `config.history` items, then further, oldest first,
        until prompt and label fit in `config.length` tokens.

        Raises:
            UserError: the prompt does not fit even without history.
        """
        instruction = self._retrieval if candidates is not None else self._recommend
        before = [instruction, self._profile(profile), self._history]
        items_C = np.asarray([] if candidates is None else candidates, np.int64)
        listed_T, item_T = self._listed(items_C)
        after = [self._candidates, listed_T] if candidates is not None else []
        after.append(self._answer)
        taken = sum(map(len, before)) + sum(map(len, after)) + label_tokens
        if taken > self.config.length:
            raise UserError(
                f"a prompt needs {taken} tokens without any history item: "
                f"raise instruct.length ({self.config.length}) or lower instruct.candidates"
            )
        kept_H = self._newest(np.asarray(history, np.int64), self.config.length - taken)
        parts = [*before, self._items.join(kept_H), *after]
        marks = [np.full(len(part), -1, np.int32) for part in parts]
        marks[3] = self._marks(kept_H)
        if candidates is not None:
            marks[5] = item_T
        return Prompt(np.concatenate(parts), np.concatenate(marks), kept_H)

    def ranking_prompt(
        self, history: Sequence[int] | np.ndarray, profile: str, candidates: np.ndarray
    ) -> Prompt:
        """The prompt for ranking candidates, in the form of `config.prompt`."""
        if self.config.prompt == "history":
            return self.history_prompt(history)
        return self.prompt(history, profile, candidates)

    def history_prompt(
        self, history: Sequence[int] | np.ndarray, room: int | None = None
    ) -> Prompt:
        """A prompt that the next item continues.

        The history is cut to the newest `config.history` items, then further, oldest first,
        until the prompt fits in `room` tokens, by default `config.length`.
        """
        head = self._begin_history
        room = (self.config.length if room is None else room) - len(head)
        kept_H = self._newest(np.asarray(history, np.int64), room)
        marks_T = np.concatenate([np.full(len(head), -1, np.int32), self._marks(kept_H)])
        return Prompt(np.concatenate([head, self._items.join(kept_H)]), marks_T, kept_H)

    def _listed(self, items_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a list of candidates, and the item that ends at each, as in `Prompt`."""
        if self.config.candidate_order != "ranks" and self.config.answer == "title":
            return self._items.join(items_C), self._marks(items_C)
        lines, marks = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
        for index, item in enumerate(items_C):
            label_T = np.concatenate([self._rank(index), self._letter(index)])
            lines += [label_T, self._items[item]]
            marks += [np.full(len(label_T), -1, np.int32), self._marks(items_C[[index]])]
        return np.concatenate(lines), np.concatenate(marks)

    def _rank(self, index: int) -> np.ndarray:
        """The rank before a candidate of the list, if the config asks for it."""
        return self._encode(f"{index + 1}. " if self.config.candidate_order == "ranks" else "")

    def _letter(self, index: int) -> np.ndarray:
        """The letter before a candidate of the list, if it is the answer.

        Raises:
            UserError: there are more candidates than letters.
        """
        if self.config.answer == "title":
            return self._encode("")
        if index >= len(self.letters):
            raise UserError(
                f"instruct.answer letter names at most {len(self.letters)} candidates: give fewer"
            )
        return np.concatenate([self._encode("("), self.letters[index], self._encode(") ")])

    def _encode(self, text: str) -> np.ndarray:
        if text not in self._encoded:
            self._encoded[text] = self.tokenizer.encode(text)
        return self._encoded[text]

    def _marks(self, items_H: np.ndarray) -> np.ndarray:
        length_H = self._items.offsets_R1[items_H + 1] - self._items.offsets_R1[items_H]
        item_T = np.full(int(length_H.sum()), -1, np.int32)
        item_T[np.cumsum(length_H) - 1] = items_H
        return item_T

    def prefix_length(self, with_candidates: bool) -> int:
        """Number of leading tokens that all prompts share, with candidates or without."""
        if with_candidates and self.config.prompt == "history":
            return len(self._begin_history)
        return len(self._retrieval if with_candidates else self._recommend)

    def label(self, items: Sequence[int] | np.ndarray) -> np.ndarray:
        """The answer to a prompt, int32 [M], including the end token."""
        return np.concatenate([self._items.join(items), self._end])

    def _newest(self, history_H: np.ndarray, room: int) -> np.ndarray:
        """The newest items whose tokens fit in `room`, at most `config.history` of them."""
        newest_H = history_H[::-1][: self.config.history]
        offsets_I1 = self._items.offsets_R1
        tokens_H = np.cumsum(offsets_I1[newest_H + 1] - offsets_I1[newest_H])
        return newest_H[: np.searchsorted(tokens_H, room, side="right")][::-1]

    def _profile(self, text: str) -> np.ndarray:
        return self._encode(f"{text}\n" if text else "")
