"""Amazon reviews and metadata of 2014, 2018 and 2023: two files per category."""

import ast
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from palr_jax.data.catalog import normal_title
from palr_jax.data.columns import Column, ids
from palr_jax.data.config import DataConfig
from palr_jax.data.interactions import InteractionLog, encode
from palr_jax.data.raw import RawTables, items_table
from palr_jax.data.reading import given, numbered_lines
from palr_jax.errors import UserError, shown
from palr_jax.io.paths import path_of
from palr_jax.io.progress import say
from palr_jax.json_types import JsonObject

_EXPECTED = "a .json or .jsonl file, also with .gz"
_FILES = "reviews and meta files"
_ENDS = (".json", ".json.gz", ".jsonl", ".jsonl.gz")
_PARSE_ERRORS = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)
_ASIN = re.compile(r"""'asin': ?'(\w+)'""")
_RELATED = re.compile(r"""'related': ?\{[^{}]*\}""")
_INT64 = 2**63


@dataclass(frozen=True)
class _Form:
    """The keys of a review in a release; 2014 and 2018 have the same, 2023 others."""

    user: str
    item: str
    time: str


_FORMS = (
    _Form("user_id", "parent_asin", "timestamp"),
    _Form("reviewerID", "asin", "unixReviewTime"),
)


def read_amazon(config: DataConfig) -> RawTables:
    """Reads the reviews (JSON lines) and the metadata (JSON or Python literals, one per line).

    The files are `data.interactions` and `data.items`, or those of the folder `data.path`: the
    metadata file begins with `meta_`; the reviews are the only other file, or the only one that
    ends in `_5` (the 5-core). The release is recognised per line: the item key is `asin` in 2014
    and 2018 and `parent_asin` in 2023; `categories` is a list of paths in 2014 and one path in
    2023, like `category` in 2018.

    Items without reviews are skipped, and the first of several lines of an item counts. Items
    without a title get their id as the title, and one line reports how many. HTML entities are
    decoded, and a category that all items share (`Beauty`) is dropped.

    Raises:
        UserError: a file is not given, missing, damaged or empty, or a line cannot be parsed or
            lacks a value; names the file and the line.
    """
    reviews = _file(config.path, config.interactions, "data.interactions")
    metadata = _file(config.path, config.items, "data.items")
    interactions = _read_reviews(reviews)
    wanted = set(interactions.item_ids.tolist())
    return RawTables(interactions, _read_metadata(metadata, wanted), metadata)


def _file(folder: str | None, named: str | None, key: str) -> Path:
    if named is not None:
        path = path_of(named)
    else:
        path = _find(given(folder, "data.path", f"the folder of the {_FILES}"), key)
    if not path.name.endswith(_ENDS):
        raise UserError(f"{path} has an unknown extension: set {key} to {_EXPECTED}")
    return path


def _find(folder: Path, key: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: set data.path to that of the {_FILES}")
    there = sorted(path for path in folder.iterdir() if path.name.endswith(_ENDS))
    if key == "data.items":
        found, expected = [path for path in there if path.name.startswith("meta_")], "meta_X"
    else:
        found, expected = [path for path in there if not path.name.startswith("meta_")], "X_5"
        cores = [path for path in found if path.name.split(".")[0].endswith("_5")]
        found = cores or found
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"{folder}: one {expected}.json.gz or .jsonl.gz is expected, found {names}: set {key}"
        )
    return found[0]


def _read_reviews(path: Path) -> InteractionLog:
    users, items, times, lines = [], [], [], []
    for number, line in numbered_lines(path, f"set data.interactions to {_EXPECTED}"):
        record = _Record(_parsed(line, path, number, json_only=True), path, number)
        form = _FORMS[0] if _FORMS[0].user in record.values else _FORMS[1]
        users.append(record.text(form.user))
        items.append(record.text(form.item))
        times.append(record.time(form.time))
        lines.append(number)

    def checked(name: str, values: list[str]) -> pl.Series:
        series = pl.Series(name, values, dtype=pl.String)
        return ids(Column(series, name, str(path), lambda row: f"{path}, line {lines[row]}"))

    columns = [checked("user", users), checked("item", items)]
    return encode(pl.DataFrame([*columns, pl.Series("timestamp", times, dtype=pl.Int64)]))


def _read_metadata(path: Path, wanted: set[str]) -> pl.DataFrame:
    found: dict[str, tuple[str, list[list[str]]]] = {}
    repeated = 0
    for number, line in numbered_lines(path, f"set data.items to {_EXPECTED}"):
        # Parsing literals takes most of the time, so skip items without reviews; _parsed skips the
        # hundreds of related ids.
        named = _ASIN.findall(line)
        if named and wanted.isdisjoint(named):
            continue
        record = _Record(_parsed(line, path, number, json_only=False), path, number)
        item = record.text("parent_asin" if "parent_asin" in record.values else "asin")
        if item in found:
            repeated += 1
        elif item in wanted:
            title = normal_title(html.unescape(record.text("title", "")))
            found[item] = (title or item, record.paths())
    untitled = sum(title == item for item, (title, _) in found.items())
    if untitled:
        say(f"{path}: {untitled} of {len(found)} reviewed items have no title and go by their id")
    if repeated:
        say(f"{path}: {repeated} lines repeat an item and are passed over")
    titles = [title for title, _ in found.values()]
    return items_table([*found], titles, _flat([paths for _, paths in found.values()]))


def _flat(categories: list[list[list[str]]]) -> list[list[str]]:
    """The names on each item's paths, without the top name if all items share it."""
    tops = [{path[0] for path in paths if path} for paths in categories]
    shared = set.intersection(*filter(None, tops)) if any(tops) else set()
    return [
        [html.unescape(name) for path in paths for name in path if name not in shared]
        for paths in categories
    ]


def _parsed(line: str, path: Path, number: int, json_only: bool) -> JsonObject:
    """The object on a line; a line that does not start like JSON is read as a Python literal."""
    is_json = json_only or not line.lstrip().startswith(("{'", "{}"))
    try:
        if is_json:
            value = json.loads(line)
        else:
            value = ast.literal_eval(_RELATED.sub("'related': {}", line.strip()))
    except _PARSE_ERRORS:
        value = None
    if not isinstance(value, dict):
        form = "a JSON object" if json_only else "a JSON object or a Python dict"
        raise UserError(f"{path}, line {number}: not {form}: {shown(line.strip())}")
    return value


@dataclass(frozen=True)
class _Record:
    """The object on a line, with its file and line number."""

    values: dict[str, object]
    path: Path
    number: int

    def text(self, key: str, default: str | None = None) -> str:
        """The text of a key, encodable as UTF-8; not empty unless `default` is given."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (default is None and not value):
            raise self._unusable(key)
        if default is None and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:  # half of a surrogate pair
                raise self._unusable(key) from None
        return value

    def time(self, key: str) -> int:
        value = self.values.get(key)
        if type(value) is not int or abs(value) >= _INT64:
            raise self._unusable(key)
        return value

    def paths(self) -> list[list[str]]:
        """The paths of categories, each from the top category down."""
        key = "categories" if "categories" in self.values else "category"
        value = self.values.get(key)
        if value is None or value == "":
            return []
        if not isinstance(value, list):
            raise self._unusable(key)
        paths = [value] if all(isinstance(name, str) for name in value) else value
        for path in paths:
            if not isinstance(path, list) or not all(isinstance(name, str) for name in path):
                raise self._unusable(key)
        return paths

    def _unusable(self, key: str) -> UserError:
        what = "an unusable" if key in self.values else "no"
        return UserError(
            f"{self.path}, line {self.number}: {what} {key!r}: mend or delete that line"
        )
