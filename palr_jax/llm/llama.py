"""LLaMA in Flax NNX, with its layers stacked and scanned.

Shapes: B batch, T tokens, N = B · T flat tokens, S cache slots, D width, H query heads, G
key/value heads, K head size, F feed-forward width, L layers, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from palr_jax.llm.attention import attend, attend_cached
from palr_jax.llm.config import LlamaConfig, LoRAConfig, Remat, Target
from palr_jax.llm.kv_cache import KVCache, write
from palr_jax.llm.lora import Linear
from palr_jax.llm.rope import rope_angles, rotate

_REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layout:
    """Where every token of a row stands and who sees it.

    Attributes:
        position_BT: int32, the place that RoPE turns each token to.
        horizon_BT: int32, the index of the last token of the row that sees this one (-1 for
            padding): token i sees token j if and only if j <= i <= horizon[j].
    """

    position_BT: jax.Array
    horizon_BT: jax.Array


def causal_layout(length_B: jax.Array, width: int) -> Layout:
    """Rows of `length_B` tokens each, padded on the right to `width`."""
    index_BT = jnp.broadcast_to(jnp.arange(width), (len(length_B), width))
    horizon_BT = jnp.where(index_BT < length_B[:, None], width - 1, -1)
    return Layout(position_BT=index_BT, horizon_BT=horizon_BT)


def packed_layout(segment_BT: jax.Array, position_BT: jax.Array) -> Layout:
    """Rows of several examples end to end.

    Args:
        segment_BT: int32, the example each token belongs to, from 1; 0 is padding.
        position_BT: int32, the place of each token within its example.
    """
    index_T = jnp.arange(segment_BT.shape[1])
    ends_BT = segment_BT != jnp.roll(segment_BT, -1, axis=1)
    ends_BT = ends_BT.at[:, -1].set(True)
    end_BT = jnp.where(ends_BT, index_T, segment_BT.shape[1])
    horizon_BT = jax.lax.cummin(end_BT, axis=1, reverse=True)
    return Layout(position_BT, jnp.where(segment_BT > 0, horizon_BT, -1))


class RMSNorm(nnx.Module):
    """x / rms(x) · weight, computed in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        self.weight_D = nnx.Param(jnp.ones((dim,)))
        self.eps = eps

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        """[N, D] → [N, D], in the type of the input."""
        x32_ND = x_ND.astype(jnp.float32)
        scale_N1 = jax.lax.rsqrt(jnp.mean(x32_ND**2, axis=-1, keepdims=True) + self.eps)
        return (x32_ND * scale_N1 * self.weight_D[...]).astype(x_ND.dtype)


class Block(nnx.Module):
    """One layer: attention and a SwiGLU feed-forward, each behind a norm and a residual."""

    def __init__(self, config: LlamaConfig, lora: LoRAConfig | None, rngs: nnx.Rngs) -> None:
        D, F = config.dim, config.ffn_dim
        HK, GK = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def linear(name: Target, inputs: int, outputs: int) -> Linear:
            return Linear(name, inputs, outputs, lora, rngs)

        self.head_dim = config.head_dim
        self.attention_norm = RMSNorm(D, config.norm_eps)
        self.q = linear("q", D, HK)
        self.k = linear("k", D, GK)
        self.v = linear("v", D, GK)
        self.o = linear("o", HK, D)
        self.ffn_norm = RMSNorm(D, config.norm_eps)
        self.gate = linear("gate", D, F)
        self.up = linear("up", D, F)
        self.down = linear("down", F, D)

    def heads(
        self, x_ND: jax.Array, angle_BTK: jax.Array, dropout_key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """Queries [B, T, H, K], keys and values [B, T, G, K]; queries and keys are rotated."""
        B, T, _ = angle_BTK.shape
        h_ND = self.attention_norm(x_ND)
        q_BTHK = self.q(h_ND, dropout_key).reshape(B, T, -1, self.head_dim)
        k_BTGK = self.k(h_ND, dropout_key).reshape(B, T, -1, self.head_dim)
        v_BTGK = self.v(h_ND, dropout_key).reshape(B, T, -1, self.head_dim)
        return rotate(q_BTHK, angle_BTK), rotate(k_BTGK, angle_BTK), v_BTGK

    def finish(
        self, x_ND: jax.Array, attended_BTHK: jax.Array, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Adds what attention brought, then the feed-forward."""
        x_ND = x_ND + self.o(attended_BTHK.reshape(len(x_ND), -1), dropout_key)
        h_ND = self.ffn_norm(x_ND)
        gate_NF, up_NF = self.gate(h_ND, dropout_key), self.up(h_ND, dropout_key)
        return x_ND + self.down(jax.nn.silu(gate_NF) * up_NF, dropout_key)


class Llama(nnx.Module):
    """A LLaMA language model; `layers` is one Block whose parameters have a leading axis L."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs, lora: LoRAConfig | None = None) -> None:
        self.config = config
        shape = (config.vocab_size, config.dim)
        self.embedding_VD = nnx.Param(jax.random.normal(rngs.params(), shape) * config.dim**-0.5)
        self.layers = _stack(config, lora, rngs)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.head_VD = nnx.Param(jax.random.normal(rngs.params(), shape) * config.dim**-0.5)

    def __call__(self, tokens_BT: jax.Array, layout: Layout | None = None) -> jax.Array:
        """Logits of the next token at every place, [B, T, V], float32.

        Without a layout the rows are plain causal sequences without padding.
        """
        return self.logits(self.hidden(tokens_BT, layout))

    def hidden(
        self,
        tokens_BT: jax.Array,
        layout: Layout | None = None,
        dropout_key: jax.Array | None = None,
        remat: Remat = "none",
    ) -> jax.Array:
        """The normed output of the last layer, [B, T, D].

        With a key the inputs of the adapters are dropped out, as training wants it. `remat` says
        what a backward pass computes once more instead of keeping it.
        """
        return self._run(tokens_BT, layout, dropout_key, keep=False, remat=remat)[0]

    def prefill(self, tokens_BT: jax.Array, length_B: jax.Array) -> tuple[jax.Array, KVCache]:
        """Reads rows of `length_B` tokens, padded on the right.

        Returns:
            The hidden states [B, T, D] and a cache of T slots a row.
        """
        layout = causal_layout(length_B, tokens_BT.shape[1])
        hidden_BTD, (k_LBTGK, v_LBTGK) = self._run(tokens_BT, layout, None, keep=True)
        return hidden_BTD, KVCache(k_LBTGK, v_LBTGK, length_B)

    def extend(
        self, tokens_BT: jax.Array, count_B: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Reads up to T more tokens a row behind those in the cache.

        Args:
            tokens_BT: the new tokens, padded on the right.
            count_B: int32, how many of them count in each row (0 to T).
            cache: must have T free slots in every row.

        Returns:
            The hidden states [B, T, D] and the longer cache.
        """
        B, T = tokens_BT.shape
        position_BT = cache.length_B[:, None] + jnp.arange(T)
        angle_BTK = rope_angles(position_BT, self.config)
        graph, stacked = nnx.split(self.layers)

        def layer(x_ND: jax.Array, per_layer: tuple) -> tuple[jax.Array, tuple]:
            weights, k_BSGK, v_BSGK = per_layer
            block = nnx.merge(graph, weights)
            q_BTHK, k_BTGK, v_BTGK = block.heads(x_ND, angle_BTK)
            k_BSGK = write(k_BSGK, k_BTGK, cache.length_B)
            v_BSGK = write(v_BSGK, v_BTGK, cache.length_B)
            attended_BTHK = attend_cached(q_BTHK, k_BSGK, v_BSGK, cache.length_B)
            return block.finish(x_ND, attended_BTHK), (k_BSGK, v_BSGK)

        x_ND = self._embed(tokens_BT)
        x_ND, (k, v) = jax.lax.scan(layer, x_ND, (stacked, cache.k_LBSGK, cache.v_LBSGK))
        hidden_BTD = self.norm(x_ND).reshape(B, T, -1)
        return hidden_BTD, KVCache(k, v, cache.length_B + count_B)

    def logits(self, hidden_D: jax.Array) -> jax.Array:
        """Logits over the vocabulary for hidden states [..., D], [..., V] in float32."""
        return jnp.einsum(
            "...D,VD->...V", hidden_D, self.head_weights(), preferred_element_type=jnp.float32
        )

    def head_weights(self) -> jax.Array:
        """The LM head, [V, D]."""
        head = self.embedding_VD if self.config.tie_embeddings else self.head_VD
        return head[...]

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        return self.embedding_VD[...][tokens_BT.reshape(-1)]

    def _run(
        self,
        tokens_BT: jax.Array,
        layout: Layout | None,
        dropout_key: jax.Array | None,
        keep: bool,
        remat: Remat = "none",
    ) -> tuple[jax.Array, Any]:
        """Hidden states and, if they are to be kept, the keys and values of all layers."""
        B, T = tokens_BT.shape
        layout = layout or causal_layout(jnp.full(B, T), T)
        angle_BTK = rope_angles(layout.position_BT, self.config)
        graph, stacked = nnx.split(self.layers)

        def layer(x_ND: jax.Array, per_layer: tuple) -> tuple[jax.Array, tuple | None]:
            weights, key = per_layer
            block = nnx.merge(graph, weights)
            q_BTHK, k_BTGK, v_BTGK = block.heads(x_ND, angle_BTK, key)
            attended_BTHK = attend(q_BTHK, k_BTGK, v_BTGK, layout.horizon_BT)
            return block.finish(x_ND, attended_BTHK, key), (k_BTGK, v_BTGK) if keep else None

        keys = (
            None if dropout_key is None else jax.random.split(dropout_key, self.config.num_layers)
        )
        if remat != "none":
            # Inside a scan nothing can be merged with the forward pass, so no barrier is needed.
            layer = jax.checkpoint(layer, policy=_REMAT[remat], prevent_cse=False)
        x_ND, kept = jax.lax.scan(layer, self._embed(tokens_BT), (stacked, keys))
        return self.norm(x_ND).reshape(B, T, -1), kept


def _stack(config: LlamaConfig, lora: LoRAConfig | None, rngs: nnx.Rngs) -> Block:
    """L blocks as one, every parameter with a leading layer axis, so that a scan can run them."""

    def weights(key: jax.Array) -> nnx.State:
        return nnx.state(Block(config, lora, nnx.Rngs(params=key)))

    graph = nnx.graphdef(nnx.eval_shape(lambda: Block(config, lora, nnx.Rngs(params=0))))
    return nnx.merge(graph, jax.vmap(weights)(jax.random.split(rngs.params(), config.num_layers)))
