"""Items by a part of their title, also a misspelt one."""

import numpy as np
from rapidfuzz import fuzz, process

from palr_jax.data.catalog import normal_title
from palr_jax.recommender import Recommender

# Below this likeness (of 100) a title is no match.
_LIKE = 60


class CatalogSearch:
    """Searches the titles of a run."""

    def __init__(self, recommender: Recommender) -> None:
        """Folds all titles once."""
        split = recommender.prepared.split
        self._catalog = recommender.catalog
        self._folded = [normal_title(title).casefold() for title in self._catalog.titles]
        self.interactions_I = np.bincount(split.train.values_N, minlength=split.num_items)

    def find(self, query: str, count: int) -> list[int]:
        """The items that match best, at most `count`; all words of the query count.

        Titles that begin with the query come first, then those that hold its words, then those
        that are like it; in each of these, the item with more interactions comes first. An empty
        query gives the items with the most interactions.
        """
        text = normal_title(query).casefold()
        if not text:
            return [int(item) for item in np.argsort(-self.interactions_I, kind="stable")[:count]]
        words = text.split()
        holding = [i for i, title in enumerate(self._folded) if all(w in title for w in words)]
        found = sorted(holding, key=lambda item: self._order(item, text, words[0]))[:count]
        if len(found) < count:
            more = process.extract(
                text, self._folded, scorer=fuzz.WRatio, limit=count, score_cutoff=_LIKE
            )
            found += [item for _, _, item in more if item not in found]
        return found[:count]

    def _order(self, item: int, text: str, word: str) -> tuple[bool, bool, int]:
        """The lower, the earlier: by how the title begins, how a word begins, and by use."""
        title = self._folded[item]
        begins = f" {word}" in f" {title}"
        return not title.startswith(text), not begins, -int(self.interactions_I[item])
