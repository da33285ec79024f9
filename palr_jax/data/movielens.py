"""MovieLens: the bundled ml-latest-small, and ml-1m in its official form."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from palr_jax.data.config import Columns, DataConfig
from palr_jax.data.raw import RawTables, given, items_table, readable, timestamps
from palr_jax.data.table import read_tables
from palr_jax.errors import UserError

_BUNDLED = Path(__file__).parent / "bundled" / "ml-latest-small"
_COLUMNS = Columns(user="userId", item="movieId", categories="genres")
_EXPECTED = "the official ml-1m.zip or its folder"
_MEND = f"set data.path to {_EXPECTED}"
_NO_GENRES = "(no genres listed)"
# A control character that no field holds stands in for "::", since Polars wants a single byte.
_SEPARATOR = "\x1f"


def read_ml_latest_small(config: DataConfig) -> RawTables:
    """Reads the bundled MovieLens ml-latest-small: 100,836 ratings of 610 users, 9,742 movies."""
    tables = read_tables(_BUNDLED / "ratings.csv.gz", _BUNDLED / "movies.csv.gz", _COLUMNS)
    genres = pl.col("categories").list.eval(pl.element().filter(pl.element() != _NO_GENRES))
    return RawTables(tables.interactions, tables.items.with_columns(genres), tables.items_file)


def read_ml_1m(config: DataConfig) -> RawTables:
    """Reads `ratings.dat` and `movies.dat` of MovieLens-1M from `data.path`.

    Raises:
        UserError: `data.path` is not given or is neither the official zip nor a folder with these
            files, a file is missing, cut off or empty, or a line does not parse.
    """
    path = given(config.path, "data.path", _EXPECTED)
    ratings, movies = _open(path, "ratings.dat"), _open(path, "movies.dat")
    log = ratings.table(["user", "item", "rating", "timestamp"])
    time = timestamps(log["timestamp"], ratings.where)
    films = movies.table(["item", "title", "genres"])
    genres = [text.split("|") for text in films["genres"].to_list()]
    items = items_table(films["item"].to_list(), films["title"].to_list(), genres)
    return RawTables(log.select("user", "item", time), items, movies.file)


@dataclass(frozen=True)
class _Dat:
    """The bytes of one of the `::`-separated latin-1 files of ml-1m, and where they came from."""

    file: Path
    data: bytes

    def where(self, row: int) -> str:
        return f"{self.file}, line {row + 1}"

    def table(self, names: list[str]) -> pl.DataFrame:
        """The file as columns of text; raises a UserError naming a line that does not fit."""
        text = self.data.decode("latin-1").replace("::", _SEPARATOR)
        schema = dict.fromkeys(names, pl.String)
        try:
            frame = pl.read_csv(
                text.encode(),
                has_header=False,
                separator=_SEPARATOR,
                quote_char=None,
                schema=schema,
            )
        except pl.exceptions.PolarsError:
            raise self._misfit(names) from None
        if any(frame.null_count().row(0)):
            raise self._misfit(names)
        return frame

    def _misfit(self, names: list[str]) -> UserError:
        lines = self.data.decode("latin-1").split("\n")
        for row, line in enumerate(lines):
            fields = line.rstrip("\r").split("::")
            if len(fields) != len(names) or not all(fields):
                form = "::".join(names)
                return UserError(f"{self.where(row)}: not of the form {form}: {line[:60]!r}")
        return UserError(f"{self.file} holds a control character: {_MEND}")


def _open(path: Path, name: str) -> _Dat:
    if path.is_dir():
        with readable(path / name, _MEND):
            dat = _Dat(path / name, (path / name).read_bytes())
    elif path.suffix == ".zip":
        dat = _unzip(path, name)
    elif path.exists():
        raise UserError(f"{path} has an unknown extension: {_MEND}")
    else:
        raise UserError(f"{path} is missing: {_MEND}")
    if not dat.data.strip():
        raise UserError(f"{dat.file} is empty: {_MEND}")
    return dat


def _unzip(path: Path, name: str) -> _Dat:
    try:
        with (
            readable(path, _MEND),
            path.open("rb") as file,
            zipfile.ZipFile(file) as archive,
        ):
            members = [member for member in archive.namelist() if Path(member).name == name]
            if not members:
                raise UserError(f"{path} holds no {name}: {_MEND}")
            return _Dat(path / members[0], archive.read(members[0]))
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut off ({error}): fetch it again") from None
