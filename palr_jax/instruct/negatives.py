"""Hard negatives for candidate lists (paper, section 2.2).

They share a category with the user's items, were co-watched with them, or are top items of a
retriever that was not trained on the user.

Shapes: N draws, P prefixes of histories.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.instruct.profiles import CategoryTable
from palr_jax.ragged import Ragged


@dataclass(frozen=True)
class Retrieved:
    """A retriever's top items for some prefixes of users' training items.

    Attributes:
        moments: per user, the lengths of the prefixes; prefix p is the p-th value overall.
        items_PK: int32, the retriever's top items for prefix p, best first; -1 after the last.
        scores_PK: float32, their scores; -inf after the last.
    """

    moments: Ragged
    items_PK: np.ndarray
    scores_PK: np.ndarray

    def draw(self, rng: np.random.Generator, user: int) -> tuple[int, np.ndarray]:
        """A random moment of a user and its top items, int32 of at most K."""
        prefix = int(rng.integers(self.moments.offsets_R1[user], self.moments.offsets_R1[user + 1]))
        items_K = self.items_PK[prefix]
        return int(self.moments.values_N[prefix]), items_K[items_K >= 0]


def draw_moments(train: Ragged, users: np.ndarray, seed: int, count: int) -> Ragged:
    """Up to `count` moments of each of `users`: lengths from 1 to all training items but one.

    Returns:
        One row per user of `train`, ascending; empty for users that are not in `users`.
    """
    rows = [np.zeros(0, np.int32)] * len(train)
    for user in users:
        possible = np.arange(1, len(train[user]), dtype=np.int32)
        rng = np.random.default_rng([seed, user])
        rows[user] = np.sort(rng.permutation(possible)[:count])
    return Ragged.from_rows(rows)


@dataclass(frozen=True)
class NegativeSampler:
    """Draws items that are hard to tell from a user's targets.

    Attributes:
        train: training items per user, without validation and test items.
        users: users per item, the transpose of `train`.
        item_categories: categories per item.
        members: items per category.
        unknown_I: bool, items without training interactions, which are never drawn.
        category_share: share of draws by category; the others walk item → user → item.
        retriever_share: share of the negatives that come from the retriever's list.
    """

    train: Ragged
    users: Ragged
    item_categories: Ragged
    members: Ragged
    unknown_I: np.ndarray
    category_share: float
    retriever_share: float

    @classmethod
    def build(
        cls,
        train: Ragged,
        num_items: int,
        table: CategoryTable,
        category_share: float,
        retriever_share: float = 0.0,
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
            unknown_I=counts_I == 0,
            category_share=category_share,
            retriever_share=retriever_share,
        )

    def draw(
        self,
        rng: np.random.Generator,
        anchors: np.ndarray,
        excluded: np.ndarray,
        count: int,
        retrieved: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draws up to `count` distinct items that are not in `excluded`, in random order.

        Each walk starts at a random item of `anchors`. Draws are repeated a few times until they
        suffice; a small catalog may give fewer items.

        Args:
            rng: random generator of the example.
            anchors: the history and targets, which the negatives should resemble.
            excluded: items that the user has interacted with.
            count: number of items.
            retrieved: the retriever's top items; `retriever_share` of `count` are drawn from them.
        """
        taken_I = self.unknown_I.copy()
        taken_I[excluded] = True
        found: list[np.ndarray] = []
        if retrieved is not None:
            free = retrieved[~taken_I[retrieved]]
            chosen = rng.permutation(free)[: round(self.retriever_share * count)]
            taken_I[chosen] = True
            found.append(chosen)
            count -= len(chosen)
        for _ in range(4):
            if count <= 0:
                break
            drawn_N = self._walks(rng, anchors, 2 * count + 8)
            fresh = _first_of_each(drawn_N[~taken_I[drawn_N]], len(taken_I))[:count]
            taken_I[fresh] = True
            found.append(fresh)
            count -= len(fresh)
        return np.concatenate([np.zeros(0, np.int32), *found])

    def _walks(self, rng: np.random.Generator, anchors: np.ndarray, count: int) -> np.ndarray:
        """The last items of `count` walks, without those that reach a dead end."""
        start_N = anchors[(rng.random(count) * len(anchors)).astype(np.int64)]
        by_category_N = rng.random(count) < self.category_share
        end_N = np.empty(count, np.int64)
        for chosen_N, out, back in (
            (by_category_N, self.item_categories, self.members),
            (~by_category_N, self.users, self.train),
        ):
            middle_N = _random_entry(rng, out, start_N[chosen_N])
            last_N = _random_entry(rng, back, np.maximum(middle_N, 0))
            end_N[chosen_N] = np.where(middle_N < 0, -1, last_N)
        return end_N[end_N >= 0]


def _random_entry(rng: np.random.Generator, rows: Ragged, row_N: np.ndarray) -> np.ndarray:
    """A random value of each given row; -1 for an empty row."""
    if not len(rows.values_N):
        return np.full(len(row_N), -1)
    start_N = rows.offsets_R1[row_N]
    length_N = rows.offsets_R1[row_N + 1] - start_N
    pick_N = start_N + (rng.random(len(row_N)) * length_N).astype(np.int64)
    return np.where(length_N > 0, rows.values_N.take(pick_N, mode="clip"), -1)


def _first_of_each(items_N: np.ndarray, num_items: int) -> np.ndarray:
    """The distinct items, in the order of their first occurrence."""
    index_N = np.arange(len(items_N))
    first_I = np.empty(num_items, np.int64)
    first_I[items_N[::-1]] = index_N[::-1]  # NumPy keeps the last value of a repeated index
    return items_N[first_I[items_N] == index_N]
