"""The logical axes of a LLaMA's parameters, and what a mesh asks of its shape."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding

from palr_jax.errors import UserError
from palr_jax.llm.attention import attention_on
from palr_jax.llm.compute import Compute, compute_on
from palr_jax.llm.config import LlamaConfig
from palr_jax.parallel.sharding import FSDP, TENSOR, Shards

# A parameter by its place in the model, for example ("layers", "q", "kernel_IO").
Place = tuple[str, ...]

# Of one layer; the axis of the layers stands before them.
_LINEARS = {
    "q": ("embed", "heads"),
    "k": ("embed", "kv_heads"),
    "v": ("embed", "kv_heads"),
    "o": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}
_TABLES = {"embedding_VD": ("vocab", "embed"), "head_VD": ("vocab", "embed")}


def axes_of(place: Place) -> tuple[str | None, ...]:
    """The logical axes of a parameter by its place in the model."""
    *_, module, name = ("", *place)
    if place[0] == "candidate_head":  # the head of a ranker: small, and whole on every device
        return ()
    if name in _TABLES:
        return _TABLES[name]
    if name == "weight_D":  # of a norm: too small to be divided
        return (None, None) if place[0] == "layers" else (None,)
    inputs, outputs = _LINEARS[module]
    match name:
        case "kernel_IO":
            return ("layer", inputs, outputs)
        case "lora_a_IR":
            return ("layer", _along(inputs), "lora_rank")
        case "lora_b_RO":
            return ("layer", "lora_rank", _along(outputs))
    raise KeyError(f"no logical axes for the parameter {'.'.join(place)}")


def _along(axis: str) -> str:
    return axis if axis == "embed" else "adapter"


def shardings(shards: Shards, params: Any) -> Any:
    """The same tree with the sharding of every parameter in its place."""
    return jax.tree.map_with_path(lambda keys, leaf: shards.of(*axes_of(_place(keys))), params)


def placement(shards: Shards) -> Callable[[Place, tuple[int, ...]], NamedSharding]:
    """Where each parameter goes, by its place in the model and its shape."""
    return lambda place, shape: shards.of(*axes_of(place))


def gathered(shards: Shards | None, params: Any, prefix: Place = ()) -> Any:
    """Parameters put together along fsdp, as the products of a layer want them.

    Said here, since a compiler that is left to choose may put the activations together instead.

    Args:
        shards: the mesh; None for a single device.
        params: a tree of parameters.
        prefix: where the tree stands in the model; of a layer it is ("layers",), and its
            parameters have no axis of layers.
    """
    if shards is None or shards.is_one_device:
        return params

    def gather(keys: Any, leaf: jax.Array) -> jax.Array:
        axes = axes_of((*prefix, *_place(keys)))
        return jax.lax.with_sharding_constraint(leaf, shards.gathered(*axes[-leaf.ndim :]))

    return jax.tree.map_with_path(gather, params)


def gathered_table(shards: Shards | None, table_VD: jax.Array) -> jax.Array:
    """The embedding or the LM head, put together along fsdp."""
    if shards is None or shards.is_one_device:
        return table_VD
    return jax.lax.with_sharding_constraint(table_VD, shards.gathered("vocab", "embed"))


def by_rows(shards: Shards | None, x_ND: jax.Array) -> jax.Array:
    """Activations divided by rows, and whole along everything else."""
    if shards is None or shards.is_one_device:
        return x_ND
    return jax.lax.with_sharding_constraint(x_ND, shards.of("batch", "width"))


def _place(keys: Any) -> Place:
    return tuple(str(key.key) for key in keys if hasattr(key, "key"))


def compute_over(shards: Shards) -> Compute:
    """How layers are computed on the devices of a mesh."""
    platform = shards.mesh.devices.flat[0].platform
    attention = attention_on(
        platform,
        None if shards.is_one_device else shards.mesh,
        shards.rules.batch,
        TENSOR if shards.mesh.shape[TENSOR] > 1 else None,
    )
    return compute_on(platform, attention)


def check_divides(config: LlamaConfig, shards: Shards) -> None:
    """Checks that every parameter divides evenly over a mesh.

    Raises:
        UserError: one does not; what and by how much is named.
    """
    fsdp, tensor = (shards.mesh.shape[axis] for axis in (FSDP, TENSOR))
    sizes = {
        "width": (config.dim, fsdp, "fsdp"),
        "vocabulary": (config.vocab_size, tensor, "tensor"),
        "query heads": (config.num_heads, tensor, "tensor"),
        "key and value heads": (config.num_kv_heads, tensor, "tensor"),
        "feed-forward": (config.ffn_dim, fsdp * tensor, "fsdp x tensor"),
        "all query heads together": (
            config.num_heads * config.head_dim,
            fsdp * tensor,
            "fsdp x tensor",
        ),
        "all key heads together": (
            config.num_kv_heads * config.head_dim,
            fsdp * tensor,
            "fsdp x tensor",
        ),
    }
    for name, (size, ways, axis) in sizes.items():
        if size % ways:
            raise UserError(
                f"mesh: the ranker's {name}, {size:,}, cannot be divided by {axis}, {ways}"
            )
