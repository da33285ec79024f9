"""What inference needs of an evaluated run, restored from its directory."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import jax

from palr_jax.config import Config, Variant
from palr_jax.data import prepare as preparing
from palr_jax.data.prepare import Prepared
from palr_jax.decoding.score_plan import Sizes
from palr_jax.errors import UserError
from palr_jax.evaluation.fusion import Weights
from palr_jax.parallel.config import MeshConfig
from palr_jax.ranking.ranker import Ranker, load_ranker
from palr_jax.retrieval.interface import Retriever
from palr_jax.retrieval.models import MODELS
from palr_jax.run_directory import RunDirectory
from palr_jax.training.trained import trained_step


@dataclass(frozen=True)
class FinishedRun:
    """The parts of a run that recommend.

    Attributes:
        config: of the run, with the mesh that it was loaded on.
        prepared: its data.
        retriever: its trained retriever.
        ranker: PALR_v2.
        weights: of the fusion.
        step: of the ranker's training.
    """

    config: Config
    prepared: Prepared
    retriever: Retriever
    ranker: Ranker
    weights: Weights
    step: int


def load_run(path: Path, mesh: MeshConfig) -> FinishedRun:
    """Restores a run from its directory, or from one of the checkpoints in it.

    Args:
        path: a run directory, or `runs/NAME/ranker/PALR_v2/STEP`.
        mesh: the devices of this process to rank on.

    Raises:
        UserError: it is no run directory, it is not evaluated yet, or a checkpoint in it cannot be
            read.
    """
    directory, step = _find(path)
    config = replace(directory.read_config(), mesh=mesh)
    if "PALR_v2" not in config.ranker.variants:
        raise UserError(f"{path} has no PALR_v2: add it to ranker.variants and run again")
    if not directory.fusion.exists():
        raise UserError(f"{path} is not evaluated: run `palr run` with its config first")
    model, variant = config.retriever.model, directory.ranker / "PALR_v2"
    directory.stages.check(
        [directory.data, directory.retriever(model), directory.fusion, variant,
         variant.with_name("PALR_v2.json"), directory.vectors, *directory.token_files()]
    )  # fmt: skip
    prepared = preparing.load(directory.data)
    retriever = MODELS[model](config.retriever, prepared.split.num_items, config.seed)
    retriever.load(directory.retriever(model))
    ranker, step = _load_ranker(config, directory, step)
    if len(ranker.items) != len(prepared.catalog):
        raise UserError(
            f"{directory.path} holds files of two runs ({directory.items} knows "
            f"{len(ranker.items)} items, the catalog {len(prepared.catalog)}): run `palr run` "
            "with its config"
        )
    # Few sizes, because each is compiled.
    ranker = replace(ranker, fit=Sizes.rounded)
    return FinishedRun(config, prepared, retriever, ranker, directory.read_weights(), step)


def _load_ranker(config: Config, directory: RunDirectory, step: int | None) -> tuple[Ranker, int]:
    """The ranker of a step, by default that of `trained_step`, and its step."""
    devices = jax.local_devices()[: config.mesh.devices]
    if step is not None:
        return load_ranker(config, directory, "PALR_v2", step, devices), step
    folder = directory.ranker / "PALR_v2"
    while True:
        step = trained_step(folder)
        try:
            return load_ranker(config, directory, "PALR_v2", step, devices), step
        except UserError:
            # A training that goes on may be replacing this step by a newer one.
            if trained_step(folder) == step:
                raise


def _find(path: Path) -> tuple[RunDirectory, int | None]:
    """The run that a path names, and the step of its ranker if it names a checkpoint."""
    if path.name.isdigit() and path.parent.name in get_args(Variant):
        if path.parent.name != "PALR_v2":
            raise UserError(f"{path} is no checkpoint of PALR_v2, which ranks candidates")
        if not path.exists():
            raise UserError(f"{path} is missing: name a step that is there")
        return RunDirectory(path.parents[2]), int(path.name)
    return RunDirectory(path), None
