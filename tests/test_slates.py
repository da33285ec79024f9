"""The guarantee of every slate, by the tool that checks all users, on some of them."""

import importlib.util
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from palr_jax.config import load_config
from palr_jax.data.catalog import Catalog, unique_titles
from palr_jax.data.prepare import prepare
from palr_jax.instruct.config import InstructConfig
from palr_jax.ragged import Ragged
from tests.locations import ROOT, SHARED

DATA = SHARED / "data"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_slates", ROOT / "tools/check_slates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_adversarial_titles(tool: ModuleType) -> None:
    odd = [
        " ", "\u200b", ".", '"', '""', "'", ",", '", "', "a", "A", "a ", "…", "🎬", "🎬🎬", "é",
        "e\u0301", "שלום עולם", "مرحبا", "\u202eabc", "日本語", "x" * 841, "x" * 840,
        "x" * 840 + "y", "The", "The ", "The Matrix", "The Matrix (1999)", "The Matrix Reloaded",
        "</s>", "<s>", "Recommendations:",
    ]  # fmt: skip
    plain = [f"Story {number}" for number in range(60)]
    ids = np.array([f"i{number}" for number in range(len(odd) + len(plain))])
    titles = unique_titles([*odd, *plain], list(ids))
    catalog = Catalog(ids, titles, ((),) * len(titles))
    instruct = InstructConfig(title_tokens=900, history=5, length=16384)
    ranker = tool.tiny_ranker(catalog, instruct, batch_size=4)
    rng = np.random.default_rng(0)
    histories = Ragged.from_rows(rng.permutation(len(titles))[:5] for _ in range(12))
    assert tool.check_all(ranker, histories, seed=1)["catalog"] == 2


@pytest.mark.parametrize("name", ["ml-1m", "beauty"])
def test_users_of_the_paper(tool: ModuleType, name: str) -> None:
    folder = DATA / name
    if not folder.exists():
        pytest.skip("the data set is not here")
    config = load_config(ROOT / "configs/quickstart.yaml", {
        "data.source": "table",
        "data.interactions": str(folder / "interactions.csv.gz"),
        "data.items": str(folder / "items.csv.gz"),
    })  # fmt: skip
    prepared = prepare(config.data)
    instruct = replace(config.instruct, title_tokens=48, history=2, length=4096)
    ranker = tool.tiny_ranker(prepared.catalog, instruct, batch_size=16)
    every = prepared.split.histories("test")
    some = every.take(np.random.default_rng(2).permutation(len(every))[:32])
    assert tool.check_all(ranker, some, seed=3)["score"] == 32


def test_a_broken_promise_is_seen(tool: ModuleType) -> None:
    histories, candidates = Ragged.from_rows([[50]]), np.arange(20)[None]
    good = np.arange(10)[None]
    tool.check(good, histories, candidates)
    for bad in (np.full((1, 10), 3), good + 15, np.where(good == 9, -1, good)):
        with pytest.raises(AssertionError):
            tool.check(bad, histories, candidates)
    with pytest.raises(AssertionError, match="seen"):
        tool.check(good + 45, histories, None)
