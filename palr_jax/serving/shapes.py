"""The few shapes in which a server calls its programs: all are compiled before the first request.

A batch takes the smallest shape with room for it. Prompts are padded to one of a few widths,
batches to one of a few numbers of rows, and tries of candidates to one of two rooms. The first room
holds the tries of the retriever's proposals, which are measured, and those of most other lists; the
second holds every list that a request may contain, one row at a time.

Shapes: C candidates, T prompt tokens, B rows of a batch, I items, U measured users.
"""

from dataclasses import dataclass

import numpy as np

from palr_jax.decoding.score_plan import Sizes
from palr_jax.padding import to_multiple, to_power_of_two
from palr_jax.ranking.batches import prompt_width
from palr_jax.ranking.ranker import Ranker


@dataclass(frozen=True)
class Room:
    """The sizes that the candidates of a batch are padded to.

    Attributes:
        candidates: C.
        sizes: of the score plan.
        rows: B, ascending.
    """

    candidates: int
    sizes: Sizes
    rows: tuple[int, ...]

    def rows_for(self, count: int) -> int:
        """The smallest number of rows >= `count`; the largest one if none is."""
        return next((rows for rows in self.rows if rows >= count), self.rows[-1])

    def rows_to_take(self, count: int) -> int:
        """The rows of the next batch if `count` rows wait; at least half of them are filled."""
        above = self.rows_for(count)
        if above <= 2 * count:
            return above
        return max(rows for rows in self.rows if rows <= count)

    def holds(self, candidates: int, sizes: Sizes) -> bool:
        """Whether so many candidates, with tries of these sizes, fit."""
        return candidates <= self.candidates and self.sizes.cover(sizes) == self.sizes


@dataclass(frozen=True)
class Shapes:
    """The shapes of a server's programs.

    Attributes:
        widths: T, ascending.
        rooms: for candidates: the usual one, and one with room for every list.
    """

    widths: tuple[int, ...]
    rooms: tuple[Room, ...]

    @property
    def usual(self) -> Room:
        """The room of most batches."""
        return self.rooms[0]

    def width_for(self, tokens: int) -> int:
        """The smallest width with room for a prompt.

        Raises:
            ValueError: no shape fits, which `shapes_of` should prevent.
        """
        for width in self.widths:
            if width >= tokens:
                return width
        raise ValueError(f"a prompt of {tokens} tokens is longer than any that can be written")

    def room_for(self, candidates: int, sizes: Sizes) -> Room:
        """The smallest room for the candidates of a batch.

        Raises:
            ValueError: no shape fits, which `shapes_of` should prevent.
        """
        for room in self.rooms:
            if room.holds(candidates, sizes):
                return room
        raise ValueError(f"{candidates} candidates with tries of {sizes} fit no shape")


def shapes_of(
    ranker: Ranker,
    proposed: Sizes,
    tokens_U: np.ndarray,
    proposals: int,
    candidates: int,
    rows: int,
) -> Shapes:
    """The shapes for a ranker.

    Args:
        ranker: of the run.
        proposed: sizes of the tries of the retriever's proposals for the measured users.
        tokens_U: lengths of the prompts of the measured users.
        proposals: the most candidates that the retriever proposes.
        candidates: the longest list that a request may contain.
        rows: the largest batch.
    """
    usual = Room(
        to_power_of_two(proposals, 8),
        Sizes(
            to_power_of_two(proposed.fed, 8),
            to_power_of_two(2 * to_power_of_two(proposals, 8), 8),
            _depth(ranker),
        ),
        _rows(rows),
    )
    most = max(candidates, proposals)
    bound = Room(
        to_power_of_two(most, 8),
        Sizes(
            max(usual.sizes.fed, _most_fed(ranker, most)),
            to_power_of_two(2 * to_power_of_two(most, 8), 8),
            _depth(ranker),
        ),
        (1,),
    )
    return Shapes(_widths(ranker, tokens_U), (usual, bound))


def _rows(most: int) -> tuple[int, ...]:
    """1, 8, 64, … and the largest."""
    rows = [1]
    while 8 * rows[-1] < most:
        rows.append(8 * rows[-1])
    return (*rows, most) if most > 1 else (1,)


def _widths(ranker: Ranker, tokens_U: np.ndarray) -> tuple[int, ...]:
    """Widths that leave little padding in prompts like those of the measured users.

    The last one has room for every prompt. More widths would mean more programs to compile, fewer
    widths more padding: most prompts are far shorter than the longest possible one.
    """
    median, most, longest = np.quantile(tokens_U, (0.5, 0.9, 1.0), method="higher").tolist()
    lengths = (median // 3, 2 * median // 3, median, most, longest, _longest_prompt(ranker))
    return tuple(sorted({prompt_width(max(length, 1)) for length in lengths}))


def _longest_prompt(ranker: Ranker) -> int:
    config = ranker.writer.config
    if config.prompt != "history":
        return config.length
    head = ranker.writer.prefix_length(with_candidates=True)
    return min(config.length, head + config.history * _item_tokens(ranker))


def _item_tokens(ranker: Ranker) -> int:
    """The most tokens of an item of the catalog or of a title that may be added."""
    longest = int(ranker.items.lengths_R.max(initial=1))
    return max(longest, ranker.writer.config.title_tokens)


def _depth(ranker: Ranker) -> int:
    return to_power_of_two(_item_tokens(ranker), 8)


def _most_fed(ranker: Ranker, candidates: int) -> int:
    """An upper bound of the fed nodes of a trie of so many candidates.

    A fed node has at least two leaves below it, or one if whole titles are read. So the fed nodes
    number at most half as many as the tokens, or as many.
    """
    tokens = candidates * _item_tokens(ranker)
    return to_multiple(tokens if ranker.reads_titles else tokens // 2, 8)


def padded_candidates(rows: list[np.ndarray], width: int) -> np.ndarray:
    """Lists of candidates as rows of one width, padded with -1, int32 [B, C]."""
    items_BC = np.full((len(rows), width), -1, np.int32)
    for row, items in enumerate(rows):
        items_BC[row, : len(items)] = items
    return items_BC


def stacked(parts: list[np.ndarray]) -> np.ndarray:
    """Rows of several widths as rows of the largest, padded with 0, [B, C]."""
    widest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, widest - part.shape[1]))) for part in parts])
