"""Settings of all tests, and a small data set that the tests of several rooms share."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.xla import flags

# Before JAX is imported: simulate several devices, as on a pod, and cache programs that several
# tests compile.
os.environ.setdefault("XLA_FLAGS", flags(8))
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"palr-jax-tests-{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import numpy as np
import pytest

from palr_jax.cli import main
from palr_jax.data.catalog import Catalog
from palr_jax.instruct.config import InstructConfig
from palr_jax.instruct.item_tokens import tokenize_items
from palr_jax.instruct.prompts import PromptWriter
from palr_jax.llm.tokenizers.sentencepiece_tokenizer import train_tokenizer
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.ragged import Ragged
from palr_jax.retrieval import full_ranking
from tests.locations import ROOT
from tests.world import write_world

# Files that take more than a few seconds, which `pytest -m quick` leaves out, as it does every test
# of a finished run (`world`).
SLOW = frozenset(
    f"tests/{name}.py"
    for name in (
        "decoding/test_generate",
        "decoding/test_prefix",
        "decoding/test_score",
        "decoding/test_search",
        "decoding/test_write",
        "evaluation/test_report_page",
        "io/test_buckets",
        "io/test_checkpoint",
        "llm/checkpoints/test_any_input",
        "llm/checkpoints/test_gguf",
        "llm/checkpoints/test_huggingface",
        "llm/checkpoints/test_imported",
        "llm/checkpoints/test_peft",
        "llm/checkpoints/test_transformers",
        "llm/test_attention",
        "llm/test_compute",
        "llm/test_llama",
        "llm/test_lora",
        "llm/test_prefix",
        "llm/test_quantize",
        "llm/test_variants",
        "parallel/test_mesh",
        "parallel/test_processes",
        "parallel/test_retrieval",
        "parallel/test_roll_call",
        "parallel/test_watch",
        "planning/test_compile",
        "planning/test_plan",
        "ranking/test_export",
        "ranking/test_profile_speaker",
        "ranking/test_quantized",
        "ranking/test_ranker",
        "retrieval/test_full_ranking",
        "retrieval/test_models",
        "retrieval/test_networks",
        "retrieval/test_pairwise",
        "retrieval/test_sequential",
        "stages/test_instruction_data",
        "stages/test_profile",
        "stages/test_ranking_recipe",
        "stages/test_retrieve",
        "stages/test_run",
        "test_bulk_recommend",
        "test_damage",
        "test_failures",
        "test_recommender",
        "test_slates",
        "training/test_candidates",
        "training/test_loop",
        "training/test_step",
    )
)

KINDS = ("Comedy", "Drama", "Horror")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the quick tests, and puts the slow files first.

    Each worker takes one file after the other; so none has a slow one left when the others end.
    """

    def is_fast(item: pytest.Item) -> bool:
        return item.path.relative_to(ROOT).as_posix() not in SLOW

    items.sort(key=is_fast)
    for item in items:
        fixtures = item.fixturenames if isinstance(item, pytest.Function) else []
        if is_fast(item) and "world" not in fixtures:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="session", autouse=True)
def _one_device_ranks() -> Iterator[None]:
    """Ranks on one device, as most users do: compiling for eight takes three times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full_ranking, "_devices", lambda: jax.local_devices()[:1])
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Frees a module's compiled programs after its tests.

    Each program holds dozens of memory mappings, those of one module up to 8,000. Linux limits a
    process to 65,530 by default, and XLA crashes beyond that.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """Thirty items with two categories or zero."""
    words = ["Night", "Return of the King", "Day", "Ice, Fire", "Léon", "Sea"]
    titles = tuple(f"{words[i % 6]} {i} ({1980 + i})" for i in range(30))
    categories = tuple(() if i == 7 else (KINDS[i % 3], KINDS[(i + 1) % 3]) for i in range(30))
    return Catalog(np.array([f"id{i}" for i in range(30)]), titles, categories)


@pytest.fixture(scope="session")
def train() -> Ragged:
    """Twelve users with 2 to 24 training items each, no item twice."""
    rng = np.random.default_rng(0)
    return Ragged.from_rows([rng.permutation(30)[: 2 + 2 * user] for user in range(12)])


@pytest.fixture(scope="session")
def tokenizer(catalog: Catalog) -> Tokenizer:
    return train_tokenizer([f'"{title}"' for title in catalog.titles], 600)


@pytest.fixture(scope="session")
def instruct_config() -> InstructConfig:
    return InstructConfig(
        history=5, label=4, candidates=12, enrich_history=0, enrich_label=0, swap=0, length=400
    )


@pytest.fixture(scope="session")
def item_tokens(catalog: Catalog, tokenizer: Tokenizer, instruct_config: InstructConfig) -> Ragged:
    return tokenize_items(catalog, tokenizer, instruct_config).tokens


@pytest.fixture(scope="session")
def writer(
    tokenizer: Tokenizer, item_tokens: Ragged, instruct_config: InstructConfig
) -> PromptWriter:
    return PromptWriter(tokenizer, item_tokens, instruct_config)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, runs/tiny; one worker makes it, the others copy it."""
    folder = tmp_path_factory.mktemp("world")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        make_world(folder)
        return folder
    shared = tmp_path_factory.getbasetemp().parent / "world"  # of this run of all workers
    with alone(shared.with_suffix(".lock")):
        if not shared.exists():
            make_world(folder)
            shutil.copytree(folder, shared.with_suffix(".tmp"))
            shared.with_suffix(".tmp").rename(shared)
            return folder
    return shutil.copytree(shared, folder, dirs_exist_ok=True)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits until no other process is in a block with this file."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_world(folder: Path) -> None:
    write_world(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["run", "--config", "tiny.yaml"]) == 0
    finally:
        os.chdir(before)
