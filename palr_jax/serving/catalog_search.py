"""Searches items by a part of their title, with tolerance for misspellings."""

import numpy as np
from rapidfuzz import fuzz, process

from palr_jax.data.catalog import normal_title
from palr_jax.recommender import Recommender

# Smallest similarity, of 100, of a misspelt match.
_SIMILAR = 60


class CatalogSearch:
    """Searches the titles of a run."""

    def __init__(self, recommender: Recommender) -> None:
        """Case-folds all titles."""
        split = recommender.prepared.split
        self._catalog = recommender.catalog
        self._folded = [normal_title(title).casefold() for title in self._catalog.titles]
        self.interactions_I = np.bincount(split.train.values_N, minlength=split.num_items)

    def find(self, query: str, count: int) -> list[int]:
        """The best matches, at most `count`.

        Titles that begin with the query come first, then titles that contain all its words, then
        similar titles; within each group, items with more interactions come first. An empty query
        returns the items with the most interactions.
        """
        text = normal_title(query).casefold()
        if not text:
            return [int(item) for item in np.argsort(-self.interactions_I, kind="stable")[:count]]
        words = text.split()
        holding = [i for i, title in enumerate(self._folded) if all(w in title for w in words)]
        found = sorted(holding, key=lambda item: self._order(item, text, words[0]))[:count]
        if len(found) < count:
            more = process.extract(
                text, self._folded, scorer=fuzz.WRatio, limit=count, score_cutoff=_SIMILAR
            )
            found += [item for _, _, item in more if item not in found]
        return found[:count]

    def _order(self, item: int, text: str, word: str) -> tuple[bool, bool, int]:
        """The sort key of a match: start of the title, start of a word, interactions."""
        title = self._folded[item]
        begins = f" {word}" in f" {title}"
        return not title.startswith(text), not begins, -int(self.interactions_I[item])
