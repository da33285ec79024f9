"""A table as text: CSV and similar formats, with any separator, with or without a header line."""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import polars as pl

from palr_jax.data.reading import Content, not_utf8
from palr_jax.data.table_file import TableFile
from palr_jax.errors import UserError

_SEPARATORS = ",;\t|"
_SAMPLE_BYTES = 1_000_000
_SAMPLE_RECORDS = 20


@dataclass(frozen=True)
class CsvFile(TableFile):
    """The text of a table.

    Attributes:
        separator: the field separator, a single byte.
    """

    separator: str
    is_named = False

    def pieces(self, places: list[int], has_header: bool) -> Iterator[pl.DataFrame]:
        """The columns at these indices as text, all rows at once.

        Numbers are not parsed, so that an id such as 007 is unchanged.

        Raises:
            UserError: the file is not UTF-8, a record has another number of fields than the first,
                or a quote is misplaced; names the line.
        """
        frame = self._parsed(has_header)
        # Polars pads a short row with nulls, and reads a blank line as a row of nulls.
        if frame.width and not (frame[:, -1].fill_null("") != "").all():
            self._check_fields()
            frame = frame.filter(pl.any_horizontal((pl.all() != "").fill_null(False)))
        yield pl.DataFrame([frame.to_series(place) for place in places])

    def where(self, row: int, has_header: bool) -> str:
        """The location of a row: the line that it begins in."""
        records = _records(self.file, self._text(), self.separator)
        line, _ = next(islice(records, row + has_header, None))
        return f"{self.file}, line {line}"

    def _parsed(self, has_header: bool) -> pl.DataFrame:
        try:
            frame = pl.read_csv(
                self.content.data,
                has_header=has_header,
                separator=self.separator,
                infer_schema=False,
            )
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            self._check_fields()
            raise self._stray_quote() from None
        if frame.width != len(self.header):
            self._check_fields()
            raise self._stray_quote()
        frame.columns = [str(index) for index in range(frame.width)]  # "*" would be a pattern
        return frame

    def _text(self) -> str:
        data = self.content.data
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(self.file, data.count(b"\n", 0, error.start) + 1) from None

    def _check_fields(self) -> None:
        for line, fields in _records(self.file, self._text(), self.separator):
            if len(fields) != len(self.header):
                problem = f"{len(fields)} fields where the first line has {len(self.header)}"
                raise UserError(f"{self.file}, line {line}: {problem}: mend or delete that line")

    def _stray_quote(self) -> UserError:
        """The error for a quote in an unquoted field: no field is missing, but Polars fails."""
        text = self._text()
        lines = text.split("\n")
        starts = [line for line, _ in _records(self.file, text, self.separator)]
        for start, end in pairwise([*starts, len(lines) + 1]):
            if "".join(lines[start - 1 : end - 1]).count('"') % 2:
                problem = "a double quote out of place: double it, and quote its whole field"
                return UserError(f"{self.file}, line {start}: {problem}")
        return UserError(f"{self.file} is not valid CSV: check its double quotes and line ends")


def open_csv(content: Content, separator: str | None, fits: Callable[[list[str]], bool]) -> CsvFile:
    """Opens a text table and detects its separator, unless one is given.

    It is tab for .tsv, .inter and .item. Otherwise it is that of comma, semicolon, tab and `|` with
    which the first record fits and most of the next records have the same number of fields.

    Args:
        content: the file.
        separator: the separator from the config, if any.
        fits: whether a first record can be that of the table.
    """
    tabs = content.file.name.removesuffix(".gz").endswith((".tsv", ".inter", ".item"))
    best, best_score = None, (False, -1, -1)
    for candidate in separator or ("\t" if tabs else _SEPARATORS):
        records = _sample(content, candidate)
        header = records[0] if records else []
        alike = sum(len(fields) == len(header) for fields in records)
        does_fit = fits(header)
        score = (does_fit, alike if does_fit else 0, 0 if does_fit else len(header))
        if score > best_score:
            best, best_score = CsvFile(content, header, candidate), score
    assert best is not None, "there is a candidate"
    return best


def _sample(content: Content, separator: str) -> list[list[str]]:
    """The first records that are not blank."""
    text = content.data[:_SAMPLE_BYTES].decode(errors="replace")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    records: list[list[str]] = []
    # An invalid record is reported when the whole file is read.
    with suppress(csv.Error):
        for fields in reader:
            if any(fields):
                records.append(fields)
            if len(records) == _SAMPLE_RECORDS:
                break
    return records


def _records(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the number of its first line."""
    # The limit is one for all readers, so it is only raised.
    csv.field_size_limit(max(len(text) + 1, csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    line = 1
    try:
        for fields in reader:
            if any(fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not valid CSV ({error})") from None
