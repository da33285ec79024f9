"""The catalog: what is known of each item."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from palr_jax.errors import UserError

# White space, control characters, and lone surrogates (which no UTF-8 file can hold).
_GAPS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


@dataclass(frozen=True)
class Catalog:
    """The items by index: item i is entry i of each attribute.

    Attributes:
        item_ids: str, ids of the items in the source.
        titles: text of the items, no two alike. MovieLens titles end in their year, so they need
            nothing more; where two items still share a title, see `unique_titles`.
        categories: names of the categories of each item, possibly none.
    """

    item_ids: np.ndarray
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.titles)

    def index_of(self, title: str) -> int:
        """The index of the item with this title, if need be in another case of letters.

        Raises:
            UserError: no item has the title, or several have it in other cases; the three nearest
                titles are named.
        """
        if title in self._by_title:
            return self._by_title[title]
        alike = self._by_folded.get(title.casefold(), [])
        if len(alike) == 1:
            return alike[0]
        nearest = difflib.get_close_matches(title.casefold(), self._by_folded, n=3, cutoff=0.0)
        indices = [index for folded in nearest for index in self._by_folded[folded]][:3]
        names = ", ".join(repr(self.titles[index]) for index in indices)
        raise UserError(f"no single item is titled {title!r}; the nearest titles are {names}")

    def with_items(
        self,
        item_ids: Sequence[str],
        titles: Sequence[str],
        categories: Sequence[Sequence[str]] | None = None,
    ) -> "Catalog":
        """The same with more items behind those that are there.

        Args:
            item_ids: of the new items.
            titles: of the new items.
            categories: of each; by default none.

        Raises:
            UserError: a title is there already, or empty.
        """
        known = set(self.titles)
        for title in titles:
            if not title.strip():
                raise UserError("a new item has an empty title: give it a text")
            if title in known:
                raise UserError(f"there is an item titled {title!r} already: recommend that one")
            known.add(title)
        return Catalog(
            item_ids=np.array([*self.item_ids, *item_ids]),
            titles=(*self.titles, *titles),
            categories=(*self.categories, *map(tuple, categories or [()] * len(titles))),
        )

    @cached_property
    def _by_title(self) -> dict[str, int]:
        return {title: index for index, title in enumerate(self.titles)}

    @cached_property
    def _by_folded(self) -> dict[str, list[int]]:
        indices: dict[str, list[int]] = {}
        for index, title in enumerate(self.titles):
            indices.setdefault(title.casefold(), []).append(index)
        return indices


def unique_titles(titles: Sequence[str], item_ids: Sequence[str]) -> tuple[str, ...]:
    """The titles, with ` [item id]` behind each that an earlier item has already."""
    taken: dict[str, None] = {}
    for title, item_id in zip(titles, item_ids, strict=True):
        while title in taken:
            title = f"{title} [{item_id}]"
        taken[title] = None
    return tuple(taken)


def normal_title(text: str) -> str:
    """The form in which a title is kept and looked up; a second application changes nothing.

    Characters are composed (Unicode NFC), and every run of white space and control characters is
    one space, none around the text. A title that was typed or stored in another of these forms is
    therefore the same title.
    """
    return _GAPS.sub(" ", unicodedata.normalize("NFC", text)).strip()
