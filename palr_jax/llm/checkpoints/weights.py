"""Conversion between the parameters of a Llama and tensors by Hugging Face name, one at a time."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from palr_jax.errors import UserError
from palr_jax.llm.axes import ParamPath, placement
from palr_jax.llm.checkpoints.stored import Stored
from palr_jax.llm.compute import Compute, compute_over
from palr_jax.llm.config import TARGETS, Family, LlamaConfig, LoRAConfig, Quantization, Target
from palr_jax.llm.llama import Llama
from palr_jax.llm.lora import Linear
from palr_jax.llm.quantize import quantize, qwix
from palr_jax.parallel.sharding import Shards
from palr_jax.trees import PyTree, State, split_off

_Axis = TypeVar("_Axis")

# The sharding of a parameter, as a function of its path and shape.
Placement = Callable[[ParamPath, tuple[int, ...]], Sharding]

LINEARS: dict[Target, str] = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NORMS = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
_TOP: dict[ParamPath, str] = {
    ("embedding_VD",): "model.embed_tokens.weight",
    ("norm", "weight_D"): "model.norm.weight",
    ("head_VD",): "lm_head.weight",
}
_FAMILIES: dict[Family, str] = {
    "llama": "LLaMA",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}
# Tensors to ignore: RoPE tables of old checkpoints, and a head that is tied to the embedding.
_IGNORED = ("rotary_emb.inv_freq", "lm_head.weight")


def one_device(path: ParamPath, shape: tuple[int, ...]) -> Sharding:
    """The first device, for every parameter."""
    return SingleDeviceSharding(jax.devices()[0])


def tensor_name(path: ParamPath, layer: int = 0) -> str:
    """The Hugging Face name of a parameter."""
    if path[0] != "layers":
        return _TOP[path]
    kind = "bias" if path[-1] == "bias_O" else "weight"
    return f"model.layers.{layer}.{(LINEARS | _NORMS)[path[1]]}.{kind}"


def base_parameters(config: LlamaConfig) -> dict[ParamPath, tuple[int, ...]]:
    """The shape of every parameter but the adapters; layers are stacked on a leading axis."""
    model = nnx.eval_shape(lambda: Llama(config, nnx.Rngs(params=0)))
    return {tuple(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}


def check_tensors(config: LlamaConfig, tensors: Mapping[str, Stored], where: str) -> None:
    """Checks that a checkpoint holds exactly the tensors of `config`.

    Raises:
        UserError: a tensor is missing, has the wrong shape, or is unknown (the bias of a LLaMA,
            for example).
    """
    known = set()
    for path, shape in base_parameters(config).items():
        stacked = path[0] == "layers"
        for layer in range(shape[0] if stacked else 1):
            name = tensor_name(path, layer)
            known.add(name)
            expected = _on_disk(path, shape[1:] if stacked else shape)
            if name not in tensors:
                raise UserError(f"{where}: tensor {name} is missing")
            if tensors[name].shape != expected:
                raise UserError(
                    f"{where}: tensor {name} has shape {tensors[name].shape}, "
                    f"the config needs {expected}"
                )
    plain = _FAMILIES[config.family]
    for name in tensors:
        if name not in known and not name.endswith(_IGNORED):
            raise UserError(f"{where}: tensor {name} is not part of a plain {plain}")


def assemble(
    config: LlamaConfig,
    tensors: Mapping[str, Stored],
    where: str,
    dtype: jnp.dtype | None,
    placement: Placement = one_device,
) -> Iterator[tuple[ParamPath, jax.Array]]:
    """Yields the array of each parameter, read tensor by tensor into its shards.

    In addition to the arrays themselves, at most one tensor is in memory; two to compare a head
    that should be the embedding with it.

    Args:
        config: the shape of the model.
        tensors: the checkpoint, by Hugging Face names.
        where: names the checkpoint in errors.
        dtype: dtype of all parameters; None keeps the stored dtypes.
        placement: the sharding of each parameter.

    Raises:
        UserError: as `check_tensors`, or a head that should be the embedding has other values.
    """
    check_tensors(config, tensors, where)
    if config.tie_embeddings:
        _check_head(tensors, where)
    for path, shape in base_parameters(config).items():
        sharding = placement(path, shape)
        if path[0] != "layers":
            value = _put(tensors[tensor_name(path)], sharding)
            yield path, value.astype(dtype or value.dtype)
            continue
        parts = [tensors[tensor_name(path, layer)] for layer in range(shape[0])]
        kind = dtype or jnp.result_type(*{part.dtype for part in parts})
        stack = jnp.zeros(shape, kind, device=sharding)
        for layer, part in enumerate(parts):
            value = _put(part, _one_layer(path, sharding))
            # Without blocking, the host would read ahead and accumulate layers in memory.
            stack = _set_layer(stack, value, layer).block_until_ready()
        yield path, stack
        del stack  # the caller may have replaced it by a smaller one


def collect(
    parameters: Iterator[tuple[ParamPath, jax.Array]],
    quantization: Quantization = "none",
    placement: Placement = one_device,
) -> dict[ParamPath, jax.Array]:
    """The arrays of all parameters; the kernels of linears are quantised one after the other.

    Args:
        parameters: yields them.
        quantization: how the kernels are stored.
        placement: the sharding of each parameter.

    Raises:
        UserError: qwix is not installed.
    """
    if quantization != "none":
        qwix()  # before the first parameter is read
    arrays: dict[ParamPath, jax.Array] = {}
    for path, array in parameters:
        if quantization == "none" or path[-1] != "kernel_IO":
            arrays[path] = array
            continue
        scale = (*path[:-1], "scale_GO")
        at = tuple(placement(one, array.shape) for one in (path, scale))
        made = jax.jit(quantize, static_argnums=(1, 2), out_shardings=at)
        arrays[path], arrays[scale] = jax.block_until_ready(made(array, quantization, array.dtype))
        del array  # else it would be in memory beside the next one
    return arrays


def abstract(
    config: LlamaConfig,
    lora: LoRAConfig | None,
    compute: Compute | None,
    quantization: Quantization,
    dtype: DTypeLike = jnp.float32,
) -> Llama:
    """A Llama of shapes, in float32; quantised kernels have scales of `dtype`."""

    def model() -> Llama:
        made = Llama(config, nnx.Rngs(params=0), lora, compute)
        quantize_linears(made, quantization, dtype)
        return made

    return nnx.eval_shape(model)


def quantize_linears(model: Llama, quantization: Quantization, dtype: DTypeLike) -> None:
    """Quantises the linears of a model in place; scales have `dtype`.

    Raises:
        UserError: qwix is not installed.
    """
    if quantization != "none":
        for name in TARGETS:
            getattr(model.layers, name).quantize(quantization, dtype)


def _check_head(tensors: Mapping[str, Stored], where: str) -> None:
    """Refuses a tied head with values of its own, which transformers uses since its version 5."""
    embedding, head = tensors[_TOP[("embedding_VD",)]], tensors.get(_TOP[("head_VD",)])
    if head is not None and not np.array_equal(embedding.read(), head.read()):
        raise UserError(
            f"{where}: lm_head.weight is not the embedding, though the config ties them: set "
            "tie_word_embeddings to false if the head is to be used, else leave that tensor out"
        )


def build(
    config: LlamaConfig,
    arrays: Mapping[ParamPath, jax.Array],
    lora: LoRAConfig | None = None,
    seed: int = 0,
    shards: Shards | None = None,
    quantization: Quantization = "none",
) -> Llama:
    """A Llama with the given parameters.

    Args:
        config: the shape of the model.
        arrays: all parameters but the adapters, in their shards.
        lora: adapters to add, in float32; a new adapter changes nothing.
        seed: the adapters are drawn from it.
        shards: the mesh that the parameters are divided over; None for the first device.
        quantization: how `collect` has quantised the kernels.
    """
    compute = None if shards is None else compute_over(shards)
    model = abstract(config, lora, compute, quantization)
    graph, adapters, base = split_off(model, nnx.LoRAParam)
    filled = nnx.from_flat_state(
        [
            (path, leaf.replace(arrays[tuple(map(str, path))]))
            for path, leaf in nnx.to_flat_state(base)
        ]
    )
    if lora is None:
        return nnx.merge(graph, filled)

    # Under jit the random base weights are never computed: only the adapters are returned.
    def fresh() -> State:
        return nnx.state(Llama(config, nnx.Rngs(params=seed), lora), nnx.LoRAParam)

    sharding_of = one_device if shards is None else placement(shards)
    drawn = jax.jit(fresh, out_shardings=_shardings(adapters, sharding_of))()
    return nnx.merge(graph, drawn, filled)


def draw(config: LlamaConfig, lora: LoRAConfig | None, seed: int, shards: Shards) -> Llama:
    """A Llama with random parameters, drawn directly into their shards."""

    def fresh() -> State:
        return nnx.state(Llama(config, nnx.Rngs(params=seed), lora))

    graph, params = nnx.split(abstract(config, lora, compute_over(shards), "none"))
    out_shardings = _shardings(params, placement(shards))
    return nnx.merge(graph, jax.jit(fresh, out_shardings=out_shardings)())


def blank(config: LlamaConfig, shards: Shards) -> Llama:
    """A Llama whose parameters are 0, to be read from a checkpoint; it compiles nothing."""
    graph, params = nnx.split(abstract(config, None, compute_over(shards), "none"))
    zeros = jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: np.zeros(leaf.shape, leaf.dtype)[index]
        ),
        params,
        _shardings(params, placement(shards)),
    )
    return nnx.merge(graph, zeros)


def _shardings(params: State, placement: Placement) -> PyTree:
    """The tree of the shardings of all parameters."""
    return jax.tree.map_with_path(
        lambda keys, leaf: placement(tuple(str(key.key) for key in keys[:-1]), leaf.shape), params
    )


def disassemble(model: Llama) -> Iterator[tuple[str, Stored]]:
    """Yields every tensor of a model by its Hugging Face name, with the adapters merged in."""
    for path, shape in base_parameters(model.config).items():
        parameter = _parameter(model, path)
        is_kernel = path[-1] == "kernel_IO"
        dtype = np.dtype((_linear(model, path) if is_kernel else parameter).dtype)
        if path[0] != "layers":
            yield tensor_name(path), Stored(shape, dtype, partial(np.asarray, parameter[...]))
            continue
        for layer in range(shape[0]):
            read = partial(_read_layer, model, path, layer)
            yield tensor_name(path, layer), Stored(_on_disk(path, shape[1:]), dtype, read)


def _parameter(model: Llama, path: ParamPath) -> nnx.Variable[jax.Array]:
    value: PyTree = model
    for name in path:
        value = getattr(value, name)
    return value


def _read_layer(model: Llama, path: ParamPath, layer: int) -> np.ndarray:
    if path[-1] == "kernel_IO":
        return np.asarray(_linear(model, path).merged_kernel(layer)).T
    return np.asarray(_parameter(model, path)[...][layer])


def _linear(model: Llama, path: ParamPath) -> Linear:
    linear: Linear = getattr(model.layers, path[1])
    return linear


def _on_disk(path: ParamPath, axes: tuple[_Axis, ...]) -> tuple[_Axis, ...]:
    """The axes of a parameter in PyTorch's order: linears are [out, in]."""
    return axes[::-1] if path[-1] == "kernel_IO" else axes


def _put(stored: Stored, sharding: Sharding) -> jax.Array:
    value = stored.read()
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _one_layer(path: ParamPath, sharding: Sharding) -> Sharding:
    """The sharding of one layer of a stacked parameter, with the axes in the order on disk."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    axes = (*sharding.spec, None, None)[1 : 3 if path[-1] == "kernel_IO" else 2]
    return NamedSharding(sharding.mesh, PartitionSpec(*_on_disk(path, axes)))


@partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, value: jax.Array, layer: int) -> jax.Array:
    """Transposes and converts on the device; on the host that would take two more copies."""
    value = value.T if value.ndim == 2 else value
    return jax.lax.dynamic_update_index_in_dim(stack, value.astype(stack.dtype), layer, axis=0)
