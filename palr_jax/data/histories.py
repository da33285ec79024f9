"""Histories of one's own users, from a table with a row an interaction or from JSON lines."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from palr_jax.data.columns import ids, texts, timestamps
from palr_jax.data.reading import numbered_lines
from palr_jax.data.table import read_columns
from palr_jax.errors import UserError, shown
from palr_jax.json_types import JsonObject

_MEND = "give a .csv or .parquet with the columns user, item and timestamp, or a .jsonl"


@dataclass(frozen=True)
class Histories:
    """Users and what they had, oldest first.

    Attributes:
        users: ids, none twice, in the order of the file.
        items: what the file calls the items of each user.
    """

    users: list[str]
    items: list[list[str]]


def read_histories(file: Path) -> Histories:
    """Reads `file` by its ending.

    A table (.csv, .tsv, .parquet, also with .gz) has the columns `user`, `item` and, unless its
    rows are in the order of time, `timestamp`. A line of a .jsonl is an object such as
    `{"user": "7", "history": ["Heat (1995)"]}`.

    Raises:
        UserError: the file is missing, damaged, empty or of another form, or names a user twice.
    """
    if file.name.removesuffix(".gz").endswith(".jsonl"):
        return _from_lines(file)
    names: dict[str, str | None] = {"user": "user", "item": "item", "timestamp": "timestamp"}
    found = read_columns(str(file), names, "--input")
    users, items = ids(found["user"]).to_list(), texts(found["item"]).to_list()
    order = list(range(len(users)))
    if "timestamp" in found:
        times = timestamps(found["timestamp"]).to_list()
        order.sort(key=times.__getitem__)
    by_user: dict[str, list[str]] = {user: [] for user in users}
    for row in order:
        by_user[users[row]].append(items[row])
    return Histories(list(by_user), list(by_user.values()))


def _from_lines(file: Path) -> Histories:
    by_user: dict[str, list[str]] = {}
    for where, value in _objects(file):
        user, history = value.get("user"), value.get("history")
        if isinstance(user, int) and not isinstance(user, bool):
            user = str(user)
        if not isinstance(user, str) or not isinstance(history, list):
            raise UserError(f'{where}: {{"user": "7", "history": [...]}} is expected: {_MEND}')
        if user in by_user:
            raise UserError(f"{where}: the user {shown(user)} appears twice: join the lines")
        by_user[user] = [_name(name, where) for name in history]
    return Histories(list(by_user), list(by_user.values()))


def _objects(file: Path) -> Iterator[tuple[str, JsonObject]]:
    for number, line in numbered_lines(file, _MEND):
        where = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: no JSON ({error}): {_MEND}") from None
        if not isinstance(value, dict):
            raise UserError(f"{where}: an object is expected, not {shown(value)}: {_MEND}")
        yield where, value


def _name(value: object, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: {shown(value)} in the history is no text: write titles or ids")
    return value
