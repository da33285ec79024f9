"""The keywords that an LLM may choose for a user: the categories of the items it is shown.

Shapes: U users, C choices of a user.
"""

import numpy as np

from palr_jax.instruct.profiles import CategoryTable
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged

# Ends every keyword. No keyword holds it, so none begins with all the tokens of another.
_END = ";"


def keyword_tokens(table: CategoryTable, tokenizer: Tokenizer) -> Ragged:
    """The tokens of every category as an answer writes it, in lower case and ended by a semicolon.

    Categories that differ by case, or by what the tokenizer drops, have the same tokens.
    """
    end = tokenizer.encode(_END)
    return Ragged.from_rows(
        [*tokenizer.encode(f" {name.lower().replace(_END, ',')}"), *end] for name in table.names
    )


def choices_of(histories: Ragged, table: CategoryTable, tokens: Ragged) -> np.ndarray:
    """The categories of each history, int32 [U, C], the most frequent first; -1 after the last.

    Of categories with the same tokens, the first one stands for all.

    Args:
        histories: items per user.
        table: the categories of the catalog.
        tokens: as `keyword_tokens` makes them.
    """
    first: dict[bytes, int] = {}
    same = [first.setdefault(tokens[name].tobytes(), name) for name in range(len(tokens))]
    rows = []
    for history in histories:
        count_C = np.asarray(table.member_IC[history].sum(axis=0)).ravel()
        order_C = np.argsort(-count_C, kind="stable")[: np.count_nonzero(count_C)]
        rows.append(list(dict.fromkeys(same[name] for name in order_C)))
    width = max([1, *map(len, rows)])
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int32).reshape(-1, width)
