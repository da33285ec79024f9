"""Attention of causal or packed rows on TPUs: JAX's splash attention, a Pallas kernel.

The kernel supports a causal mask and segments, not general horizons. If rows hold whole sequences,
the two are equivalent: all tokens of a sequence have the same horizon, its last token, which no
other sequence has. So the horizon serves as the segment id, and padding (-1) is a separate segment.
Rows with tries are not supported.

Shapes: H query heads, G key/value heads, K head size.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

# The kernel works on tiles of whole lanes. Larger blocks use the matrix unit better.
_LANES = 128
_LARGEST_BLOCK = 512


def splash_attention(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    horizon_BT: jax.Array,
    mesh: Mesh | None,
    batch_axes: tuple[str, ...],
    head_axis: str | None,
    interpret: bool,
) -> jax.Array:
    """See `palr_jax.llm.attention.attend`; the caller guarantees rows of whole sequences.

    With a mesh, every device computes its rows (divided over `batch_axes`) and heads (`head_axis`).
    """
    attend = partial(_local, interpret=interpret)
    if mesh is None:
        return attend(q_BTHK, k_BTGK, v_BTGK, horizon_BT)
    rows, heads = P(batch_axes or None), P(batch_axes or None, None, head_axis)
    # XLA cannot partition a Pallas kernel, whose outputs do not declare the axes they vary over.
    shared = jax.shard_map(
        attend, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    return shared(q_BTHK, k_BTGK, v_BTGK, horizon_BT)


def _local(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    horizon_BT: jax.Array,
    interpret: bool,
) -> jax.Array:
    T, H, K = q_BTHK.shape[1:]
    room = -T % _LANES
    heads_first = [
        jnp.pad(x, ((0, 0), (0, room), (0, 0), (0, 0))).swapaxes(1, 2)
        for x in (q_BTHK * K**-0.5, k_BTGK, v_BTGK)
    ]
    segment_BT = jnp.pad(horizon_BT, ((0, 0), (0, room)), constant_values=-1)
    # The largest block that divides the row.
    lanes = (T + room) // _LANES
    block = _LANES * max(n for n in range(1, _LARGEST_BLOCK // _LANES + 1) if lanes % n == 0)
    sizes = kernel.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((T + room, T + room))] * H),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attended",
        interpret=interpret,
    )
    out_BHTK = jax.vmap(attend)(*heads_first, kernel.SegmentIds(segment_BT, segment_BT))
    return out_BHTK.swapaxes(1, 2)[:, :T]
