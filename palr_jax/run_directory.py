"""The run directory: the files that one config produced, and the status of its stages.

config.yaml                the resolved config, with the package version
stages.json                per stage: inputs, outputs, done, seconds
.lock                      the process that holds the directory
data/                      catalog and split
retriever/<model>/         Orbax checkpoint, candidates.npz
profiles.jsonl             one line per user
negatives/<fingerprint>/   retrievers trained without held-out items, and their proposals (if
                           configured)
title_vectors/             vectors of all titles, from words or a language model (if configured)
ranker/                    tokenizer.model or .json, items.npz (tokens of every item),
                           instructions.txt (examples and statistics), vectors.npz (item vectors,
                           if the ranker uses any)
ranker/<variant>.json      the step with the lowest validation loss (if validated)
ranker/<variant>/<step>/   Orbax checkpoints
metrics.jsonl              one line per logged step
fusion.json                the weights of ranker and popularity, relative to the retriever
slates.npz                 the slates of every ranker row
results.json               the table, and the lift by groups of users
report.html                the table, pictures of the groups, curves, examples
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import yaml

from palr_jax.config import Config, parse_config, to_dict
from palr_jax.data.split import Part
from palr_jax.errors import UserError
from palr_jax.evaluation.fusion import Weights
from palr_jax.io import lock
from palr_jax.io.files import (
    read_arrays,
    read_json,
    read_lines,
    reading,
    replacing,
    write_arrays,
    write_json,
    write_text,
)
from palr_jax.io.provenance import fingerprint
from palr_jax.io.strict_yaml import read_yaml
from palr_jax.json_types import JsonObject
from palr_jax.llm.tokenizers.tokenizer import Tokenizer, load_tokenizer
from palr_jax.parallel import processes
from palr_jax.ragged import Ragged
from palr_jax.stage_log import StageLog

VERSION = version("palr-jax")

_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)


class RunDirectory:
    """The paths of one run, and the status of its stages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.data = path / "data"
        self.profiles = path / "profiles.jsonl"
        self.negatives = path / "negatives"
        self.ranker = path / "ranker"
        self.items = self.ranker / "items.npz"
        self.vectors = self.ranker / "vectors.npz"
        self.instructions = self.ranker / "instructions.txt"
        self.metrics = path / "metrics.jsonl"
        self.fusion = path / "fusion.json"
        self.slates = path / "slates.npz"
        self.results = path / "results.json"
        self.retrievers = path / "retrievers.json"
        self.report = path / "report.html"
        self.stages = StageLog(path)

    def retriever(self, model: str) -> Path:
        """The folder of a retriever."""
        return self.path / "retriever" / model

    def candidates(self, model: str) -> Path:
        """The file of a retriever's candidates."""
        return self.retriever(model) / "candidates.npz"

    def title_vectors(self, made_by: str, titles: Sequence[str]) -> Path:
        """The file of the vectors of these titles by words or by the language model of a path."""
        return self.path / "title_vectors" / f"{fingerprint([made_by, titles])}.npz"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Locks the directory for this run while the block runs.

        Raises:
            UserError: another process holds the lock, or the folder is not a run directory.
        """
        processes.led(self._check_own)
        with lock.locked(self.path):
            yield

    def read_candidates(self, model: str) -> dict[str, np.ndarray]:
        """A retriever's candidates: items [U, C], scores [U, C] and target ranks [U] of both parts.

        Raises:
            UserError: the file is missing or damaged.
        """
        file = self.candidates(model)
        kinds = {"items": "i", "scores": "f", "rank": "f"}
        names = {f"{part}_{name}": name for part in get_args(Part) for name in kinds}
        arrays = read_arrays(file, *names)
        with reading(file, "run `palr retrieve`"):
            for full, name in names.items():
                array, axes = arrays[full], 1 if name == "rank" else 2
                if array.dtype.kind != kinds[name] or array.ndim != axes:
                    raise ValueError(f"{full} is {array.dtype} {array.shape}")
            shapes = {arrays[full].shape for full, name in names.items() if name != "rank"}
            if len(shapes) > 1:
                raise ValueError("its arrays differ in shape")
        return arrays

    def read_config(self) -> Config:
        """The config that the run was made with.

        Raises:
            UserError: the directory holds no run, or one of a newer version.
        """
        if not self.config_file.is_file():
            raise UserError(f"{self.path} is not a run directory (no config.yaml): name a run")
        raw = self._read_raw()
        written = raw.pop("palr_jax", None)
        if written is None:
            raise UserError(
                f"{self.path} is not a run directory (its {self.config_file.name} was not written "
                "by palr): name a run"
            )
        if _numbers(str(written)) > _numbers(VERSION):
            raise UserError(
                f"{self.path} was written by palr-jax {written}, this is {VERSION}: upgrade the "
                "package or choose another --name"
            )
        if "tuned" in raw:  # its name before version 0.2
            raw["retriever_presets"] = raw.pop("tuned")
        return parse_config(raw, str(self.config_file))

    def _read_raw(self) -> JsonObject:
        file, mend = self.config_file, "restore it, or choose another --name"
        with reading(file, mend):
            text = file.read_text(encoding="utf-8")
        try:
            raw = read_yaml(text, str(file))
        except UserError as error:
            raise UserError(f"{error}: {mend}") from None
        if not isinstance(raw, dict):
            raise UserError(f"{self.config_file} is damaged (it is not a mapping): {mend}")
        return raw

    def write_config(self, config: Config) -> None:
        """Records the config of this run.

        Raises:
            UserError: the directory holds a run on other data, one of a newer version, or files
                that do not belong to a run.
        """
        self._check_own()
        if self.config_file.exists():
            existing = self.read_config()
            if existing.data != config.data:
                raise UserError(
                    f"{self.path} holds a run on other data ({_difference(existing, config)}): "
                    "choose another --name or delete that run"
                )
        values = {"palr_jax": VERSION, **to_dict(config)}
        write_text(self.config_file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def _check_own(self) -> None:
        """Checks that the folder does not exist, is empty, or holds a run."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose another --name or --runs")
        if self.config_file.is_file() and "palr_jax" in self._read_raw():
            return
        others = sorted(child.name for child in self.path.iterdir() if not _is_left(child.name))
        if others:
            raise UserError(
                f"{self.path} holds {others[0]!r} and is not a run of palr: choose another --name "
                "or --runs"
            )

    def write_profiles(self, user_ids: np.ndarray, sentences: Sequence[str]) -> None:
        """Writes one line per user."""
        lines = [
            json.dumps({"user": str(user), "profile": sentence}, ensure_ascii=False)
            for user, sentence in zip(user_ids, sentences, strict=True)
        ]
        write_text(self.profiles, "".join(f"{line}\n" for line in lines))

    def profile_sources(self) -> str:
        """A sentence: how many profiles the LLM wrote, and how many are fallbacks."""
        lines = read_lines(self.profiles)
        written = sum(line.get("from") == "llm" for line in lines)
        return (
            f"{written:,} of {len(lines):,} by the LLM, {len(lines) - written:,} from categories, "
            "since its answer named no keyword"
        )

    def read_profiles(self) -> list[str]:
        """The profile sentence of every user, in the order of the split.

        Raises:
            UserError: the file is missing or a line is damaged.
        """
        lines = read_lines(self.profiles)
        with reading(self.profiles, "run `palr profile`"):
            return [str(line["profile"]) for line in lines]

    def token_files(self) -> list[Path]:
        """All files that `write_tokens` can write, for any tokenizer."""
        return [*(self.ranker / name for name in _TOKENIZER_FILES), self.items]

    def write_tokens(self, tokenizer: Tokenizer, items: Ragged) -> None:
        """Writes the tokenizer and the tokens of every item."""
        for name, content in tokenizer.files().items():
            with replacing(self.ranker / name) as temporary:
                temporary.write_bytes(content)
        write_arrays(self.items, tokens_N=items.values_N, offsets_I1=items.offsets_R1)

    def read_tokens(self) -> tuple[Tokenizer, Ragged]:
        """Reads what `write_tokens` wrote.

        Raises:
            UserError: a file is missing or damaged.
        """
        arrays = read_arrays(self.items, "tokens_N", "offsets_I1")
        with reading(self.items, "run `palr finetune`"):
            items = Ragged.checked(arrays["tokens_N"], arrays["offsets_I1"])
        return load_tokenizer(self.ranker), items

    def write_vectors(self, vectors: dict[str, np.ndarray]) -> None:
        """Writes the item vectors that a ranker is tuned with: kind → [I, D]."""
        if vectors:
            write_arrays(self.vectors, **vectors)

    def read_vectors(self, config: Config) -> list[np.ndarray]:
        """The item vectors of every kind that a config names, each [I, D].

        Raises:
            UserError: the file is missing or damaged.
        """
        kinds = config.ranker.item_embeddings
        if not kinds:
            return []
        found = read_arrays(self.vectors, *kinds)
        with reading(self.vectors, "run `palr finetune`"):
            for kind in kinds:
                if found[kind].dtype.kind != "f" or found[kind].ndim != 2:
                    raise ValueError(f"{kind} is {found[kind].dtype} {found[kind].shape}")
        return [found[kind] for kind in kinds]

    def write_weights(self, weights: Weights, tuned_on: str) -> None:
        """Writes the weights of ranker and popularity, relative to the retriever."""
        write_json(self.fusion, {**dataclasses.asdict(weights), "tuned on": tuned_on})

    def read_weights(self) -> Weights:
        """Reads what `write_weights` wrote.

        Raises:
            UserError: the run is not evaluated, or the file is damaged or of an older version.
        """
        value = read_json(self.fusion)
        with reading(self.fusion, "delete it and run `palr evaluate`"):
            weights = Weights(
                float(value["ranker"]),
                float(value["popularity"]),
                # Absent in runs of version 0.1.
                float(value.get("gate", 0.0)),
                value.get("per_user", False) is True,
            )
            numbers = (weights.ranker, weights.popularity, weights.gate)
            if not all(map(math.isfinite, numbers)) or min(numbers[:2]) < 0:
                raise ValueError(f"the weights are {numbers}")
            return weights


def _is_left(name: str) -> bool:
    """Whether a kill before the first stage can leave a file of this name."""
    return name == lock.NAME or (name.startswith(".") and name.endswith(".tmp"))


def _numbers(written: str) -> list[int]:
    return [int(part) for part in written.split(".") if part.isdigit()]


def _difference(existing: Config, config: Config) -> str:
    old, new = to_dict(existing)["data"], to_dict(config)["data"]
    key = next(key for key in new if old.get(key) != new[key])
    return f"its data.{key} is {old.get(key)!r}, not {new[key]!r}"
