"""Shared helpers of the data tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from palr_jax.data.config import DataConfig
from palr_jax.data.raw import RawTables
from palr_jax.errors import UserError
from tests.data.tables import ITEMS, LOG

Complaint = Callable[..., str]


def log_of(tables: RawTables) -> pl.DataFrame:
    """The interactions with ids as texts: user, item, timestamp."""
    log = tables.interactions
    users, items = log.user_ids[log.user_N].tolist(), log.item_ids[log.item_N].tolist()
    kinds = {"user": pl.String, "item": pl.String}
    columns = {"user": users, "item": items, "timestamp": log.timestamp_N}
    return pl.DataFrame(columns, schema_overrides=kinds)


@pytest.fixture
def complaint() -> Complaint:
    """Calls a function that must raise a UserError, and returns its message, which is one line."""

    def call(function: Callable[..., Any], *arguments: Any) -> str:
        with pytest.raises(UserError) as caught:
            function(*arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return call


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "items.csv").write_text(ITEMS)
    return DataConfig(
        source="table",
        interactions=str(tmp_path / "log.csv"),
        items=str(tmp_path / "items.csv"),
    )
