"""Parameters of a Llama ↔ tensors by their Hugging Face names, one at a time.

Shapes: L layers, I inputs, O outputs, V vocabulary, D width.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from palr_jax.errors import UserError
from palr_jax.llm.axes import Place, compute_over, placement
from palr_jax.llm.config import LlamaConfig, LoRAConfig, Target
from palr_jax.llm.llama import Llama
from palr_jax.llm.stored import Stored
from palr_jax.sharding import Shards

# Which devices hold which part of a parameter, by its place and its shape.
Placement = Callable[[Place, tuple[int, ...]], Sharding]

LINEARS: dict[Target, str] = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_TOP: dict[Place, str] = {
    ("embedding_VD",): "model.embed_tokens.weight",
    ("norm", "weight_D"): "model.norm.weight",
    ("head_VD",): "lm_head.weight",
}
# Tables that old checkpoints hold beside their weights, and a head that is the embedding.
_NEEDLESS = ("rotary_emb.inv_freq", "lm_head.weight")


def one_device(place: Place, shape: tuple[int, ...]) -> Sharding:
    """Everything on the first device."""
    return SingleDeviceSharding(jax.devices()[0])


def tensor_name(place: Place, layer: int = 0) -> str:
    """The Hugging Face name of a parameter."""
    if place[0] != "layers":
        return _TOP[place]
    return f"model.layers.{layer}.{(LINEARS | _NORMS)[place[1]]}.weight"


def base_parameters(config: LlamaConfig) -> dict[Place, tuple[int, ...]]:
    """The shape of every parameter without adapters; layers are stacked on a leading axis."""
    model = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(params=0)))
    return {place: leaf.shape for place, leaf in nnx.to_flat_state(nnx.state(model))}


def check_tensors(config: LlamaConfig, tensors: Mapping[str, Stored], where: str) -> None:
    """Checks that a checkpoint holds the tensors of `config` and nothing else.

    Raises:
        UserError: a tensor is missing, of another shape, or of no use (a bias, for example).
    """
    known = set()
    for place, shape in base_parameters(config).items():
        stacked = place[0] == "layers"
        for layer in range(shape[0] if stacked else 1):
            name = tensor_name(place, layer)
            known.add(name)
            expected = _on_disk(place, shape[1:] if stacked else shape)
            if name not in tensors:
                raise UserError(f"{where}: tensor {name} is missing")
            if tensors[name].shape != expected:
                raise UserError(
                    f"{where}: tensor {name} has shape {tensors[name].shape}, "
                    f"the config asks for {expected}"
                )
    for name in tensors:
        if name not in known and not name.endswith(_NEEDLESS):
            raise UserError(f"{where}: tensor {name} has no place in a plain LLaMA")


def assemble(
    config: LlamaConfig,
    tensors: Mapping[str, Stored],
    where: str,
    dtype: jnp.dtype | None,
    placement: Placement = one_device,
) -> dict[Place, jax.Array]:
    """The arrays of all parameters, filled tensor by tensor in their places on the devices.

    Beside the arrays themselves one tensor is in memory at a time.

    Args:
        config: the shape of the model.
        tensors: the checkpoint, by Hugging Face names.
        where: stands in errors.
        dtype: of all parameters; None keeps each as it is stored.
        placement: which device holds what.

    Raises:
        UserError: as `check_tensors`.
    """
    check_tensors(config, tensors, where)
    arrays = {}
    for place, shape in base_parameters(config).items():
        sharding = placement(place, shape)
        if place[0] != "layers":
            value = _put(tensors[tensor_name(place)], sharding)
            arrays[place] = value.astype(dtype or value.dtype)
            continue
        parts = [tensors[tensor_name(place, layer)] for layer in range(shape[0])]
        kind = dtype or jnp.result_type(*{part.dtype for part in parts})
        stack = jnp.zeros(shape, kind, device=sharding)
        for layer, part in enumerate(parts):
            value = _put(part, _one_layer(place, sharding))
            # Without the wait the host would read on and pile up layers before the device.
            stack = _set_layer(stack, value, layer).block_until_ready()
        arrays[place] = stack
    return arrays


def build(
    config: LlamaConfig,
    arrays: Mapping[Place, jax.Array],
    lora: LoRAConfig | None = None,
    seed: int = 0,
    placement: Placement = one_device,
) -> Llama:
    """A Llama of these parameters; its adapters are drawn from `seed` in float32."""
    abstract = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(params=0), lora))
    graph, adapters, base = nnx.split(abstract, nnx.LoRAParam, ...)
    filled = nnx.from_flat_state(
        [(place, leaf.replace(arrays[place])) for place, leaf in nnx.to_flat_state(base)]
    )
    if lora is None:
        return nnx.merge(graph, filled)

    # Under jit the random base that stands beside the adapters is never computed.
    def fresh() -> nnx.State:
        return nnx.state(Llama(config, nnx.Rngs(params=seed), lora), nnx.LoRAParam)

    drawn = jax.jit(fresh, out_shardings=_placed(adapters, placement))()
    return nnx.merge(graph, drawn, filled)


def draw(config: LlamaConfig, lora: LoRAConfig | None, seed: int, shards: Shards) -> Llama:
    """A Llama of random parameters, each drawn in its place on the devices."""

    def fresh() -> nnx.State:
        return nnx.state(Llama(config, nnx.Rngs(params=seed), lora))

    graph, abstract = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(params=0), lora)))
    places = _placed(abstract, placement(shards))
    model = nnx.merge(graph, jax.jit(fresh, out_shardings=places)())
    model.compute = compute_over(shards)
    return model


def blank(config: LlamaConfig, shards: Shards) -> Llama:
    """A Llama whose parameters are 0, to be read from a checkpoint: nothing is compiled for it."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(params=0))))
    zeros = jax.tree.map(
        lambda leaf, place: jax.make_array_from_callback(
            leaf.shape, place, lambda index: np.zeros(leaf.shape, leaf.dtype)[index]
        ),
        abstract,
        _placed(abstract, placement(shards)),
    )
    model = nnx.merge(graph, zeros)
    model.compute = compute_over(shards)
    return model


def _placed(abstract: nnx.State, placement: Placement) -> Any:
    """The same tree with the sharding of every parameter in its place."""
    return jax.tree.map_with_path(
        lambda keys, leaf: placement(tuple(str(key.key) for key in keys[:-1]), leaf.shape), abstract
    )


def disassemble(model: Llama) -> Iterator[tuple[str, Stored]]:
    """Every tensor of a model by its Hugging Face name, adapters merged into the weights."""
    for place, shape in base_parameters(model.config).items():
        parameter = _parameter(model, place)
        dtype = np.dtype(parameter.dtype)
        if place[0] != "layers":
            yield tensor_name(place), Stored(shape, dtype, partial(np.asarray, parameter[...]))
            continue
        for layer in range(shape[0]):
            read = partial(_read_layer, model, place, layer)
            yield tensor_name(place, layer), Stored(_on_disk(place, shape[1:]), dtype, read)


def _parameter(model: Llama, place: Place) -> Any:
    value: Any = model
    for name in place:
        value = getattr(value, name)
    return value


def _read_layer(model: Llama, place: Place, layer: int) -> np.ndarray:
    if place[1] in LINEARS:
        return np.asarray(getattr(model.layers, place[1]).merged_kernel(layer)).T
    return np.asarray(_parameter(model, place)[...][layer])


def _on_disk(place: Place, axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """The axes of a parameter as torch has them: linears are [out, in]."""
    return axes[::-1] if place[-1] == "kernel_IO" else axes


def _put(stored: Stored, sharding: Sharding) -> jax.Array:
    value = stored.read()
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _one_layer(place: Place, sharding: Sharding) -> Sharding:
    """Where one layer of a stacked parameter goes as it comes from the disk."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    axes = (*sharding.spec, None, None)[1 : 3 if place[-1] == "kernel_IO" else 2]
    return NamedSharding(sharding.mesh, PartitionSpec(*_on_disk(place, axes)))


@partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, value: jax.Array, layer: int) -> jax.Array:
    """Turns and converts on the device: on the host this would take two more copies."""
    value = value.T if value.ndim == 2 else value
    return jax.lax.dynamic_update_index_in_dim(stack, value.astype(stack.dtype), layer, axis=0)
