"""MovieLens: the bundled ml-latest-small, and the official archives of 100K to 32M ratings."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from palr_jax.data.columns import Column, ids, timestamps
from palr_jax.data.config import Columns, DataConfig
from palr_jax.data.interactions import InteractionLog, encode
from palr_jax.data.raw import RawTables, items_table
from palr_jax.data.reading import Content, given, read_content, unzip
from palr_jax.data.table import read_tables
from palr_jax.errors import UserError, shown

_BUNDLED = Path(__file__).parent / "bundled" / "ml-latest-small"
_COLUMNS = Columns(user="userId", item="movieId", categories="genres", separator=",")
# Replaces "::", because Polars supports only single bytes; a control character no field holds.
_STAND_IN = "\x1f"
_UNKNOWN = "unknown"
# The last columns of ml-100k's u.item, in the order of its u.genre.
_GENRES = (
    _UNKNOWN, "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip


def read_ml_latest_small(config: DataConfig) -> RawTables:
    """Reads the bundled MovieLens ml-latest-small: 100,836 ratings of 610 users, 9,742 movies."""
    ratings = read_content(_BUNDLED / "ratings.csv.gz", "install the package again")
    movies = read_content(_BUNDLED / "movies.csv.gz", "install the package again")
    return read_tables(ratings, movies, _COLUMNS)


def read_csv_archive(config: DataConfig) -> RawTables:
    """Reads `ratings.csv` and `movies.csv` of MovieLens 20M, 25M or 32M from `data.path`.

    Raises:
        UserError: `data.path` is not given or is neither the official zip nor a folder with these
            files; also as `read_table`.
    """
    return read_tables(_open(config, "ratings.csv"), _open(config, "movies.csv"), _COLUMNS)


def read_dat_archive(config: DataConfig) -> RawTables:
    """Reads `ratings.dat` and `movies.dat` of MovieLens-1M or 10M from `data.path`.

    Raises:
        UserError: `data.path` is not given or is neither the official zip nor a folder with these
            files, a file is missing, truncated or empty, or a line cannot be parsed.
    """
    log = _Rows(_open(config, "ratings.dat"), "::", ("user", "item", "rating", "timestamp"))
    movies = _Rows(_open(config, "movies.dat"), "::", ("item", "title", "genres"))
    films = movies.table()
    genres = [text.split("|") for text in films["genres"].to_list()]
    items = items_table(
        ids(movies.column(films, "item")).to_list(), films["title"].to_list(), genres
    )
    return RawTables(_interactions(log), items, movies.content.file)


def read_ml_100k(config: DataConfig) -> RawTables:
    """Reads `u.data` and `u.item` of MovieLens-100K from `data.path`.

    Raises:
        UserError: as `read_dat_archive`.
    """
    log = _Rows(_open(config, "u.data"), "\t", ("user", "item", "rating", "timestamp"))
    named = ("item", "title", "released", "released on video", "address")
    movies = _Rows(_open(config, "u.item"), "|", (*named, *_GENRES), required=2)
    films = movies.table()
    flags = films.select(_GENRES[1:]).rows()
    genres = [
        [name for name, flag in zip(_GENRES[1:], row, strict=True) if flag == "1"] for row in flags
    ]
    items = items_table(
        ids(movies.column(films, "item")).to_list(), films["title"].to_list(), genres
    )
    return RawTables(_interactions(log), items, movies.content.file)


@dataclass(frozen=True)
class _Rows:
    """A file of fields without header or quotes, in UTF-8 or Latin-1.

    Attributes:
        content: the file.
        separator: field separator.
        names: names of the fields.
        required: number of leading fields that are never empty; by default all.
    """

    content: Content
    separator: str
    names: tuple[str, ...]
    required: int | None = None

    def where(self, row: int) -> str:
        return f"{self.content.file}, line {row + 1}"

    def column(self, table: pl.DataFrame, name: str) -> Column:
        return Column(table[name], name, str(self.content.file), self.where)

    def table(self) -> pl.DataFrame:
        """The file as columns of text; raises a UserError for a line of another form."""
        data, separator = _utf8(self.content.data), self.separator
        if len(separator) > 1:
            data, separator = data.replace(separator.encode(), _STAND_IN.encode()), _STAND_IN
        try:
            frame = pl.read_csv(
                data,
                has_header=False,
                separator=separator,
                quote_char=None,
                schema=dict.fromkeys(self.names, pl.String),
            )
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            raise self._misfit() from None
        # Missing and empty fields are null.
        if any(frame[:, : self.required].null_count().row(0)) or frame[:, -1].null_count():
            raise self._misfit()
        return frame

    def _misfit(self) -> UserError:
        for row, line in enumerate(_utf8(self.content.data).decode().split("\n")):
            fields = line.rstrip("\r").split(self.separator)
            if len(fields) != len(self.names) or not all(fields[: self.required]):
                form = self.separator.join(self.names[:5]).replace("\t", " TAB ")
                return UserError(f"{self.where(row)}: not of the form {form}: {shown(line)}")
        return UserError(f"{self.content.file} holds a control character: fetch it again")


def _interactions(rows: _Rows) -> InteractionLog:
    table = rows.table()
    columns = {name: rows.column(table, name) for name in ("user", "item", "timestamp")}
    user, item = ids(columns["user"]), ids(columns["item"])
    time = timestamps(columns["timestamp"])
    return encode(pl.DataFrame({"user": user, "item": item, "timestamp": time}))


def _utf8(data: bytes) -> bytes:
    """Converts lines that are Latin-1, as in the official files, to UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return b"\n".join(map(_utf8_line, data.split(b"\n")))
    return data


def _utf8_line(line: bytes) -> bytes:
    try:
        line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1").encode()
    return line


def _open(config: DataConfig, name: str) -> Content:
    expected = f"the official {config.source}.zip or its folder"
    path, mend = given(config.path, "data.path", expected), f"set data.path to {expected}"
    if path.is_dir():
        return read_content(path / name, mend)
    if path.suffix == ".zip":
        return unzip(path, name, mend)
    if path.exists():
        raise UserError(f"{path} has an unknown extension: {mend}")
    raise UserError(f"{path} is missing: {mend}")
