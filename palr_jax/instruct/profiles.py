"""Keyword profiles from the categories of a user's items.

Shapes: C categories.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from palr_jax.data.catalog import Catalog
from palr_jax.instruct.config import InstructConfig, ProfileConfig
from palr_jax.instruct.templates import profile_text
from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class CategoryTable:
    """Which items are in which categories.

    Attributes:
        names: the categories in alphabetical order.
        member_IC: sparse 0/1 matrix.
        weight_C: specificity of a category: log(items / items in it).
    """

    names: tuple[str, ...]
    member_IC: sparse.csr_array
    weight_C: np.ndarray


def category_table(catalog: Catalog) -> CategoryTable:
    """Counts the categories of a catalog."""
    names = sorted({name for row in catalog.categories for name in row})
    index = {name: column for column, name in enumerate(names)}
    rows = Ragged.from_rows([[index[name] for name in row] for row in catalog.categories])
    member_IC = sparse.csr_array(
        (np.ones(len(rows.values_N)), rows.values_N, rows.offsets_R1),
        shape=(len(rows), len(names)),
    )
    share_C = member_IC.sum(axis=0) / max(len(rows), 1)
    return CategoryTable(tuple(names), member_IC, -np.log(np.maximum(share_C, 1e-9)))


def keyword_profiles(
    histories: Ragged, table: CategoryTable, config: ProfileConfig, instruct: InstructConfig
) -> list[str]:
    """One profile sentence per history; "" for a history without categories and for kind none.

    Keywords are the categories with the largest count x specificity, so a common category must be
    frequent in a history to be named; ties are broken alphabetically.
    """
    if config.kind == "none":
        return [""] * len(histories)
    count_UI = sparse.csr_array(
        (np.ones(len(histories.values_N)), histories.values_N, histories.offsets_R1),
        shape=(len(histories), table.member_IC.shape[0]),
    )
    score_UC = (count_UI @ table.member_IC).toarray() * table.weight_C
    order_UC = np.argsort(-score_UC, axis=1, kind="stable")[:, : config.keywords]
    profiles = []
    for user, columns in enumerate(order_UC):
        chosen = [table.names[column].lower() for column in columns if score_UC[user, column] > 0]
        profiles.append(profile_text(instruct, tuple(chosen)))
    return profiles
