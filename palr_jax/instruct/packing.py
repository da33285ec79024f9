"""Packing of examples of different lengths into rows of one length, with little padding.

Shapes: N examples, R rows, M label tokens of a row, F tokens of all examples concatenated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """One instruction with its answer.

    Attributes:
        prompt_T: int32, token ids of the prompt.
        label_M: int32, token ids of the answer, the end token last.
        enriched: whether items of the user's 3-hop affinity fill its history or label.
        swapped: whether items of history and label were swapped.
    """

    prompt_T: np.ndarray
    label_M: np.ndarray
    enriched: bool
    swapped: bool


@dataclass(frozen=True)
class Packing:
    """The static shapes of a batch.

    Attributes:
        rows: B, packed rows in a batch.
        length: T, tokens in a row.
        label_length: M, label tokens in a row; logits are computed for these only.
    """

    rows: int
    length: int
    label_length: int


def best_fit(tokens_N: np.ndarray, labels_N: np.ndarray, packing: Packing) -> np.ndarray:
    """The row of each example, int64 [N].

    Best-fit decreasing: from the longest example to the shortest, each goes to the row with the
    least free space that fits its tokens and its label, or else to a new row.

    Raises:
        ValueError: an example has more tokens, or more label tokens, than a row.
    """
    if (tokens_N > packing.length).any() or (labels_N > packing.label_length).any():
        raise ValueError(f"an example is too long for a row: {tokens_N.max()}, {labels_N.max()}")
    free_R = np.full(len(tokens_N), packing.length)
    free_label_R = np.full(len(tokens_N), packing.label_length)
    row_N = np.empty(len(tokens_N), np.int64)
    used = 0
    for example in np.argsort(-tokens_N, kind="stable"):
        tokens, labels = tokens_N[example], labels_N[example]
        # The row after those in use is empty, so one row always fits.
        fits_R = (free_R[: used + 1] >= tokens) & (free_label_R[: used + 1] >= labels)
        row = int(np.where(fits_R, free_R[: used + 1], packing.length + 1).argmin())
        used = max(used, row + 1)
        free_R[row] -= tokens
        free_label_R[row] -= labels
        row_N[example] = row
    return row_N


def pack(
    examples: Sequence[Example], packing: Packing, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Packs examples; the rows come in random order.

    The end token of a label is predicted but never read, so it takes no space in a row.

    Returns:
        int32 arrays: `tokens_RT`, `position_RT` (within the example), `segment_RT` (the example
        of each token, from 1; 0 is padding), `target_RM` (label tokens), `target_index_RM` (index
        of the token whose output predicts it) and `weight_RM` (1, or 0 at padding).
    """
    prompt_N = np.array([len(example.prompt_T) for example in examples])
    label_N = np.array([len(example.label_M) for example in examples])
    row_N = best_fit(prompt_N + label_N - 1, label_N, packing)
    rows = int(row_N.max()) + 1
    row_N = rng.permutation(rows)[row_N]

    order_N = np.argsort(row_N, kind="stable")
    row_N, prompt_N, label_N = row_N[order_N], prompt_N[order_N], label_N[order_N]
    chosen = [examples[index] for index in order_N]
    first_R = np.searchsorted(row_N, np.arange(rows))
    tokens_N = prompt_N + label_N - 1
    start_N, position_F = _starts(tokens_N, first_R[row_N])
    label_start_N, label_position_F = _starts(label_N, first_R[row_N])
    segment_N = np.arange(len(chosen)) - first_R[row_N] + 1

    tokens_F = np.concatenate([part for x in chosen for part in (x.prompt_T, x.label_M[:-1])])
    flat_F = np.repeat(row_N * packing.length + start_N, tokens_N) + position_F
    labels_F = np.concatenate([example.label_M for example in chosen])
    index_F = np.repeat(start_N + prompt_N - 1, label_N) + label_position_F
    flat_label_F = (
        np.repeat(row_N * packing.label_length + label_start_N, label_N) + label_position_F
    )

    def spread(width: int, flat_F: np.ndarray, values_F: np.ndarray | int) -> np.ndarray:
        values_RW = np.zeros((rows, width), np.int32)
        values_RW.reshape(-1)[flat_F] = values_F
        return values_RW

    return {
        "tokens_RT": spread(packing.length, flat_F, tokens_F),
        "position_RT": spread(packing.length, flat_F, position_F),
        "segment_RT": spread(packing.length, flat_F, np.repeat(segment_N, tokens_N)),
        "target_RM": spread(packing.label_length, flat_label_F, labels_F),
        "target_index_RM": spread(packing.label_length, flat_label_F, index_F),
        "weight_RM": spread(packing.label_length, flat_label_F, 1),
    }


def _starts(length_N: np.ndarray, first_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The start of each example in its row, [N], and each token's position in its example, [F].

    Args:
        length_N: lengths of the examples, sorted by row.
        first_N: for each example, the first example of its row.
    """
    end_N = np.cumsum(length_N)
    start_N = end_N - length_N
    return start_N - start_N[first_N], np.arange(end_N[-1]) - np.repeat(start_N, length_N)
