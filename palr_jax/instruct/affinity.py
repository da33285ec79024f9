"""Items near a user: the 3-hop walk user → item → user → item (paper, section 2.2).

Shapes: B users of a chunk.
"""

import numpy as np
from scipy import sparse

from palr_jax.ragged import Ragged

# Exponent of the popularity that walk probabilities are divided by. At 0.6 Paudel et al. (2017,
# RP3beta) found recommendations both accurate and diverse.
_POPULARITY_POWER = 0.6
_CHUNK = 128


def three_hop(train: Ragged, num_items: int, users: np.ndarray, k: int) -> Ragged:
    """The `k` items nearest to each of `users`, without the user's own training items.

    A random walk of three steps starts at the user; an item's affinity is the probability that the
    walk ends at it, divided by a power of its popularity. The graph holds training interactions
    only.

    Args:
        train: training items per user.
        num_items: size of the catalog.
        users: the users to walk from.
        k: maximum number of items per user; a user with few neighbours gets fewer.

    Returns:
        One row per user of `train`, nearest items first; empty for users that are not in `users`.
    """
    seen_UI = sparse.csr_array(
        (np.ones(len(train.values_N)), train.values_N, train.offsets_R1),
        shape=(len(train), num_items),
    )
    popularity_I = np.maximum(seen_UI.sum(axis=0), 1)
    out_UI = sparse.csr_array(sparse.diags_array(1 / np.maximum(train.lengths_R, 1)) @ seen_UI)
    back_IU = sparse.csr_array(sparse.diags_array(1 / popularity_I) @ seen_UI.T)
    rows = [np.zeros(0, np.int32)] * len(train)
    for start in range(0, len(users), _CHUNK):
        users_B = users[start : start + _CHUNK]
        walked_BI = (out_UI[users_B] @ back_IU @ out_UI).toarray()
        walked_BI /= popularity_I**_POPULARITY_POWER
        walked_BI[seen_UI[users_B].nonzero()] = 0
        order_BK = np.argsort(-walked_BI, axis=1, kind="stable")[:, :k]
        reached_B = np.minimum((walked_BI > 0).sum(axis=1), k)
        for user, order_K, reached in zip(users_B, order_BK, reached_B, strict=True):
            rows[user] = order_K[:reached].astype(np.int32)
    return Ragged.from_rows(rows)
