"""The tokens of every item: encoded once, identical in prompts, labels and tries."""

from dataclasses import dataclass

import numpy as np

from palr_jax.data.catalog import Catalog
from palr_jax.errors import UserError
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.templates import item_text
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class ItemTokens:
    """The token segments of a catalog.

    Attributes:
        tokens: one row per item; it ends with the line break that ends an item.
        cut: number of titles that were too long and were cut.
    """

    tokens: Ragged
    cut: int


def tokenize_items(
    catalog: Catalog, tokenizer: Tokenizer, config: InstructConfig, known: Ragged | None = None
) -> ItemTokens:
    """Tokenises every item of a catalog separately.

    A title over the budget of `config.title_tokens` is cut and ends in "…". If the tokens of an
    item equal those of an earlier one or of an empty title, its id is added to the text.

    Args:
        catalog: the items.
        tokenizer: of the ranker.
        config: the form of the texts.
        known: the tokens of the first items, which are kept; by default of none.

    Raises:
        UserError: an item does not fit the budget even with an empty title, or is not unique even
            with its id.
    """
    rows = [] if known is None else [known[item] for item in range(len(known))]
    seen = {tokenizer.encode(item_text(config, "", "")).tobytes(), *(row.tobytes() for row in rows)}
    cut, there = 0, len(rows)
    for item_id, title in zip(catalog.item_ids[there:], catalog.titles[there:], strict=True):
        row = tokenizer.encode(item_text(config, item_id, title))
        too_long = len(row) > config.title_tokens
        if too_long:
            row = _fitted(tokenizer, config, item_id, title, tail="")
            cut += 1
        if row.tobytes() in seen:
            row = _fitted(tokenizer, config, item_id, title, tail=f" [{item_id}]")
        if row.tobytes() in seen:
            raise UserError(
                f"the tokens of item {item_id} are those of another item even with its id: "
                "use a tokenizer that covers its characters"
            )
        seen.add(row.tobytes())
        rows.append(row)
    return ItemTokens(Ragged.from_rows(rows), cut)


def _fitted(
    tokenizer: Tokenizer, config: InstructConfig, item_id: str, title: str, tail: str
) -> np.ndarray:
    """Title and `tail`, or the longest prefix of the title that fits the budget, "…" and `tail`."""
    row = tokenizer.encode(item_text(config, item_id, title + tail))
    if len(row) <= config.title_tokens:
        return row
    low, high = 0, len(title) - 1
    best = None
    while low <= high:
        middle = (low + high) // 2
        row = tokenizer.encode(item_text(config, item_id, f"{title[:middle].rstrip()}…{tail}"))
        if len(row) <= config.title_tokens:
            best, low = row, middle + 1
        else:
            high = middle - 1
    if best is None:
        raise UserError(
            f"item {item_id} needs more than instruct.title_tokens ({config.title_tokens}) "
            "tokens: raise it"
        )
    return best
