"""The k-core of an interaction log.

Shapes: N interactions, M interactions still kept.
"""

import numpy as np


def kcore_mask(user_N: np.ndarray, item_N: np.ndarray, k: int) -> np.ndarray:
    """Which interactions remain when users and items with fewer than k are removed repeatedly.

    Args:
        user_N: int, user of each interaction, counted from 0.
        item_N: int, item of each interaction, counted from 0.
        k: minimum number of interactions of a user and of an item (5 in the paper, section 3.1.1).

    Returns:
        bool [N], the largest set in which every user and every item occurs at least k times.
    """
    kept_M = np.arange(len(user_N))
    while True:
        user_M, item_M = user_N[kept_M], item_N[kept_M]
        enough_M = (np.bincount(user_M) >= k)[user_M] & (np.bincount(item_M) >= k)[item_M]
        if enough_M.all():
            break
        kept_M = kept_M[enough_M]
    mask_N = np.zeros(len(user_N), bool)
    mask_N[kept_M] = True
    return mask_N
