"""A prefix that all rows share is computed once instead of once per row.

Norms and products act on single tokens, so the tokens of a shared prefix are needed only once.
Attention acts on rows, so the prefix is added back to each row before it.

Shapes: P tokens of the prefix, G groups of rows, R rows of a group, N tokens of a group, X trailing
axes.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Prefix:
    """The number of leading tokens that all rows of a batch share; the caller guarantees it.

    Attributes:
        length: P, number of tokens; 0 disables sharing.
        groups: G, number of equal, contiguous groups of rows that each compute the prefix: the
            number of devices that rows are divided over, so that no device waits for another.
    """

    length: int = 0
    groups: int = 1

    def tokens(self, x_BTX: jax.Array) -> jax.Array:
        """The tokens of all rows, the prefix once per group: [G * (P + B / G * (T - P)), ...]."""
        B, T, *rest = x_BTX.shape
        if not self._saves(B):
            return x_BTX.reshape(B * T, *rest)
        x_GRTX = x_BTX.reshape(self.groups, -1, T, *rest)
        prefix_GPX = x_GRTX[:, 0, : self.length]
        own_GNX = x_GRTX[:, :, self.length :].reshape(self.groups, -1, *rest)
        return jnp.concatenate([prefix_GPX, own_GNX], axis=1).reshape(-1, *rest)

    def rows(self, x_NX: jax.Array, B: int) -> jax.Array:
        """The inverse of `tokens`: [B, T, ...], each row with its prefix."""
        rest = x_NX.shape[1:]
        if not self._saves(B):
            return x_NX.reshape(B, -1, *rest)
        x_GNX = x_NX.reshape(self.groups, -1, *rest)
        own_GRTX = x_GNX[:, self.length :].reshape(self.groups, B // self.groups, -1, *rest)
        prefix_G1PX = x_GNX[:, None, : self.length]
        prefix_GRPX = jnp.broadcast_to(prefix_G1PX, (*own_GRTX.shape[:2], self.length, *rest))
        return jnp.concatenate([prefix_GRPX, own_GRTX], axis=2).reshape(B, -1, *rest)

    def _saves(self, B: int) -> bool:
        return self.length > 0 and self.groups < B


NO_PREFIX = Prefix()
