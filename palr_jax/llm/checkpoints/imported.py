"""Imported checkpoints: the weights as an Orbax checkpoint, `config.json`, the tokenizer.

They load directly into their shards; each host reads only its own part.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp

from palr_jax.errors import UserError
from palr_jax.io.files import creating
from palr_jax.io.paths import absolute
from palr_jax.llm.axes import ParamPath
from palr_jax.llm.checkpoints import huggingface, weights
from palr_jax.llm.config import LlamaConfig
from palr_jax.llm.tokenizers.tokenizer import Tokenizer

_WEIGHTS = "weights"
# Arrays are stored in chunks of this size, so that a host reads little more than its own part.
_CHUNK_BYTES = 64_000_000


def is_imported(folder: Path) -> bool:
    """Whether a folder was written by `write`."""
    return (folder / _WEIGHTS).is_dir()


def write(
    folder: Path,
    config: LlamaConfig,
    arrays: dict[ParamPath, jax.Array],
    tokenizer: Tokenizer | None,
) -> None:
    """Writes an imported checkpoint through `creating`: complete, or not at all.

    Raises:
        UserError: the folder is not empty.
    """
    with creating(folder) as temporary:
        context = ocp.Context()
        context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
        with context:
            ocp.save(temporary / _WEIGHTS, unflatten_dict(arrays))
        huggingface.write_tokenizer(tokenizer, temporary)
        huggingface.write_config(config, tokenizer, temporary)


def read_imported(
    folder: Path, config: LlamaConfig, dtype: jnp.dtype | None, placement: weights.Placement
) -> Iterator[tuple[ParamPath, jax.Array]]:
    """Yields each parameter of a model; `dtype` None keeps the stored dtypes.

    One array at a time is read: each is in memory twice while it is loaded.

    Raises:
        UserError: the checkpoint is damaged.
    """
    path = absolute(folder / _WEIGHTS)
    try:
        stored: dict[ParamPath, Any] = flatten_dict(ocp.metadata(path).metadata)
        like = {
            param: jax.ShapeDtypeStruct(
                shape, dtype or stored[param].dtype, sharding=placement(param, shape)
            )
            for param, shape in weights.base_parameters(config).items()
        }
        for param, abstract in like.items():
            if tuple(stored[param].shape) != abstract.shape:
                raise ValueError(f"{'.'.join(param)} has shape {tuple(stored[param].shape)}")
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        for param, abstract in like.items():
            with context:
                loaded = ocp.load(path, unflatten_dict({param: abstract}))
            yield from flatten_dict(loaded).items()
            del loaded  # the caller may have replaced it by a smaller one
    except Exception as error:  # Orbax, TensorStore and the file system each raise their own
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:160]
        raise UserError(
            f"{folder} cannot be read ({reason}): import the weights again, to another folder"
        ) from error
