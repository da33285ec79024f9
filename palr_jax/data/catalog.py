"""The catalog: what is known of each item."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from rapidfuzz import fuzz, process

from palr_jax.errors import UserError

By = Literal["title", "id"]
"""What items are named by: their titles, or their ids in the source."""

# White space, control characters, and lone surrogates (which no UTF-8 file can hold).
_GAPS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
# Letters of a text that is looked for in vain: so many are compared, and so many shown.
_COMPARED, _SHOWN = 300, 80


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
        """The index of the item with this title, in whatever form and case it is written.

        The title as it is goes before its normal form (`normal_title`), and that before other
        cases of letters.

        Raises:
            UserError: no item has the title, or several have it in other cases; the three nearest
                titles are named.
        """
        index = self.find(title)
        if index is not None:
            return index
        names = ", ".join(map(repr, self.nearest(title)))
        raise UserError(f"no single item is titled {_asked(title)}; the nearest titles are {names}")

    def find(self, title: str) -> int | None:
        """As `index_of`, but None where that raises an error."""
        if title in self._by_title:
            return self._by_title[title]
        alike = self._by_folded.get(_folded(title), [])
        for indices in (self._of_form(title), alike):
            if len(indices) == 1:
                return indices[0]
        return None

    def nearest(self, title: str) -> list[str]:
        """The three titles most like this one, the nearest first."""
        found = process.extract(
            _folded(title[:_COMPARED]), list(self._by_folded), scorer=fuzz.ratio, limit=3
        )
        indices = [index for folded, *_ in found for index in self._by_folded[folded]][:3]
        return [self.titles[index] for index in indices]

    def index_of_id(self, item_id: str) -> int:
        """The index of the item with this id in the source.

        Raises:
            UserError: no item has it; the three nearest ids are named.
        """
        index = self.find_id(item_id)
        if index is not None:
            return index
        names = ", ".join(map(repr, self.nearest_ids(item_id)))
        raise UserError(f"no item has the id {_asked(item_id)}; the nearest ids are {names}")

    def find_id(self, item_id: str) -> int | None:
        """As `index_of_id`, but None where that raises an error."""
        return self._by_id.get(item_id)

    def index_by(self, name: str, by: By) -> int:
        """The index of the item with this title or id.

        Raises:
            UserError: as `index_of` or `index_of_id`.
        """
        return self.index_of_id(name) if by == "id" else self.index_of(name)

    def nearest_ids(self, item_id: str) -> list[str]:
        """The three ids most like this one, the nearest first."""
        found = process.extract(item_id[:_COMPARED], list(self._by_id), scorer=fuzz.ratio, limit=3)
        return [name for name, *_ in found]

    def with_items(
        self,
        item_ids: Sequence[str],
        titles: Sequence[str],
        categories: Sequence[Sequence[str]] | None = None,
    ) -> "Catalog":
        """The same with more items behind those that are there.

        Args:
            item_ids: of the new items.
            titles: of the new items, kept in their normal form.
            categories: of each, in normal form too; by default none.

        Raises:
            UserError: a title is there already, or empty, or categories are not as many as titles.
        """
        rows = [()] * len(titles) if categories is None else categories
        if len(rows) != len(titles):
            raise UserError(
                f"{len(rows)} lists of categories for {len(titles)} titles: give one for each"
            )
        fresh: dict[str, None] = {}
        for title in map(normal_title, titles):
            if not title:
                raise UserError("a new item has an empty title: give it a text")
            if title in fresh or self._of_form(title):
                raise UserError(f"there is an item titled {title!r} already: recommend that one")
            fresh[title] = None
        return Catalog(
            item_ids=np.array([*self.item_ids, *item_ids]),
            titles=(*self.titles, *fresh),
            categories=(
                *self.categories,
                *(tuple(filter(None, map(normal_title, names))) for names in rows),
            ),
        )

    @cached_property
    def _by_title(self) -> dict[str, int]:
        return {title: index for index, title in enumerate(self.titles)}

    @cached_property
    def _by_id(self) -> dict[str, int]:
        return {str(item_id): index for index, item_id in enumerate(self.item_ids)}

    @cached_property
    def _by_folded(self) -> dict[str, list[int]]:
        indices: dict[str, list[int]] = {}
        for index, title in enumerate(self.titles):
            indices.setdefault(_folded(title), []).append(index)
        return indices

    def _of_form(self, title: str) -> list[int]:
        """The items whose titles have the normal form of this one."""
        normal, alike = normal_title(title), self._by_folded.get(_folded(title), [])
        return [index for index in alike if normal_title(self.titles[index]) == normal]


def _asked(text: str) -> str:
    """What was looked for in vain, as it stands in an error."""
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")


def _folded(title: str) -> str:
    """The same for all cases of letters of a title, in whatever form it is written."""
    folded = normal_title(title).casefold()
    return folded if folded.isascii() else normal_title(folded)


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
