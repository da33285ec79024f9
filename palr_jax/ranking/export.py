"""`palr export`: the ranker of a run, or any checkpoint, in a form that other tools read."""

from pathlib import Path

from palr_jax.config import RankerConfig, Variant
from palr_jax.decoding.candidate_head import head_of
from palr_jax.errors import UserError
from palr_jax.io.files import require_new
from palr_jax.llm.checkpoints.export import export_adapter, export_model
from palr_jax.llm.checkpoints.loading import load, quantization_error
from palr_jax.parallel.config import MeshConfig
from palr_jax.parallel.sharding import Shards, make_mesh
from palr_jax.ranking.base_model import make_model, with_head
from palr_jax.run_directory import RunDirectory
from palr_jax.training.trained import load_trained


def export_run(path: Path, variant: Variant | None, adapter: bool, folder: Path) -> str:
    """Writes a tuned ranker as a Hugging Face folder, or its adapter as a PEFT folder.

    Args:
        path: the run directory.
        variant: which of its rankers; by default the last one of its config.
        adapter: the adapter alone, without the weights beneath it.
        folder: gets the files; must not exist yet.

    Returns:
        What was written, in a line.

    Raises:
        UserError: the run has no such ranker, or it is not tuned yet; it has no adapter, or one
            for weights that nobody else has; the folder holds something already.
    """
    require_new(folder)
    run = RunDirectory(path)
    config = run.read_config()
    variant = variant or config.ranker.variants[-1]
    if variant not in config.ranker.variants:
        raise UserError(f"{path} has no {variant}: it has {', '.join(config.ranker.variants)}")
    tokenizer, _ = run.read_tokens()
    shards = Shards(make_mesh(MeshConfig()))
    length, seed = config.finetune.length, config.seed
    model = make_model(config.ranker, tokenizer.vocab_size, length, seed, shards)
    if variant == "PALR_v2":
        model = with_head(model, config, run.read_vectors(config), shards)
    load_trained(model, run.ranker / variant)
    left = "; its prior and item vectors are not exported" if head_of(model) is not None else ""
    if adapter:
        export_adapter(model, config.ranker.lora, config.ranker.weights, tokenizer, folder)
        return f"{folder}: the adapter of {variant}, for the weights {config.ranker.weights}{left}"
    export_model(model, tokenizer, folder)
    return f"{folder}: {variant} with its adapters merged{left}{_cost(config.ranker)}"


def _cost(config: RankerConfig) -> str:
    """What the merged weights lost because their base was quantised."""
    if config.quantize == "none" or config.weights is None:
        return ""
    mean, largest = quantization_error(config.weights, config.quantize, config.dtype)
    return (
        f"; the base was quantised to {config.quantize}: the weights of its linears are off by "
        f"{mean:.2%} (root mean square), at most {largest:.2g}"
    )


def export_weights(path: Path, folder: Path) -> str:
    """Writes a checkpoint of any kind as a Hugging Face folder, every value as it is.

    Returns:
        What was written, in a line.

    Raises:
        UserError: the checkpoint cannot be read, or the folder holds something already.
    """
    require_new(folder)
    model, tokenizer = load(path, dtype=None)
    export_model(model, tokenizer, folder)
    return f"{folder}: the weights of {path}"
