"""Lists of items that a caller names by title or id, as item indices.

Shapes: U users, C candidates.
"""

from collections.abc import Sequence
from typing import get_args

import numpy as np

from palr_jax.arguments import choice, lists_of_texts
from palr_jax.data.catalog import By, Catalog
from palr_jax.errors import UserError
from palr_jax.padding import to_power_of_two
from palr_jax.ragged import Ragged


def items_named(
    catalog: Catalog,
    given: Sequence[Sequence[str]],
    what: str,
    by: By,
    like: Ragged | None = None,
) -> Ragged:
    """The items with the given names, one row per user.

    Args:
        catalog: the items by title and id.
        given: titles or ids per user.
        what: the argument, for messages.
        by: how items are named.
        like: rows of the same users; by default their number is not checked.

    Raises:
        UserError: an item is not in the catalog, the number of lists is wrong, or an argument has
            a wrong type.
    """
    choice(by, "by", get_args(By))
    lists = lists_of_texts(given, what)
    if like is not None and len(lists) != len(like):
        raise UserError(f"{len(lists)} lists for {len(like)} histories: give one for each")
    return Ragged.from_rows([catalog.index_by(name, by) for name in row] for row in lists)


def names_of(catalog: Catalog, by: By) -> Sequence[str]:
    """The title or the id of every item."""
    if choice(by, "by", get_args(By)) == "title":
        return catalog.titles
    return list(map(str, catalog.item_ids))


def allowed_candidates(catalog: Catalog, given: Ragged, banned: Ragged) -> np.ndarray:
    """The given candidates without the banned ones, padded with -1, int32 [U, C].

    Raises:
        UserError: a user's candidate appears twice, or all of them are banned.
    """
    rows = []
    for number, (row, banned_row) in enumerate(zip(given, banned, strict=True), 1):
        unique, counts = np.unique(row, return_counts=True)
        if (counts > 1).any():
            title = catalog.titles[unique[counts.argmax()]]
            raise UserError(f"list {number}: the candidate {title!r} appears twice")
        row = row[~np.isin(row, banned_row)]
        if not len(row):
            raise UserError(
                f"list {number}: no candidates are left: name some that are neither in the "
                "history nor excluded"
            )
        rows.append(row)
    # Lists of any length share few widths, and so few programs.
    width = to_power_of_two(max(map(len, rows), default=1), 8)
    candidates_UC = np.full((len(rows), width), -1, np.int32)
    for user, row in enumerate(rows):
        candidates_UC[user, : len(row)] = row
    return candidates_UC


def united(first: Ragged, second: Ragged) -> Ragged:
    """Each row of `first`, followed by the items of the same row of `second` that it lacks."""
    pairs = zip(first, second, strict=True)
    return Ragged.from_rows(np.concatenate([one, np.setdiff1d(other, one)]) for one, other in pairs)
