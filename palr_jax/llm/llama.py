"""LLaMA, Mistral, Qwen2 and Qwen3 in Flax NNX, with their layers stacked and scanned.

Shapes: N = B · T flat tokens, S cache slots, H query heads, G key/value heads, K head size, F
feed-forward width.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from palr_jax.dropout import drop_out
from palr_jax.errors import UserError
from palr_jax.llm.attention import attend, attend_cached
from palr_jax.llm.axes import by_rows, gathered, gathered_table
from palr_jax.llm.bits import from_bits, kept, to_bits
from palr_jax.llm.compute import Compute, compute_on
from palr_jax.llm.config import LlamaConfig, LoRAConfig, Remat, Target
from palr_jax.llm.kv_cache import KVCache, New, View, append, to_slots, view_in_order
from palr_jax.llm.lora import Linear
from palr_jax.llm.prefix import NO_PREFIX, Prefix
from palr_jax.llm.product import product
from palr_jax.llm.rope import rope_turns, rotate
from palr_jax.trees import PyTree, State

# What is saved for the backward pass; everything else is recomputed.
_REMAT = {
    "dots": jax.checkpoint_policies.save_only_these_names("product", "attended"),
    "full": jax.checkpoint_policies.nothing_saveable,
}
# The inputs of the linears of a layer; linears with the same input share its dropout mask.
_INPUTS = ("qkv", "o", "gate and up", "down")

# Cosine and sine of RoPE's rotations.
Turns = tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenLayout:
    """The position and visibility of every token of a row.

    Attributes:
        position_BT: int32, RoPE position of each token.
        horizon_BT: int32, the index of the last token of the row that sees this one (-1 at
            padding): token i sees token j if and only if j <= i <= horizon[j].
        branches: whether rows contain tries; if False, they hold whole sequences only.
    """

    position_BT: jax.Array
    horizon_BT: jax.Array
    branches: bool = field(default=False, metadata={"static": True})


def causal_layout(length_B: jax.Array, width: int) -> TokenLayout:
    """Rows of `length_B` tokens each, padded on the right to `width`."""
    index_BT = jnp.broadcast_to(jnp.arange(width), (len(length_B), width))
    horizon_BT = jnp.where(index_BT < length_B[:, None], width - 1, -1)
    return TokenLayout(position_BT=index_BT, horizon_BT=horizon_BT)


def packed_layout(segment_BT: jax.Array, position_BT: jax.Array) -> TokenLayout:
    """Rows of several concatenated examples.

    Args:
        segment_BT: int32, the example each token belongs to, from 1; 0 is padding.
        position_BT: int32, the position of each token within its example.
    """
    index_T = jnp.arange(segment_BT.shape[1])
    ends_BT = segment_BT != jnp.roll(segment_BT, -1, axis=1)
    ends_BT = ends_BT.at[:, -1].set(True)
    end_BT = jnp.where(ends_BT, index_T, segment_BT.shape[1])
    horizon_BT = jax.lax.cummin(end_BT, axis=1, reverse=True)
    return TokenLayout(position_BT, jnp.where(segment_BT > 0, horizon_BT, -1))


class RMSNorm(nnx.Module):
    """x / rms(x) · weight, computed in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        self.weight_D = nnx.Param(jnp.ones((dim,)))
        self.eps = eps

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        """[..., D] → [..., D] in the same dtype."""
        wide_ND = x_ND.astype(jnp.float32)
        scale_N1 = jax.lax.rsqrt(jnp.mean(wide_ND**2, axis=-1, keepdims=True) + self.eps)
        return (wide_ND * scale_N1 * self.weight_D[...]).astype(x_ND.dtype)


class DecoderLayer(nnx.Module):
    """One layer: attention and a SwiGLU feed-forward, each with a pre-norm and a residual.

    Between products all activations have the dtype of the residual stream (see `Compute`); keys,
    values and what is saved for the backward pass have the dtype of the weights.
    """

    def __init__(self, config: LlamaConfig, lora: LoRAConfig | None, rngs: nnx.Rngs) -> None:
        D, F = config.dim, config.ffn_dim
        HK, GK = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def linear(name: Target, inputs: int, outputs: int) -> Linear:
            bias = config.qkv_bias and name in ("q", "k", "v")
            return Linear(name, inputs, outputs, lora, rngs, bias)

        self.head_dim = config.head_dim
        self.dropout = lora.dropout if lora else 0.0
        self.attention_norm = RMSNorm(D, config.norm_eps)
        self.q = linear("q", D, HK)
        self.k = linear("k", D, GK)
        self.v = linear("v", D, GK)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.o = linear("o", HK, D)
        self.ffn_norm = RMSNorm(D, config.norm_eps)
        self.gate = linear("gate", D, F)
        self.up = linear("up", D, F)
        self.down = linear("down", F, D)

    def heads(
        self,
        x_ND: jax.Array,
        turns_BTK: Turns,
        dropout_key: jax.Array | None = None,
        prefix: Prefix = NO_PREFIX,
    ) -> tuple[jax.Array, ...]:
        """Queries [B, T, H, K], keys and values [B, T, G, K]; queries and keys are rotated.

        All have the dtype of the weights.
        """
        B = len(turns_BTK[0])

        def rows(x_NO: jax.Array) -> jax.Array:
            return prefix.rows(x_NO.reshape(len(x_NO), -1, self.head_dim), B)

        h_ND = self.attention_norm(x_ND)
        dropped_ND = self._dropped(h_ND, "qkv", dropout_key)
        q_BTHK = rows(self.q(h_ND, dropped_ND))
        k_BTGK = rows(self.k(h_ND, dropped_ND))
        v_BTGK = rows(self.v(h_ND, dropped_ND))
        if self.qk_norm:
            normed = self._normed(q_BTHK, self.q_norm), self._normed(k_BTGK, self.k_norm)
            q_BTHK, k_BTGK = (rotate(x, turns_BTK).astype(self.q.dtype) for x in normed)
            return q_BTHK, k_BTGK, self._kept(v_BTGK)
        heads = rotate(q_BTHK, turns_BTK), rotate(k_BTGK, turns_BTK), v_BTGK
        return tuple(self._kept(x) for x in heads)

    def finish(
        self,
        x_ND: jax.Array,
        attended_BTHK: jax.Array,
        dropout_key: jax.Array | None = None,
        prefix: Prefix = NO_PREFIX,
    ) -> jax.Array:
        """Adds the output of attention, then the feed-forward."""
        h_ND = prefix.tokens(attended_BTHK).reshape(len(x_ND), -1).astype(x_ND.dtype)
        x_ND = x_ND + self.o(h_ND, self._dropped(h_ND, "o", dropout_key))
        x_ND = checkpoint_name(x_ND, "product")
        h_ND = self.ffn_norm(x_ND)
        dropped_ND = self._dropped(h_ND, "gate and up", dropout_key)
        gate_NF = self._kept(self.gate(h_ND, dropped_ND)).astype(jnp.float32)
        up_NF = self._kept(self.up(h_ND, dropped_ND)).astype(jnp.float32)
        h_NF = (jax.nn.silu(gate_NF) * up_NF).astype(x_ND.dtype)
        return x_ND + self.down(h_NF, self._dropped(h_NF, "down", dropout_key))

    def _normed(self, x_BTHK: jax.Array, norm: RMSNorm) -> jax.Array:
        """Heads after a norm. Its input is kept: the backward pass computes the rest from that."""
        return norm(self._kept(x_BTHK).astype(x_BTHK.dtype))

    def _kept(self, x: jax.Array) -> jax.Array:
        return kept(x.astype(self.q.dtype))

    def _dropped(self, x_NI: jax.Array, name: str, key: jax.Array | None) -> jax.Array | None:
        """The input of the adapters after dropout; None if that is the input itself."""
        if key is None or not self.dropout:
            return None
        return drop_out(x_NI, self.dropout, jax.random.fold_in(key, _INPUTS.index(name)))


class Llama(nnx.Module):
    """A language model; `layers` is one layer whose parameters have a leading axis L.

    `compute` selects the mesh and the kernels; by default one device of the default backend.
    """

    def __init__(
        self,
        config: LlamaConfig,
        rngs: nnx.Rngs,
        lora: LoRAConfig | None = None,
        compute: Compute | None = None,
    ) -> None:
        self.config, self.lora = config, lora
        self.compute = compute or compute_on(jax.default_backend())
        shape = (config.vocab_size, config.dim)
        self.embedding_VD = nnx.Param(jax.random.normal(rngs.params(), shape) * config.dim**-0.5)
        self.layers = _stack(config, lora, rngs)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.head_VD = nnx.Param(jax.random.normal(rngs.params(), shape) * config.dim**-0.5)

    def __call__(self, tokens_BT: jax.Array, layout: TokenLayout | None = None) -> jax.Array:
        """Logits of the next token at every position, [B, T, V], float32.

        Without a layout, rows are plain causal sequences without padding.
        """
        return self.logits(self.hidden(tokens_BT, layout))

    def hidden(
        self,
        tokens_BT: jax.Array,
        layout: TokenLayout | None = None,
        dropout_key: jax.Array | None = None,
        remat: Remat = "none",
        prefix: Prefix = NO_PREFIX,
        added_BTD: jax.Array | None = None,
    ) -> jax.Array:
        """The normed output of the last layer, [B, T, D].

        Args:
            tokens_BT: the rows.
            layout: their layout; by default causal sequences without padding.
            dropout_key: applies dropout to the inputs of the adapters, for training.
            remat: what a backward pass recomputes instead of storing it.
            prefix: the tokens that all rows begin with.
            added_BTD: is added to the embeddings of the tokens.

        Raises:
            UserError: without a layout, rows are longer than the model's sliding window.
        """
        T, window = tokens_BT.shape[1], self.config.sliding_window
        if layout is None and window is not None and window < T:
            raise UserError(f"rows of {T} tokens exceed the model's sliding_window, {window}")
        return self._run(tokens_BT, layout, dropout_key, None, remat, prefix, added_BTD)[0]

    def prefill(
        self,
        tokens_BT: jax.Array,
        length_B: jax.Array,
        layout: TokenLayout | None = None,
        slots: int | None = None,
        keep: int | None = None,
        prefix: Prefix = NO_PREFIX,
    ) -> tuple[jax.Array, KVCache]:
        """Reads rows of `length_B` tokens, padded on the right, into a new cache.

        Args:
            tokens_BT: the rows.
            length_B: int32, how many tokens of each row later tokens see.
            layout: their layout; by default one causal sequence per row.
            slots: S, capacity of the cache per row; by default `keep`.
            keep: number of leading tokens that are kept; by default all.
            prefix: the tokens that all rows begin with, with equal positions and visibility.

        Returns:
            The hidden states [B, T, D] and the cache.
        """
        T = tokens_BT.shape[1]
        layout = layout or causal_layout(length_B, T)
        keep = T if keep is None else keep
        room = (keep, slots or keep)
        hidden_BTD, (k_LBGSK, v_LBGSK) = self._run(tokens_BT, layout, None, room, prefix=prefix)
        visible_BS = jnp.arange(room[1]) < length_B[:, None]
        return hidden_BTD, KVCache(k_LBGSK, v_LBGSK, visible_BS, length_B, jnp.int32(keep))

    def extend(
        self,
        tokens_BT: jax.Array,
        count_B: jax.Array,
        cache: KVCache,
        view: View | None = None,
        keep: int | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Reads up to T more tokens per row after those in the cache.

        Args:
            tokens_BT: the new tokens.
            count_B: int32, how many of them later tokens see (0 to T, from the first).
            cache: keys and values so far, with free slots for the new tokens.
            view: positions and visibility of the new tokens; by default they follow one another
                and see all tokens before them.
            keep: number of leading new tokens that are kept; by default all.

        Returns:
            The hidden states [B, T, D] and the extended cache.
        """
        T = tokens_BT.shape[1]
        hidden_BTD, new = self.read(tokens_BT, cache, view or view_in_order(cache, T))
        return hidden_BTD, append(cache, new, T if keep is None else keep, count_B)

    def read(self, tokens_BT: jax.Array, cache: KVCache, view: View) -> tuple[jax.Array, New]:
        """Hidden states [B, T, D] of new tokens, and their keys and values.

        Layers only read the cache, so no part of it is copied for writing; the caller writes the
        new keys and values of all layers in one operation.
        """
        B, T = tokens_BT.shape
        turns_BTK = rope_turns(view.position_BT, self.config)
        graph, stacked = nnx.split(self.layers)

        def layer(
            x_ND: jax.Array, per_layer: tuple[State, jax.Array, jax.Array]
        ) -> tuple[jax.Array, New]:
            weights, k_BGSK, v_BGSK = from_bits(per_layer)
            # No explicit all-gather: with few new tokens XLA may move the activations instead.
            decoder = nnx.merge(graph, weights)
            q_BTHK, k_BTGK, v_BTGK = decoder.heads(x_ND, turns_BTK)
            k_BGTK, v_BGTK = to_slots(k_BTGK, T, T), to_slots(v_BTGK, T, T)
            attended_BTHK = attend_cached(
                q_BTHK, (k_BGSK, k_BGTK), (v_BGSK, v_BGTK), (view.visible_BUS, view.among_BTT)
            )
            return decoder.finish(x_ND, attended_BTHK), self._moved((k_BGTK, v_BGTK))

        start = self._embed(self.embedding_VD[...], tokens_BT.reshape(-1))
        layers = self._moved((stacked, cache.k_LBGSK, cache.v_LBGSK))
        x_ND, new = jax.lax.scan(layer, start, layers)
        return self.norm(x_ND).reshape(B, T, -1), from_bits(new)

    def logits(self, hidden_D: jax.Array, head_VD: jax.Array | None = None) -> jax.Array:
        """Logits over the vocabulary for hidden states [..., D], [..., V] in float32.

        A loop passes `head_weights()` as `head_VD`, so that a mesh all-gathers them only once.
        """
        head_VD = self.head_weights() if head_VD is None else head_VD
        hidden_ND = hidden_D.reshape(-1, hidden_D.shape[-1])
        logits_NV = product(hidden_ND.astype(jnp.float32), head_VD.T)
        return logits_NV.reshape(*hidden_D.shape[:-1], -1)

    def head_weights(self) -> jax.Array:
        """The LM head, [V, D]; on a mesh all-gathered along fsdp."""
        head = self.embedding_VD if self.config.tie_embeddings else self.head_VD
        return gathered_table(self.compute.shards, head[...])

    def _embed(self, table_VD: jax.Array, tokens_N: jax.Array) -> jax.Array:
        x_ND = from_bits(self._moved(table_VD)[tokens_N])
        return x_ND if self.compute.has_bfloat16 else x_ND.astype(jnp.float32)

    def _moved(self, tree: PyTree) -> PyTree:
        """Arrays in the form in which they are moved without conversion; read with `from_bits`."""
        return tree if self.compute.has_bfloat16 else to_bits(tree)

    def _run(
        self,
        tokens_BT: jax.Array,
        layout: TokenLayout | None,
        dropout_key: jax.Array | None,
        room: tuple[int, int] | None,
        remat: Remat = "none",
        prefix: Prefix = NO_PREFIX,
        added_BTD: jax.Array | None = None,
    ) -> tuple[jax.Array, PyTree]:
        """Hidden states, and the keys and values of all layers if `room` is given.

        `room` is the number of tokens that are kept and the number of slots.
        """
        B, T = tokens_BT.shape
        shards = self.compute.shards
        if prefix.length < self.compute.shortest_prefix:
            prefix = NO_PREFIX
        layout = layout or causal_layout(jnp.full(B, T), T)
        turns_BTK = rope_turns(layout.position_BT, self.config)
        attention = self.compute.attention
        if layout.branches:
            attention = attention.of_tries()
        graph, stacked = nnx.split(self.layers)

        def layer(
            x_ND: jax.Array, per_layer: tuple[State, jax.Array | None]
        ) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
            weights, key = per_layer
            decoder = nnx.merge(graph, gathered(shards, from_bits(weights), ("layers",)))
            q_BTHK, k_BTGK, v_BTGK = decoder.heads(x_ND, turns_BTK, key, prefix)
            attended_BTHK = attend(q_BTHK, k_BTGK, v_BTGK, layout.horizon_BT, attention)
            kept = None if room is None else tuple(to_slots(x, *room) for x in (k_BTGK, v_BTGK))
            x_ND = by_rows(shards, decoder.finish(x_ND, attended_BTHK, key, prefix))
            return x_ND, self._moved(kept)

        keys = (
            None if dropout_key is None else jax.random.split(dropout_key, self.config.num_layers)
        )
        if remat == "none" and shards is not None and shards.ways("embed") > 1:
            remat = "dots"  # otherwise the gathered weights of all layers would be stored
        if remat != "none":
            # Inside a scan XLA cannot merge forward and backward pass, so no barrier is needed.
            layer = jax.checkpoint(layer, policy=_REMAT[remat], prevent_cse=False)
        table_VD = gathered_table(shards, self.embedding_VD[...])
        start = by_rows(shards, self._embed(table_VD, prefix.tokens(tokens_BT)))
        if added_BTD is not None:
            start += prefix.tokens(added_BTD).astype(start.dtype)
        x_ND, kept = jax.lax.scan(layer, start, (self._moved(stacked), keys))
        return prefix.rows(self.norm(x_ND), B), from_bits(kept)


def _stack(config: LlamaConfig, lora: LoRAConfig | None, rngs: nnx.Rngs) -> DecoderLayer:
    """L layers as one module, every parameter with a leading layer axis, for a scan."""

    def weights(key: jax.Array) -> State:
        return nnx.state(DecoderLayer(config, lora, nnx.Rngs(params=key)))

    graph = nnx.graphdef(nnx.eval_shape(lambda: DecoderLayer(config, lora, nnx.Rngs(params=0))))
    return nnx.merge(graph, jax.vmap(weights)(jax.random.split(rngs.params(), config.num_layers)))
