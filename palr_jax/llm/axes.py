"""The logical axes of a LLaMA's parameters, and the checks of its shape against a mesh."""

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding

from palr_jax.errors import UserError
from palr_jax.llm.config import LlamaConfig, Quantization
from palr_jax.llm.quantize import group_size
from palr_jax.parallel.sharding import FSDP, TENSOR, Shards
from palr_jax.trees import KeyPath, PyTree

# The path of a parameter in the model, for example ("layers", "q", "kernel_IO").
ParamPath = tuple[str, ...]

# The axes of one layer; stacked parameters have the axis of layers before them.
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


def axes_of(path: ParamPath) -> tuple[str | None, ...]:
    """The logical axes of a parameter."""
    *_, module, name = ("", *path)
    if path[0] == "candidate_head":  # a ranker's head: small, so replicated
        return ()
    if name in _TABLES:
        return _TABLES[name]
    if name == "weight_D":  # of a norm: small, so replicated
        return (None, None) if path[0] == "layers" else (None,)
    inputs, outputs = _LINEARS[module]
    match name:
        case "kernel_IO" | "scale_GO":
            return ("layer", inputs, outputs)
        case "lora_a_IR":
            return ("layer", _along(inputs), "lora_rank")
        case "lora_b_RO":
            return ("layer", "lora_rank", _along(outputs))
        case "bias_O":
            return ("layer", outputs)
    raise KeyError(f"no logical axes for the parameter {'.'.join(path)}")


def _along(axis: str) -> str:
    return axis if axis == "embed" else "adapter"


def shardings(shards: Shards, params: PyTree) -> PyTree:
    """The tree of the shardings of a tree of parameters."""
    return jax.tree.map_with_path(lambda keys, leaf: shards.of(*axes_of(_path_of(keys))), params)


def placement(shards: Shards) -> Callable[[ParamPath, tuple[int, ...]], NamedSharding]:
    """The sharding of each parameter, as a function of its path and shape."""
    return lambda path, shape: shards.of(*axes_of(path))


def gathered(shards: Shards | None, params: PyTree, prefix: ParamPath = ()) -> PyTree:
    """All-gathers parameters along fsdp, as the products of a layer need them.

    The constraint is explicit because XLA may otherwise all-gather the activations instead.

    Args:
        shards: the mesh; None on a single device.
        params: a tree of parameters.
        prefix: the path of the tree in the model; for one layer ("layers",), whose parameters have
            no axis of layers.
    """
    if shards is None or shards.is_one_device:
        return params

    def gather(keys: KeyPath, leaf: jax.Array) -> jax.Array:
        axes = axes_of((*prefix, *_path_of(keys)))
        return jax.lax.with_sharding_constraint(leaf, shards.gathered(*axes[-leaf.ndim :]))

    return jax.tree.map_with_path(gather, params)


def gathered_table(shards: Shards | None, table_VD: jax.Array) -> jax.Array:
    """The embedding or the LM head, all-gathered along fsdp."""
    if shards is None or shards.is_one_device:
        return table_VD
    return jax.lax.with_sharding_constraint(table_VD, shards.gathered("vocab", "embed"))


def by_rows(shards: Shards | None, x_ND: jax.Array) -> jax.Array:
    """Activations divided along rows only."""
    if shards is None or shards.is_one_device:
        return x_ND
    return jax.lax.with_sharding_constraint(x_ND, shards.of("batch", "width"))


def _path_of(keys: KeyPath) -> ParamPath:
    return tuple(str(key.key) for key in keys if hasattr(key, "key"))


def check_divides(config: LlamaConfig, shards: Shards, quantization: Quantization = "none") -> None:
    """Checks that every parameter divides evenly over a mesh.

    Raises:
        UserError: an axis does not; the message names it.
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
    if quantization != "none":
        sizes |= {
            f"{name} in groups of {group_size(inputs)} weights": (
                inputs // group_size(inputs), ways, axis
            )
            for name, inputs, ways, axis in (
                ("width", config.dim, fsdp, "fsdp"),
                ("heads", config.num_heads * config.head_dim, tensor, "tensor"),
                ("feed-forward", config.ffn_dim, tensor, "tensor"),
            )
        }  # fmt: skip
    for name, (size, ways, axis) in sizes.items():
        if size % ways:
            raise UserError(
                f"mesh: the ranker's {name}, {size:,}, cannot be divided by {axis}, {ways}"
            )
