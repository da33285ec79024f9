"""Attention under one visibility rule.

Shapes: T queries, S keys, H query heads, G key/value heads, R = H / G query heads that share a
key/value head, K head size, N = R · T rows of scores.

The rule: a row is a sequence of tokens, and every token j has a *horizon*, the index of the last
token of the row that sees it. Token i sees token j if and only if j <= i <= horizon[j]. This rule
covers
- a causal sequence: every horizon is the last index;
- padding: horizon -1, so no token sees it;
- packed rows: the horizon of a token is the end of its example;
- a trie after a prompt: nodes are in preorder, and the horizon of a node is the last node of its
  subtree, so that a node sees the prompt, its ancestors and itself.
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
    """The implementation of self-attention.

    Attributes:
        kind: xla runs everywhere; cpu is the same in an order that suits the caches of a CPU;
            cudnn runs on NVIDIA GPUs and falls back to xla with a logged reason; splash runs on
            TPUs, for rows that hold whole sequences (no tries).
        mesh: the mesh that the arrays are sharded over, if any. Only splash needs it, as XLA cannot
            partition a Pallas kernel.
        batch_axes: the mesh axes that divide rows.
        head_axis: the mesh axis that divides heads.
        interpret: run splash in Pallas' interpreter, which is required on other platforms.
    """

    kind: Kind = "xla"
    mesh: Mesh | None = None
    batch_axes: tuple[str, ...] = ()
    head_axis: str | None = None
    interpret: bool = False

    def of_tries(self) -> "Attention":
        """The implementation for rows that contain tries."""
        return self if self.kind in ("xla", "cpu") else XLA


XLA = Attention()


def attention_on(
    platform: str,
    mesh: Mesh | None = None,
    batch_axes: tuple[str, ...] = (),
    head_axis: str | None = None,
) -> Attention:
    """The implementation for sequences on a platform.

    The platform is an argument because a program may be compiled for devices that are absent, so
    the default backend may be wrong; and `jax.lax.platform_dependent` would store the residuals of
    all its branches for the backward pass.

    Args:
        platform: platform of the devices to compile for, as in `jax.Device.platform`.
        mesh: see `Attention`, also for the other arguments.
    """
    kinds: dict[str, Kind] = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}
    # On several devices, a loop over rows and heads would leave all but one idle.
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
        attention: the implementation.

    Returns:
        [B, T, H, K] in the dtype of `v_BTGK`; undefined at padding.
    """
    match attention.kind:
        case "xla" | "cpu":
            in_turn = attention.kind == "cpu"
            return blocked_attention(q_BTHK, k_BTGK, v_BTGK, horizon_BT, in_turn)
        case "cudnn":
            return _cudnn_attention(q_BTHK, k_BTGK, v_BTGK, horizon_BT)
        case "splash":
            # Pallas is slow to import.
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
    """Attention of T tokens over several arrays of keys and values, as if they were concatenated.

    Args:
        q_BTHK: queries.
        keys: one [B, G, S, K] per array.
        values: one [B, G, S, K] per array.
        visible: bool, one [B, T, S] per array: which of its S tokens each of the T sees; T may be
            1.

    Returns:
        [B, T, H, K] in the dtype of the values; undefined for tokens that see no other.
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
    """Attention by cuDNN, or by XLA if cuDNN is missing or does not support these arrays."""
    index_T1 = jnp.arange(q_BTHK.shape[1])[:, None]
    # Every token sees itself, padding too, so that no row of scores is empty. An explicit mask is
    # passed: cuDNN supports packed rows on Hopper only, and wrappers that drop them let examples
    # see one another.
    visible_BTS = (index_T1 <= horizon_BT[:, None]) | (index_T1 == index_T1.T)
    try:
        if len(index_T1) % 2:
            raise NotImplementedError("its backward pass needs rows of an even length")
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
