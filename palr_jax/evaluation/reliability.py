"""Reliability of P(candidate): what was predicted, against how often it came true."""

from itertools import pairwise

import numpy as np

from palr_jax.json_types import JsonObject

# With 50 candidates most probabilities lie around 1/50 and below.
EDGES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# The 97.5% quantile of the normal distribution.
_Z = 1.959963984540054


def reliability(
    logp_UC: np.ndarray, candidates_UC: np.ndarray, target_U: np.ndarray
) -> list[JsonObject]:
    """P(candidate) in bins, beside the share of these candidates that were the test item.

    P sums to 1 over the candidates of a user. So it can be right on average only over users whose
    test item is a candidate (`found`); over `all` users it is too high by the retriever's misses.

    Args:
        logp_UC: log P of every candidate.
        candidates_UC: item indices, -1 where there is no candidate.
        target_U: the test item of each user.

    Returns:
        A dict for each bin (from, to] that is not empty: `from`, `to`, and for `found` and `all`
        the number of `candidates`, the mean `predicted` probability, the `observed` share and
        `ci95`, its 95% Wilson interval; None where no candidate is in the bin.
    """
    is_candidate_UC = candidates_UC >= 0
    is_target_UC = candidates_UC == target_U[:, None]
    p_UC = np.exp(logp_UC.astype(np.float64))
    is_found_UC = is_candidate_UC & is_target_UC.any(axis=1, keepdims=True)
    bins = []
    for number, (low, high) in enumerate(pairwise(EDGES)):
        # Rounding may take a sum of probabilities above 1; a probability of 0 is in the first bin.
        above_UC = p_UC > low if number else p_UC >= 0
        below_UC = p_UC <= high if high < 1 else p_UC < np.inf
        inside_UC = above_UC & below_UC & is_candidate_UC
        if inside_UC.any():
            found_UC = inside_UC & is_found_UC
            bins.append(
                {
                    "from": low,
                    "to": high,
                    "found": _bin(p_UC[found_UC], is_target_UC[found_UC]),
                    "all": _bin(p_UC[inside_UC], is_target_UC[inside_UC]),
                }
            )
    return bins


def _bin(p_N: np.ndarray, is_target_N: np.ndarray) -> JsonObject | None:
    if not len(p_N):
        return None
    hits = int(is_target_N.sum())
    low, high = wilson(hits, len(p_N))
    return {
        "candidates": len(p_N),
        "predicted": round(float(p_N.mean()), 6),
        "observed": round(hits / len(p_N), 6),
        "ci95": [round(low, 6), round(high, 6)],
    }


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95% interval of a proportion (Wilson 1927).

    By its formula, as importing `scipy.stats` takes half a second.
    """
    share, spread = hits / count, _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = (share * (1 - share) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
