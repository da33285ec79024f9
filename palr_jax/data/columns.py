"""Checked columns of a table: ids, timestamps, texts and lists of texts."""

import ast
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from palr_jax.data.catalog import normal_title
from palr_jax.errors import UserError, shown
from palr_jax.json_types import Json

# An array of ids has the width of its longest id.
_ID_BYTES = 256
# Integers up to this size are exact in a type.
_EXACT = {pl.Float32: 2**24, pl.Float64: 2**53, pl.Decimal: 2**53}
_NO_VALUE = ("nan", "NaN", "NAN", "None", "none", "null", "NULL", "Null", "NA", "N/A", "<NA>")
# What stands in files where a category is not known, in small letters.
NO_CATEGORY = frozenset({"", "(no genres listed)", "\\n", "<na>", "n/a", "nan", "none", "null"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TEXTS = (pl.String, pl.Categorical, pl.Enum, pl.Null)
_LISTS = pl.List(pl.String)


@dataclass(frozen=True)
class Column:
    """A column and its source.

    Attributes:
        values: the values.
        name: the name in the file.
        table: the name of the file.
        where: row index → its location, such as "FILE, line 7".
    """

    values: pl.Series
    name: str
    table: str
    where: Callable[[int], str]

    def refuse(self, wrong: pl.Series, problem: str) -> None:
        """Raises a UserError for the first row where `wrong` is true, if any.

        Args:
            wrong: bool; null counts as false.
            problem: the error message, with {value} for the value.
        """
        row = wrong.fill_null(False).arg_max() if wrong.any() else None
        if row is not None:
            told = problem.replace("{value}", shown(self.values[row]))
            raise UserError(f"{self.where(row)}: {told}: mend or delete that row")

    def refuse_type(self, expected: str) -> UserError:
        """The error for a column of an unexpected type."""
        kind = str(self.values.dtype)
        return UserError(f"{self.table}: column {self.name!r} is of type {kind}, not {expected}")


def ids(column: Column) -> pl.Series:
    """The ids of a column as text, without spaces around it.

    Whole numbers that are stored as floats are written without fraction.

    Raises:
        UserError: the column holds neither texts nor numbers, or a row has no value, a number with
            a fraction, a control character, or over 256 bytes.
    """
    values = column.values
    if values.dtype.is_float() or values.dtype.is_decimal():
        text = _whole(column)
    elif values.dtype.is_integer() or isinstance(values.dtype, _TEXTS):
        text = _without_fractions(values.cast(pl.String).str.strip_chars(" "))
    else:
        raise column.refuse_type("texts or whole numbers")
    name = column.name
    column.refuse(_blank(text), f"no value in column {name!r}")
    column.refuse(
        text.str.len_bytes() > _ID_BYTES,
        f"the id {{value}} in column {name!r} takes more than {_ID_BYTES} bytes",
    )
    column.refuse(
        text.str.contains(r"\p{Cc}"), f"the id {{value}} in column {name!r} has a control character"
    )
    return text


def timestamps(column: Column) -> pl.Series:
    """The column as int64, or as float64 if it holds fractions; dates in text as microseconds.

    Raises:
        UserError: the column holds neither texts, numbers nor dates, or a row has no value or one
            that is neither a finite number nor an ISO 8601 date.
    """
    values, kind = column.values, column.values.dtype
    if not (kind.is_numeric() or isinstance(kind, (*_TEXTS, pl.Date, pl.Datetime))):
        raise column.refuse_type("numbers or dates")
    if isinstance(kind, _TEXTS):
        values = values.cast(pl.String).str.strip_chars(" ")
        column.refuse(_blank(values), f"no value in column {column.name!r}")
    column.refuse(values.is_null(), f"no value in column {column.name!r}")
    if not (kind.is_float() or kind.is_decimal()):
        whole = values.cast(pl.Int64, strict=False)
        if not whole.null_count():
            return whole
    real = values.cast(pl.Float64, strict=False)
    finite = real.is_finite().fill_null(False)
    if finite.all():
        return real
    if values.dtype == pl.String and not finite.any():
        dates = values.map_elements(_microseconds, return_dtype=pl.Int64)
        column.refuse(dates.is_null(), "the timestamp {value} is not a date as 2014-12-31T23:59:59")
        return dates
    column.refuse(~finite, "the timestamp {value} is not a number")
    raise AssertionError("a row that is not finite was refused")


def joined_timestamps(pieces: Sequence[pl.Series]) -> pl.Series:
    """The pieces of a column in one; `timestamps` reads it as it would the values themselves.

    A piece may be what `as_numbers` made of it.
    """
    kinds = {piece.dtype for piece in pieces}
    return pl.concat([piece.cast(pl.String) for piece in pieces] if len(kinds) > 1 else pieces)


def as_numbers(piece: pl.Series) -> pl.Series:
    """A piece of a column of timestamps; texts that are all whole numbers as such, to save memory.

    `joined_timestamps` converts them back to texts if another piece has other texts.
    """
    whole = piece.cast(pl.Int64, strict=False) if piece.dtype == pl.String else piece
    return piece if whole.null_count() else whole


def texts(column: Column) -> pl.Series:
    """The column as texts, "" for null.

    Raises:
        UserError: the column holds neither texts nor whole numbers.
    """
    kind = column.values.dtype
    if not (kind.is_integer() or isinstance(kind, _TEXTS)):
        raise column.refuse_type("texts")
    return column.values.cast(pl.String).fill_null("")


def lists(column: Column, separator: str) -> pl.Series:
    """The column as lists of texts; a text is split at `separator`.

    Where all texts are lists as Python or JSON writes them (`['Comedy', 'Drama']`), as in a table
    of pandas that was saved as CSV, they are read as such.

    Raises:
        UserError: the column holds neither texts nor lists of texts.
    """
    kind = column.values.dtype
    if not isinstance(kind, pl.List | pl.Array):
        joined = texts(column)
        written = _written(joined)
        return joined.str.split(separator) if written is None else written
    if not (kind.inner.is_integer() or isinstance(kind.inner, _TEXTS)):
        raise column.refuse_type("texts or lists of texts")
    rows = pl.DataFrame({"rows": column.values.cast(_LISTS)})
    filled = (
        pl.col("rows").fill_null(pl.lit([], dtype=_LISTS)).list.eval(pl.element().fill_null(""))
    )
    return rows.select(filled).to_series()


def words_of(joined: pl.Series) -> pl.Series:
    """The words of each text, which white space separates, as lists."""
    return joined.str.extract_all(r"[^\s\x1c-\x1f]+")


def _written(joined: pl.Series) -> pl.Series | None:
    """The lists that texts write out, or None if any text but an empty one is no list of texts."""
    rows: list[list[str]] = []
    for text in joined:
        bare = text.strip()
        if bare.casefold() in NO_CATEGORY:
            rows.append([])
            continue
        if not (bare.startswith("[") and bare.endswith("]")):
            return None
        row = _literal(bare)
        if row is None or not all(isinstance(name, str) for name in row):
            return None
        rows.append([normal_title(name) for name in row])  # without what UTF-8 cannot encode
    return pl.Series(rows, dtype=_LISTS) if any(rows) else None


def _literal(text: str) -> list[Json] | None:
    """The list that a text in brackets writes out in JSON or in Python, or None."""
    for read in (json.loads, ast.literal_eval):
        with suppress(SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            return list(read(text))
    return None


def _whole(column: Column) -> pl.Series:
    values, most = column.values.cast(pl.Float64), _EXACT.get(column.values.dtype.base_type(), 2**8)
    column.refuse(values.is_nan() | values.is_null(), f"no value in column {column.name!r}")
    column.refuse(
        (values != values.round()) | (values.abs() > most),
        f"the id {{value}} in column {column.name!r} is not a whole number",
    )
    return values.cast(pl.Int64).cast(pl.String)


def _without_fractions(text: pl.Series) -> pl.Series:
    """Strips ".0" from the numbers of a column if all of them end in it."""
    if text.str.contains(r"^-?\d+\.0$").all(ignore_nulls=False) and len(text):
        return text.str.head(-2)
    return text


def _blank(text: pl.Series) -> pl.Series:
    """Which values are missing; a word such as "nan" is missing if all others are numbers."""
    blank = text.is_null() | (text.str.strip_chars() == "")
    words = blank | text.is_in(_NO_VALUE)
    if words.sum() == blank.sum() or words.all():
        return blank
    others = text.filter(~words).cast(pl.Float64, strict=False)
    return words if others.is_not_null().all() else blank


def _microseconds(text: str) -> int | None:
    """Microseconds since 1970 of an ISO 8601 date, in UTC by default; None for other texts."""
    try:
        moment = datetime.fromisoformat(text.strip())
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (aware - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return None
