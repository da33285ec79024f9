"""Attention under one visibility rule.

Shapes: B batch, T queries, S keys, H query heads, G key/value heads, R = H / G query heads that
share a key/value head, K head size.

The rule: a row is a sequence of tokens, and every token j has a *horizon*, the index of the last
token of the row that sees it. Token i sees token j if and only if j <= i <= horizon[j]. This one
rule serves
- a causal sequence: every horizon is the last index;
- padding: horizon -1, nobody sees it;
- packed rows: the horizon of a token is the end of its own example;
- a trie behind a prompt: nodes stand in preorder, and the horizon of a node is the last node of
  its subtree, so that a node sees the prompt, its ancestors and itself.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from palr_jax.io.progress import say
from palr_jax.llm.blocked_attention import blocked_attention

Kind = Literal["xla", "cpu", "cudnn", "splash"]


@dataclass(frozen=True)
class Attention:
    """Who computes the attention of a row over itself.

    Attributes:
        kind: xla runs everywhere; cpu is the same in an order that suits the caches of a CPU;
            cudnn on NVIDIA GPUs, and falls back to xla with a line that says why; splash on
            TPUs, for rows that hold whole sequences (no tries).
        mesh: that the arrays are sharded over, if any. Only splash, which XLA cannot split by
            itself, needs to know it.
        batch_axes: the axes of the mesh that rows are split over.
        head_axis: the axis of the mesh that heads are split over.
        interpret: splash runs in Pallas' interpreter, as it must off TPUs.
    """

    kind: Kind = "xla"
    mesh: Mesh | None = None
    batch_axes: tuple[str, ...] = ()
    head_axis: str | None = None
    interpret: bool = False

    def of_tries(self) -> "Attention":
        """What can be had where rows hold tries as well."""
        return self if self.kind in ("xla", "cpu") else XLA


XLA = Attention()


def attention_on(
    platform: str,
    mesh: Mesh | None = None,
    batch_axes: tuple[str, ...] = (),
    head_axis: str | None = None,
) -> Attention:
    """The attention of sequences on a platform.

    It is told and not found out: a program may be compiled for devices that are not here, so that
    the default backend is the wrong one to ask; and `jax.lax.platform_dependent` would keep for
    the backward pass what each of its branches wants, those never taken too.

    Args:
        platform: of the devices that the program is compiled for, as `jax.Device` names it.
        mesh: see `Attention`, as the others.
    """
    kinds: dict[str, Kind] = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}
    # Over several devices, one row and head after the other would leave all but one idle.
    fallback: Kind = "cpu" if platform == "cpu" and mesh is None else "xla"
    return Attention(kinds.get(platform, fallback), mesh, batch_axes, head_axis)


def attend(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    horizon_BT: jax.Array,
    attention: Attention = XLA,
) -> jax.Array:
    """Attention of a row over itself.

    Args:
        q_BTHK: queries.
        k_BTGK: keys.
        v_BTGK: values.
        horizon_BT: int32, the index of the last token that sees each token.
        attention: who computes it.

    Returns:
        [B, T, H, K] in the type of `v_BTGK`. Tokens that nobody sees get a meaningless average.
    """
    match attention.kind:
        case "xla" | "cpu":
            in_turn = attention.kind == "cpu"
            return blocked_attention(q_BTHK, k_BTGK, v_BTGK, horizon_BT, in_turn)
        case "cudnn":
            return _cudnn_attention(q_BTHK, k_BTGK, v_BTGK, horizon_BT)
        case "splash":
            # Pallas takes long to import.
            from palr_jax.llm.splash_attention import splash_attention  # noqa: PLC0415

            return splash_attention(
                q_BTHK, k_BTGK, v_BTGK, horizon_BT, attention.mesh, attention.batch_axes,
                attention.head_axis, attention.interpret,
            )  # fmt: skip


def attend_cached(
    q_BTHK: jax.Array,
    keys: Sequence[jax.Array],
    values: Sequence[jax.Array],
    visible: Sequence[jax.Array],
) -> jax.Array:
    """Attention of T tokens over several runs of keys and values, as if they were joined.

    Args:
        q_BTHK: queries.
        keys: of each run, [B, G, S, K], heads first.
        values: of each run, [B, G, S, K].
        visible: bool, of each run which of its S tokens each of the T sees, [B, T, S]; T may be 1.

    Returns:
        [B, T, H, K] in the type of the values. Tokens that see nothing get a meaningless average.
    """
    B, T, H, K = q_BTHK.shape
    G = keys[0].shape[1]
    q_BGNK = jnp.moveaxis(q_BTHK.reshape(B, T, G, H // G, K), 1, 3).reshape(B, G, -1, K) * K**-0.5
    scores = [
        jnp.where(
            seen_BTS[:, None, None],
            _product("BGNK,BGSK->BGNS", q_BGNK, k_BGSK).reshape(B, G, -1, T, k_BGSK.shape[2]),
            -1e30,
        )
        for k_BGSK, seen_BTS in zip(keys, visible, strict=True)
    ]
    tops = [score_BGRTS.max(-1, keepdims=True) for score_BGRTS in scores]
    top_BGRT1 = functools.reduce(jnp.maximum, tops)
    weights = [jnp.exp(score_BGRTS - top_BGRT1) for score_BGRTS in scores]
    sum_BGRT1 = sum(weight_BGRTS.sum(-1, keepdims=True) for weight_BGRTS in weights)
    parts = [
        _product(
            "BGNS,BGSK->BGNK",
            weight_BGRTS.astype(v_BGSK.dtype).reshape(B, G, -1, v_BGSK.shape[2]),
            v_BGSK,
        )
        for weight_BGRTS, v_BGSK in zip(weights, values, strict=True)
    ]
    attended_BGRTK = functools.reduce(jnp.add, parts).reshape(B, G, -1, T, K) / sum_BGRT1
    return jnp.moveaxis(attended_BGRTK, 3, 1).reshape(B, T, H, K).astype(values[0].dtype)


def _product(formula: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(formula, left, right, preferred_element_type=jnp.float32)


def _cudnn_attention(
    q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, horizon_BT: jax.Array
) -> jax.Array:
    """Attention by cuDNN, or by XLA where cuDNN is missing or refuses these arrays."""
    index_T1 = jnp.arange(q_BTHK.shape[1])[:, None]
    # Every token sees itself, padding too, so that no row of scores is empty. The mask is handed
    # over whole: cuDNN's own notion of packed rows is Hopper's alone, and a wrapper that drops it
    # lets examples see one another.
    visible_BTS = (index_T1 <= horizon_BT[:, None]) | (index_T1 == index_T1.T)
    try:
        if len(index_T1) % 2:
            raise NotImplementedError("its backward pass takes rows of an even length")
        return jax.nn.dot_product_attention(
            q_BTHK, k_BTGK, v_BTGK, mask=visible_BTS[:, None], is_causal=True,
            implementation="cudnn",
        )  # fmt: skip
    except (RuntimeError, NotImplementedError, ValueError) as error:
        _say_once(f"attention by XLA instead of cuDNN: {error}")
        return blocked_attention(q_BTHK, k_BTGK, v_BTGK, horizon_BT, in_turn=False)


@functools.cache
def _say_once(line: str) -> None:
    say(line)
