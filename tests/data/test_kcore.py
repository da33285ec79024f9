import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from palr_jax.data.kcore import kcore_mask


def brute_force(pairs: list[tuple[int, int]], k: int) -> list[bool]:
    """Removes offending interactions one by one until none remains."""
    kept = [True] * len(pairs)
    while True:
        alive = [pair for pair, keep in zip(pairs, kept, strict=True) if keep]
        users, items = [user for user, _ in alive], [item for _, item in alive]
        offenders = [
            row
            for row, (user, item) in enumerate(pairs)
            if kept[row] and (users.count(user) < k or items.count(item) < k)
        ]
        if not offenders:
            return kept
        kept[offenders[0]] = False


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_agrees_with_brute_force(pairs: list[tuple[int, int]], k: int) -> None:
    user_N = np.array([user for user, _ in pairs], np.int32)
    item_N = np.array([item for _, item in pairs], np.int32)
    assert kcore_mask(user_N, item_N, k).tolist() == brute_force(pairs, k)


def test_one_removal_can_undo_everything() -> None:
    # A ring of users and items is a 2-core; without one edge it unravels completely.
    ring = [(node, node) for node in range(50)] + [(node, (node + 1) % 50) for node in range(50)]
    user_N, item_N = np.array(ring).T
    assert kcore_mask(user_N, item_N, 2).all()
    assert not kcore_mask(user_N[1:], item_N[1:], 2).any()
