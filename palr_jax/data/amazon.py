"""Amazon reviews and metadata of 2014 (McAuley et al. 2015), a category's two files."""

import ast
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from palr_jax.data.catalog import normal_title
from palr_jax.data.config import DataConfig
from palr_jax.data.raw import RawTables, given, items_table, numbered_lines
from palr_jax.errors import UserError
from palr_jax.paths import path_of
from palr_jax.progress import say

_EXPECTED = "a .json or .json.gz file"
_FILES = "reviews and meta files"
_PARSE_ERRORS = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)
_ASIN = re.compile(r"""'asin': ?'(\w+)'""")
_RELATED = re.compile(r"""'related': ?\{[^{}]*\}""")


def read_amazon_2014(config: DataConfig) -> RawTables:
    """Reads the reviews (JSON lines) and the metadata (Python literals, one a line).

    The files are `data.interactions` and `data.items`, or the only `reviews_*_5.json[.gz]` and
    `meta_*.json[.gz]` in the folder `data.path`. Items that nobody reviewed are left out. Many
    items have no title: they go by their ASIN, and one line says how many. HTML entities in
    texts are replaced, and the category that all items share (`Beauty`) is dropped.

    Raises:
        UserError: a file is not given, missing, damaged or empty, or a line does not parse or
            lacks a value; the file and the line are named.
    """
    reviews = _file(config.path, config.interactions, "data.interactions", "reviews_*_5")
    metadata = _file(config.path, config.items, "data.items", "meta_*")
    interactions = _read_reviews(reviews)
    return RawTables(interactions, _read_metadata(metadata, set(interactions["item"])), metadata)


def _file(folder: str | None, named: str | None, key: str, pattern: str) -> Path:
    if named is not None:
        path = path_of(named).expanduser()
    else:
        path = _find(given(folder, "data.path", f"the folder of the {_FILES}"), pattern, key)
    if not path.name.endswith((".json", ".json.gz")):
        raise UserError(f"{path} has an unknown extension: set {key} to {_EXPECTED}")
    return path


def _find(folder: Path, pattern: str, key: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: set data.path to that of the {_FILES}")
    found = sorted([*folder.glob(f"{pattern}.json"), *folder.glob(f"{pattern}.json.gz")])
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{folder}: one {pattern}.json.gz is expected, found {names}: set {key}")
    return found[0]


def _read_reviews(path: Path) -> pl.DataFrame:
    users, items, seconds = [], [], []
    for number, line in numbered_lines(path, f"set data.interactions to {_EXPECTED}"):
        review = _parsed(json.loads, line, path, number)
        users.append(_value(review, "reviewerID", str, path, number))
        items.append(_value(review, "asin", str, path, number))
        seconds.append(_value(review, "unixReviewTime", int, path, number))
    return pl.DataFrame({"user": users, "item": items, "timestamp": seconds})


def _read_metadata(path: Path, wanted: set[str]) -> pl.DataFrame:
    ids, titles, categories = [], [], []
    for number, line in numbered_lines(path, f"set data.items to {_EXPECTED}"):
        # Parsing literals takes most of the time: pass over items that nobody reviewed, and over
        # the hundreds of ids of what else was bought.
        named = _ASIN.findall(line)
        if named and wanted.isdisjoint(named):
            continue
        item = _parsed(ast.literal_eval, _RELATED.sub("'related': {}", line.strip()), path, number)
        asin = _value(item, "asin", str, path, number)
        if asin not in wanted:
            continue
        ids.append(asin)
        titles.append(normal_title(html.unescape(_value(item, "title", str, path, number, ""))))
        categories.append(_paths(item, path, number))
    untitled = titles.count("")
    if untitled:
        say(f"{path}: {untitled} of {len(ids)} reviewed items have no title and go by their id")
    titles = [title or asin for title, asin in zip(titles, ids, strict=True)]
    return items_table(ids, titles, _flat(categories))


def _flat(categories: list[list[list[str]]]) -> list[list[str]]:
    """The names on each item's paths, without the first name if all items share it."""
    tops = [{path[0] for path in paths if path} for paths in categories]
    shared = set.intersection(*filter(None, tops)) if any(tops) else set()
    return [
        [html.unescape(name) for path in paths for name in path if name not in shared]
        for paths in categories
    ]


def _parsed(parse: Callable[[str], Any], line: str, path: Path, number: int) -> dict[str, Any]:
    form = "a JSON object" if parse is json.loads else "a Python dict"
    try:
        record = parse(line)
    except _PARSE_ERRORS:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path}, line {number}: not {form}: {line.strip()[:60]!r}")
    return record


def _value(
    record: dict[str, Any], key: str, kind: type, path: Path, number: int, default: Any = None
) -> Any:
    value = record.get(key, default)
    if not isinstance(value, kind) or (default is None and value == ""):
        what = "an unusable" if key in record else "no"
        raise UserError(f"{path}, line {number}: {what} {key!r}: mend or delete that line")
    return value


def _paths(item: dict[str, Any], path: Path, number: int) -> list[list[str]]:
    paths = _value(item, "categories", list, path, number, [])
    for names in paths:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            problem = "'categories' is no list of lists of texts"
            raise UserError(f"{path}, line {number}: {problem}: mend or delete that line")
    return paths
