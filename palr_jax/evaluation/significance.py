"""Confidence interval of the difference between two models: the paired bootstrap over users.

Shapes: V distinct differences, C samples of a chunk.
"""

import numpy as np

_MAX_COUNTS = 4_000_000  # counts of a chunk: 32 MB


def paired_bootstrap(
    metric_a_U: np.ndarray, metric_b_U: np.ndarray, seed: int, samples: int = 10_000
) -> tuple[float, float]:
    """The 95% percentile interval of the mean of `metric_a_U - metric_b_U` over users.

    Each sample draws U users with replacement and uses both metrics of a drawn user (Efron and
    Tibshirani 1993, chapter 13). Users with the same difference are interchangeable, so a sample is
    drawn as one multinomial count per distinct difference. The distribution is the same, and a
    metric at k of one relevant item has at most a few hundred distinct differences for any number
    of users.

    Raises:
        ValueError: the metrics are not of the same users, or are empty.
    """
    difference_U = np.asarray(metric_a_U, np.float64) - np.asarray(metric_b_U, np.float64)
    if np.shape(metric_a_U) != np.shape(metric_b_U) or difference_U.ndim != 1:
        raise ValueError("a paired comparison needs two metrics of the same users")
    if not len(difference_U):
        raise ValueError("no users to draw from")
    value_V, count_V = np.unique(difference_U, return_counts=True)
    means = _sample_means(value_V, count_V, np.random.default_rng(seed), samples)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _sample_means(
    value_V: np.ndarray, count_V: np.ndarray, rng: np.random.Generator, samples: int
) -> np.ndarray:
    """Means of bootstrap samples, float64 [samples]."""
    num_users = int(count_V.sum())
    size = max(1, _MAX_COUNTS // len(value_V))
    means = []
    for start in range(0, samples, size):
        drawn_CV = rng.multinomial(num_users, count_V / num_users, size=min(size, samples - start))
        means.append(drawn_CV @ value_V / num_users)
    return np.concatenate(means)
