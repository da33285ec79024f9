"""Leave-one-out: a user's last item is for test, the one before for validation, the rest for
training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from palr_jax.ragged import Ragged

Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Split:
    """The leave-one-out split of an interaction log (paper, section 3.1.2).

    Items and users are indices: item i is row i of the catalog, user u is `user_ids[u]`.

    Attributes:
        train: per user, the items before the last two, oldest first.
        validation_U: int32, the item before the last of each user.
        test_U: int32, the last item of each user.
        user_ids: str, the ids of the users in the source.
        num_items: size of the catalog.
    """

    train: Ragged
    validation_U: np.ndarray
    test_U: np.ndarray
    user_ids: np.ndarray
    num_items: int

    @property
    def num_users(self) -> int:
        """Number of users U."""
        return len(self.validation_U)

    def targets(self, part: Part) -> np.ndarray:
        """The target item of each user, int32 [U]."""
        return self.validation_U if part == "validation" else self.test_U

    def histories(
        self, part: Part | Literal["all"], users: Sequence[int] | np.ndarray | None = None
    ) -> Ragged:
        """The items before each user's target, oldest first; for "all" every item of the user.

        Args:
            part: for validation the training items, for test also the validation item.
            users: indices of the users, in the order of the result; by default all.
        """
        later = {"validation": (), "test": (self.validation_U,),
                 "all": (self.validation_U, self.test_U)}[part]  # fmt: skip
        chosen = np.arange(self.num_users) if users is None else np.asarray(users, np.int64)
        train = self.train if users is None else self.train.take(chosen)
        end_N = np.repeat(train.offsets_R1[1:], len(later))
        later_N = np.array([item_U[chosen] for item_U in later], np.int32).T.reshape(-1)
        joined_N = np.insert(train.values_N, end_N, later_N)
        return Ragged.from_lengths(joined_N, train.lengths_R + len(later))


def leave_one_out(sequences: Ragged, user_ids: np.ndarray, num_items: int) -> Split:
    """Splits sequences of at least three items each, oldest first."""
    last_U = sequences.offsets_R1[1:] - 1
    train_N = np.delete(sequences.values_N, np.concatenate([last_U - 1, last_U]))
    return Split(
        train=Ragged.from_lengths(train_N, sequences.lengths_R - 2),
        validation_U=sequences.values_N[last_U - 1],
        test_U=sequences.values_N[last_U],
        user_ids=user_ids,
        num_items=num_items,
    )
