"""The prompts of many users, and batches of them that share a width."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from palr_jax.instruct.prompts import PromptWriter
from palr_jax.io.progress import Advance
from palr_jax.padding import to_multiple
from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class Prompts:
    """The prompt of each of several users, as in `Prompt`.

    Attributes:
        tokens: the tokens.
        marks: the item whose text ends at each token; -1 at all other tokens.
        kept: the items of the history that the prompt holds, oldest first.
    """

    tokens: Ragged
    marks: Ragged
    kept: Ragged

    def take(self, rows: Sequence[int] | np.ndarray) -> "Prompts":
        """The prompts of the given rows, in the given order."""
        return Prompts(self.tokens.take(rows), self.marks.take(rows), self.kept.take(rows))


def read_prompts(
    writer: PromptWriter,
    histories: Ragged,
    profiles: Sequence[str],
    candidates_UC: np.ndarray | None,
) -> Prompts:
    """The prompts for ranking candidates, or for writing from the catalog if they are None.

    Args:
        writer: knows the items.
        histories: items per user, oldest first.
        profiles: a sentence per user.
        candidates_UC: item indices, padded with -1.

    Raises:
        UserError: a prompt does not fit even without history.
    """
    prompts = []
    for user, profile in enumerate(profiles):
        if candidates_UC is None:
            prompts.append(writer.prompt(histories[user], profile))
        else:
            candidates_C = candidates_UC[user][candidates_UC[user] >= 0]
            prompts.append(writer.ranking_prompt(histories[user], profile, candidates_C))
    return Prompts(
        Ragged.from_rows(prompt.tokens_T for prompt in prompts),
        Ragged.from_rows(prompt.marks_T for prompt in prompts),
        Ragged.from_rows(prompt.kept_H for prompt in prompts),
    )


def batches_of(prompts: Ragged, size: int, advance: Advance) -> Iterator[np.ndarray]:
    """The users of each batch, [B], by prompt length, so that few tokens are padding.

    The last batch repeats users, so that every batch has the same number of rows. A user counts
    as done when the next batch is asked for.
    """
    order_U = np.argsort(prompts.lengths_R, kind="stable")
    for start in range(0, len(order_U), size):
        rows_B = order_U[start : start + size]
        yield np.resize(rows_B, size)
        advance(len(rows_B))


def padded(prompts: Ragged, width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as rows of one width, int32 [B, T], and their lengths, int32 [B].

    Args:
        prompts: their tokens.
        width: the least T.
    """
    length_B = prompts.lengths_R.astype(np.int32)
    width = max(width, prompt_width(int(length_B.max())))
    return prompts.padded(width, fill=0), length_B


def prompt_width(length: int) -> int:
    """The padded length of prompts of `length` tokens; few lengths mean few compiled programs."""
    return to_multiple(length, 32 if length <= 256 else 128)
