"""Tokens that all rows begin with: computed once, not once a row.

Norms and products take tokens, whatever row they are of, so those of a common prefix need to be
there only once. Attention takes rows, which get the prefix back before it.

Shapes: B rows, T tokens of a row, G groups of rows, N tokens, X what a token has.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Prefix:
    """How many tokens all rows of a batch begin with; whoever says so has made sure of it.

    Attributes:
        length: P, tokens that are the same in all rows; 0 for none.
        groups: G, parts of as many rows each, one behind the other, that each compute the prefix
            for themselves: as many as rows are divided over, so that no device waits for another.
    """

    length: int = 0
    groups: int = 1

    def tokens(self, x_BTX: jax.Array) -> jax.Array:
        """Of all rows, without the repeated prefixes: [G * (P + B / G * (T - P)), ...]."""
        B, T, *rest = x_BTX.shape
        if not self._saves(B):
            return x_BTX.reshape(B * T, *rest)
        x_GRTX = x_BTX.reshape(self.groups, -1, T, *rest)
        prefix_GPX = x_GRTX[:, 0, : self.length]
        own_GNX = x_GRTX[:, :, self.length :].reshape(self.groups, -1, *rest)
        return jnp.concatenate([prefix_GPX, own_GNX], axis=1).reshape(-1, *rest)

    def rows(self, x_NX: jax.Array, B: int) -> jax.Array:
        """The inverse of `tokens`: [B, T, ...], each row with the prefix."""
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
