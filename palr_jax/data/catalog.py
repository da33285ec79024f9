"""The catalog: id, title and categories of each item."""

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

# White space, control characters, and lone surrogates (which UTF-8 cannot encode).
_GAPS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
# Characters of an unknown title that are compared with titles, and that errors quote.
_COMPARED, _QUOTED = 300, 80


@dataclass(frozen=True)
class Catalog:
    """The items by index: item i is entry i of each attribute.

    Attributes:
        item_ids: str, ids of the items in the source.
        titles: unique titles of the items. MovieLens titles end in their year, which makes most
            unique; `unique_titles` handles the others.
        categories: names of the categories of each item, possibly empty.
    """

    item_ids: np.ndarray
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.titles)

    def index_of(self, title: str) -> int:
        """The index of the item with this title, in any Unicode form and letter case.

        An exact match has priority over a match of the normal form (`normal_title`), and that over
        a match without case.

        Raises:
            UserError: no item matches, or several match without case; names the three nearest
                titles.
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
        """A catalog with new items appended.

        Args:
            item_ids: ids of the new items.
            titles: titles of the new items, stored in normal form.
            categories: categories of each new item, stored in normal form; by default empty.

        Raises:
            UserError: a title exists already or is empty, or the numbers of categories and titles
                differ.
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
                raise UserError(f"an item titled {title!r} already exists: recommend that one")
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
    """An unknown title or id, as an error quotes it."""
    return repr(text[:_QUOTED]) + ("…" if len(text) > _QUOTED else "")


def _folded(title: str) -> str:
    """A key that is equal for all letter cases and Unicode forms of a title."""
    folded = normal_title(title).casefold()
    return folded if folded.isascii() else normal_title(folded)


def unique_titles(titles: Sequence[str], item_ids: Sequence[str]) -> tuple[str, ...]:
    """The titles; ` [item id]` is appended to each title that an earlier item has."""
    taken: dict[str, None] = {}
    for title, item_id in zip(titles, item_ids, strict=True):
        while title in taken:
            title = f"{title} [{item_id}]"
        taken[title] = None
    return tuple(taken)


def normal_title(text: str) -> str:
    """The normal form in which titles are stored and looked up; idempotent.

    Characters are composed (Unicode NFC), every run of white space and control characters becomes
    one space, and the ends are stripped. So titles that differ only in these are the same.
    """
    return _GAPS.sub(" ", unicodedata.normalize("NFC", text)).strip()
