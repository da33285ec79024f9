import numpy as np

from palr_jax.instruct.affinity import three_hop
from palr_jax.ragged import Ragged


def by_hand(train: Ragged, num_items: int, user: int) -> np.ndarray:
    """Walk probability over popularity ** 0.6, summed path by path; -1 at the user's own items."""
    popularity = np.bincount(train.values_N, minlength=num_items)
    score = np.zeros(num_items)
    for item in train[user]:
        for other in range(len(train)):
            if item in train[other]:
                for end in train[other]:
                    score[end] += 1 / (len(train[user]) * popularity[item] * len(train[other]))
    score /= np.maximum(popularity, 1) ** 0.6
    score[train[user]] = -1
    return score


def test_items_come_in_order_of_their_three_hop_walks(train: Ragged) -> None:
    found = three_hop(train, 30, np.arange(len(train)), k=6)
    for user in range(len(train)):
        score = by_hand(train, 30, user)
        reached = np.count_nonzero(score > 0)
        assert len(found[user]) == min(6, reached)
        np.testing.assert_allclose(score[found[user]], np.sort(score)[::-1][: len(found[user])])


def test_only_the_users_asked_for_have_items() -> None:
    train = Ragged.from_rows([[0, 1], [1, 2], [3], []])
    found = three_hop(train, 5, np.array([0, 2, 3]), k=4)
    # No other user has item 3; a user without items reaches no item.
    assert [row.tolist() for row in found] == [[2], [], [], []]


def test_of_two_items_as_easy_to_reach_the_rarer_is_nearer() -> None:
    train = Ragged.from_rows([[0], [0, 1, 2], [1], [1]])
    assert three_hop(train, 3, np.array([0]), k=2)[0].tolist() == [2, 1]
