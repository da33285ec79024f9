"""The run directory: what one config produced, and which of its stages are done.

config.yaml                the resolved config, with the package version
stages.json                per stage: fingerprint of what it was made from, done, seconds
data/                      catalog and split
retriever/<model>/         Orbax checkpoint, candidates.npz
profiles.jsonl             one line a user
negatives/<mark>/          retrievers that held-out items are new to, and what they propose (if
                           configured)
title_vectors/             vectors of all titles, by their words or a language model (if configured)
ranker/                    tokenizer.model or .json, items.npz (tokens of every item),
                           instructions.txt (some of them, and statistics), vectors.npz (item
                           vectors, if the ranker gets any)
ranker/<variant>.json      the step with the lowest validation loss (if it was validated)
ranker/<variant>/<step>/   Orbax checkpoints
metrics.jsonl              one line a logged step
fusion.json                the weights of ranker and popularity beside the retriever
slates.npz                 the slates of every ranker row
results.json               the table
report.html                the table, curves, examples
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from palr_jax import processes
from palr_jax.config import Config, parse_config, to_dict
from palr_jax.errors import UserError
from palr_jax.evaluation.fusion import Weights
from palr_jax.files import (
    fingerprint,
    read_arrays,
    read_json,
    replacing,
    write_arrays,
    write_json,
    write_text,
)
from palr_jax.llm.tokenizer import Tokenizer, load_tokenizer
from palr_jax.paths import delete
from palr_jax.progress import say
from palr_jax.ragged import Ragged

VERSION = version("palr-jax")


class RunDirectory:
    """Paths and the state of the stages of one run."""

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
        self._stages = path / "stages.json"

    def retriever(self, model: str) -> Path:
        """Where a retriever lives."""
        return self.path / "retriever" / model

    def candidates(self, model: str) -> Path:
        """The candidates that a retriever proposed."""
        return self.retriever(model) / "candidates.npz"

    def title_vectors(self, made_by: str) -> Path:
        """Vectors of all titles, made by their words or by the language model of that path."""
        return self.path / "title_vectors" / f"{fingerprint(made_by)}.npz"

    def read_config(self) -> Config:
        """The config that the run was made with.

        Raises:
            UserError: there is no run here, or it was written by a newer version.
        """
        if not self.config_file.exists():
            raise UserError(f"{self.path} is not a run directory (no config.yaml): name a run")
        try:
            raw = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
            written = str(raw.pop("palr_jax"))
        except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.config_file} is damaged ({error!r}): delete the run directory"
            ) from None
        if _numbers(written) > _numbers(VERSION):
            raise UserError(
                f"{self.path} was written by palr-jax {written}, this is {VERSION}: upgrade the "
                "package or choose another --name"
            )
        return parse_config(raw, str(self.config_file))

    def write_config(self, config: Config) -> None:
        """Records the config of this run.

        Raises:
            UserError: the directory holds a run on other data, or one of a newer version.
        """
        if self.config_file.exists():
            there = self.read_config()
            if there.data != config.data:
                raise UserError(
                    f"{self.path} holds a run on other data ({_difference(there, config)}): "
                    "choose another --name or delete that folder"
                )
        values = {"palr_jax": VERSION, **to_dict(config)}
        write_text(self.config_file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def write_profiles(self, user_ids: np.ndarray, sentences: Sequence[str]) -> None:
        """Writes one line a user."""
        lines = [
            json.dumps({"user": str(user), "profile": sentence}, ensure_ascii=False)
            for user, sentence in zip(user_ids, sentences, strict=True)
        ]
        write_text(self.profiles, "".join(f"{line}\n" for line in lines))

    def profile_sources(self) -> str:
        """How many profiles an LLM wrote, and for how many its answer could not be read."""
        lines = [json.loads(line) for line in self.profiles.read_text("utf-8").splitlines()]
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
        try:
            with self.profiles.open(encoding="utf-8") as file:
                return [str(json.loads(line)["profile"]) for line in file]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.profiles} cannot be read ({error}): delete it and run `palr profile`"
            ) from None

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
        arrays = read_arrays(self.items)
        return load_tokenizer(self.ranker), Ragged(arrays["tokens_N"], arrays["offsets_I1"])

    def write_vectors(self, vectors: dict[str, np.ndarray]) -> None:
        """Writes the item vectors that a ranker is tuned with, by their kind."""
        if vectors:
            write_arrays(self.vectors, **vectors)

    def read_vectors(self, config: Config) -> list[np.ndarray]:
        """The item vectors of every kind that a config names, [I, R] each.

        Raises:
            UserError: the file is missing or damaged.
        """
        if not config.ranker.item_embeddings:
            return []
        found = read_arrays(self.vectors)
        return [found[kind] for kind in config.ranker.item_embeddings]

    def write_weights(self, weights: Weights, tuned_on: str) -> None:
        """Writes the weights of ranker and popularity beside the retriever."""
        write_json(self.fusion, {**dataclasses.asdict(weights), "tuned on": tuned_on})

    def read_weights(self) -> Weights:
        """Reads what `write_weights` wrote.

        Raises:
            UserError: the file is missing, damaged, or of an older version.
        """
        found = read_json(self.fusion)
        try:
            weights = Weights(float(found["ranker"]), float(found["popularity"]))
            finite = bool(np.isfinite(dataclasses.astuple(weights)).all())
        except (KeyError, TypeError, ValueError):
            finite = False
        if not finite:
            raise UserError(
                f"{self.fusion} does not hold the weights of a fusion: delete it and run "
                "`palr evaluate`"
            )
        return weights

    def is_done(self, stage: str, made_from: Any) -> bool:
        """Whether a stage has finished with exactly these inputs."""
        entry = self._read_stages().get(stage, {})
        return bool(entry.get("done")) and entry.get("fingerprint") == fingerprint(made_from)

    def require(self, stage: str, made_from: Any) -> None:
        """Checks that a stage that this one builds on is done.

        Raises:
            UserError: it is not, or its part of the config has changed since.
        """
        if not self.is_done(stage, made_from):
            entry = self._read_stages().get(stage, {})
            why = "was made with another config" if entry.get("done") else "is not done"
            raise UserError(f"{self.path}: the stage {stage} {why}: run `palr {stage}` first")

    def run_stage(
        self, stage: str, made_from: Any, outputs: list[Path], work: Callable[[], None]
    ) -> None:
        """Runs a stage unless it is done.

        What an unfinished attempt with the same inputs left is kept, so that the stage can go
        on; what other inputs left is deleted first.
        """
        mark = fingerprint(made_from)
        if not processes.led(lambda: self._begin(stage, mark, outputs)):
            say(f"{stage}: done before, skipped")
            return
        start = time.monotonic()
        work()
        seconds = round(time.monotonic() - start, 1)
        # The others wait, so that none of them finds the stage undone.
        processes.led(lambda: self._note(stage, mark, done=True, seconds=seconds))
        say(f"{stage}: done in {seconds:.0f} s")

    def _begin(self, stage: str, mark: str, outputs: list[Path]) -> bool:
        """Whether a stage is to be run; clears what is not of these inputs."""
        entry = self._read_stages().get(stage, {})
        if entry.get("fingerprint") != mark:
            for output in outputs:
                delete(output)
        elif entry.get("done"):
            return False
        self._note(stage, mark, done=False)
        return True

    def _note(self, stage: str, mark: str, **state: Any) -> None:
        write_json(self._stages, self._read_stages() | {stage: {"fingerprint": mark, **state}})

    def _read_stages(self) -> dict[str, Any]:
        return dict(read_json(self._stages)) if self._stages.exists() else {}


def _numbers(written: str) -> list[int]:
    return [int(part) for part in written.split(".") if part.isdigit()]


def _difference(there: Config, here: Config) -> str:
    old, new = to_dict(there)["data"], to_dict(here)["data"]
    key = next(key for key in new if old.get(key) != new[key])
    return f"data.{key} is {old.get(key)!r} there, {new[key]!r} here"
