"""Hard negatives for candidate lists: same categories, co-watched by others (paper, section 3.3).

Shapes: N draws.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.instruct.profiles import CategoryTable
from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class NegativeSampler:
    """Draws items that are hard to tell from a user's targets.

    Attributes:
        train: training items per user; nothing else is known here.
        users: users per item, the transpose of `train`.
        item_categories: categories per item.
        members: items per category.
        category_share: share of draws by category; the rest walk item → user → item.
    """

    train: Ragged
    users: Ragged
    item_categories: Ragged
    members: Ragged
    category_share: float

    @classmethod
    def build(
        cls, train: Ragged, num_items: int, table: CategoryTable, category_share: float
    ) -> "NegativeSampler":
        """Indexes the training items of all users."""
        user_N = np.repeat(np.arange(len(train), dtype=np.int32), train.lengths_R)
        by_item = np.argsort(train.values_N, kind="stable")
        counts_I = np.bincount(train.values_N, minlength=num_items)
        member_CI = table.member_IC.T.tocsr()
        return cls(
            train=train,
            users=Ragged.from_lengths(user_N[by_item], counts_I),
            item_categories=Ragged(table.member_IC.indices, table.member_IC.indptr),
            members=Ragged(member_CI.indices, member_CI.indptr),
            category_share=category_share,
        )

    def draw(
        self,
        rng: np.random.Generator,
        anchors: np.ndarray,
        excluded: np.ndarray,
        count: int,
    ) -> np.ndarray:
        """Draws up to `count` distinct items, none of them in `excluded`.

        Each draw starts at a random one of `anchors` (the history and targets of an example).
        Draws repeat a few times until there are enough; a small catalog may give fewer.
        """
        found = np.zeros(0, np.int32)
        for _ in range(4):
            start_N = rng.choice(anchors, size=4 * count)
            by_category = rng.random(len(start_N)) < self.category_share
            drawn_N = np.where(
                by_category,
                self._walk(rng, start_N, self.item_categories, self.members),
                self._walk(rng, start_N, self.users, self.train),
            )
            fresh = drawn_N[(drawn_N >= 0) & ~np.isin(drawn_N, excluded)]
            found = np.concatenate([found, fresh])
            distinct, first = np.unique(found, return_index=True)
            if len(distinct) >= count:
                break
        return found[np.sort(first)][:count]

    @staticmethod
    def _walk(
        rng: np.random.Generator, start_N: np.ndarray, out: Ragged, back: Ragged
    ) -> np.ndarray:
        """Two random steps, start → out → back; -1 where a step has nowhere to go."""
        middle_N = _random_entry(rng, out, start_N)
        end_N = _random_entry(rng, back, np.maximum(middle_N, 0))
        return np.where(middle_N < 0, -1, end_N)


def _random_entry(rng: np.random.Generator, rows: Ragged, row_N: np.ndarray) -> np.ndarray:
    """A random value of each given row, -1 for an empty row."""
    start_N = rows.offsets_R1[row_N]
    length_N = rows.offsets_R1[row_N + 1] - start_N
    pick_N = start_N + (rng.random(len(row_N)) * length_N).astype(np.int64)
    if not len(rows.values_N):
        return np.full(len(row_N), -1)
    return np.where(length_N > 0, rows.values_N[np.minimum(pick_N, len(rows.values_N) - 1)], -1)
