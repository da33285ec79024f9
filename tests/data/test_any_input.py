"""For any content of a file, a reader returns tables or raises a one-line error."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palr_jax.data.config import Columns, DataConfig, Source
from palr_jax.data.prepare import READERS
from palr_jax.data.raw import RawTables
from tests.data.conftest import log_of
from tests.outcome import result_or_line

COLUMNS = ["user", "item", "timestamp", "title", "categories"]
FIELDS = st.sampled_from(
    [*COLUMNS, "1", "2.0", "nan", "", " ", "2014-01-01", "Léon", "é", "\ufeff", "-", "1e400", "a|b"]
) | st.text(st.characters(codec="utf-8"), max_size=5)
TEXTS = st.lists(FIELDS | st.sampled_from(',;\t|"\n\r\0\n,,'), max_size=40)
BYTES = st.binary(max_size=60) | TEXTS.map(lambda parts: "".join(parts).encode())
FAST = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def check(source: Source, files: Mapping[str, Any], columns: Columns | None = None) -> None:
    config = DataConfig(source=source, columns=columns or Columns(), **files)
    found = result_or_line(READERS[source], config)
    if isinstance(found, RawTables):
        log = log_of(found)
        assert log.columns == ["user", "item", "timestamp"]
        assert sum(log.null_count().row(0)) == 0
        assert log["user"].dtype == log["item"].dtype == pl.String
        assert log["timestamp"].dtype in (pl.Int64, pl.Float64)
        assert found.items.columns == ["item", "title", "categories"]
    else:
        assert any(str(Path(path).name) in found for path in files.values() if path)


def rows(header: list[str]) -> st.SearchStrategy[bytes]:
    """CSV with a valid beginning."""
    lines = st.lists(st.lists(FIELDS, min_size=2, max_size=4).map(",".join), max_size=6)
    return lines.map(lambda made: "\n".join([",".join(header), *made]).encode())


@FAST
@given(
    log=BYTES | rows(COLUMNS[:3]),
    items=BYTES | rows(["item", "title", "categories"]),
    ends=st.sampled_from([".csv", ".tsv", ".csv.gz"]),
    numbers=st.booleans(),
)
def test_text_tables(tmp_path: Path, log: bytes, items: bytes, ends: str, numbers: bool) -> None:
    pack: Callable[[bytes], bytes] = gzip.compress if ends.endswith("gz") else bytes
    (tmp_path / f"log{ends}").write_bytes(pack(log))
    (tmp_path / f"items{ends}").write_bytes(pack(items))
    columns = Columns(user="1", item="2", timestamp="3") if numbers else Columns()
    files = {"interactions": str(tmp_path / f"log{ends}"), "items": str(tmp_path / f"items{ends}")}
    check("table", files, columns)


PARQUET_VALUES = st.one_of(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=3) | st.none(), max_size=3),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), max_size=3),
    st.lists(st.floats() | st.none(), max_size=3),
    st.lists(st.booleans(), max_size=3),
    st.lists(st.binary(max_size=3), max_size=3),
    st.lists(st.dates() | st.none(), max_size=3),
    st.lists(st.datetimes(), max_size=3),
    st.lists(st.timedeltas(), max_size=3),
    st.lists(st.decimals(-999, 999, places=2), max_size=3),
    st.lists(st.lists(st.text("ab", max_size=2) | st.none(), max_size=2), max_size=3),
    st.lists(st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2), max_size=3),
    st.lists(st.fixed_dictionaries({"a": st.integers(0, 9)}), max_size=3),
    st.lists(st.none(), max_size=3),
)


def parquet(names: list[str]) -> st.SearchStrategy[bytes]:
    def packed(columns: list[list[object]]) -> bytes:
        height = max(map(len, columns))
        frame = pl.DataFrame(
            {
                name: values + values[-1:] * (height - len(values)) or [None] * height
                for name, values in zip(names, columns, strict=True)
            },
            strict=False,
        )
        file = io.BytesIO()
        frame.write_parquet(file)
        return file.getvalue()

    return st.lists(PARQUET_VALUES, min_size=len(names), max_size=len(names)).map(packed)


@FAST
@given(
    log=parquet(COLUMNS[:3]),
    items=parquet(["item", "title", "categories"]),
    cut=st.none() | st.tuples(st.integers(0, 10_000), st.integers(0, 255)),
)
def test_parquet_tables(
    tmp_path: Path, log: bytes, items: bytes, cut: tuple[int, int] | None
) -> None:
    if cut is not None:
        place = cut[0] % len(log)
        log = log[:place] + bytes([cut[1]]) + log[place + 1 :]
    (tmp_path / "log.parquet").write_bytes(log)
    (tmp_path / "items.parquet").write_bytes(items)
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("log", "items")}
    check("table", {"interactions": files["log"], "items": files["items"]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
AMAZON_KEYS = st.sampled_from(
    ["reviewerID", "asin", "unixReviewTime", "user_id", "parent_asin", "timestamp", "title",
     "categories", "category"]
)  # fmt: skip
AMAZON_VALUES = JSON | st.sampled_from(["B1", "u1", 5, ["a", "b"], [["a", "b"]], "\ud800", 2**70])
AMAZON_LINES = st.one_of(
    st.dictionaries(AMAZON_KEYS, AMAZON_VALUES, max_size=9).map(json.dumps),
    st.dictionaries(AMAZON_KEYS, AMAZON_VALUES, max_size=9).map(repr),
    st.just(json.dumps({"reviewerID": "u1", "asin": "B1", "unixReviewTime": 5})),
    st.text(st.characters(codec="utf-8"), max_size=20),
)


@FAST
@given(log=st.lists(AMAZON_LINES, max_size=4), items=st.lists(AMAZON_LINES, max_size=4))
def test_amazon_lines(tmp_path: Path, log: list[str], items: list[str]) -> None:
    for name, lines in (("X_5.json", log), ("meta_X.json", items)):
        (tmp_path / name).write_bytes("\n".join(lines).encode(errors="replace"))
    check("amazon-2018", {"path": str(tmp_path)})


DAT_FIELDS = FIELDS | st.sampled_from(["::", "::", "1", "978300760", "\n", "\n", "|", "\t"])
DAT = st.one_of(
    st.lists(DAT_FIELDS, max_size=20).map(lambda parts: "".join(parts).encode("utf-8")),
    st.lists(DAT_FIELDS, max_size=20).map(lambda parts: "".join(parts).encode("latin-1", "ignore")),
    st.lists(st.integers(0, 99), min_size=4, max_size=4).map(
        lambda row: "::".join(map(str, row)).encode() + b"\n"
    ),
    st.binary(max_size=40),
)


@pytest.mark.parametrize(
    "source, names",
    [
        ("ml-100k", ("u.data", "u.item")),
        ("ml-1m", ("ratings.dat", "movies.dat")),
        ("ml-20m", ("ratings.csv", "movies.csv")),
    ],
)
@FAST
@given(log=DAT, items=DAT | st.just(b"1::Heat::Crime\n"), fault=st.integers(-1, 10_000))
def test_movielens_archives(
    tmp_path: Path,
    source: Source,
    names: tuple[str, str],
    log: bytes,
    items: bytes,
    fault: int,
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in zip(names, (log, items), strict=True):
            archive.writestr(f"ml/{name}", content)
    data = bytearray(packed.getvalue())
    if fault >= 0:
        data[fault % len(data)] ^= 1 << fault % 8
    (tmp_path / "ml.zip").write_bytes(data)
    check(source, {"path": str(tmp_path / "ml.zip")})
