"""The layers of a layer-flexible network: what each of an input's ponder steps left behind."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Layers(NamedTuple):
    """The primary states of one input, one layer a ponder step (LFACT 2020, section 3.1).

    ``...`` stands for the leading axes: rows, or sequences and their inputs ``[B, T]``.

    Attributes:
      states: pytree of float arrays ``[..., L, features]``: u^1 .. u^N, zeros up to the limit L.
      count: int32 ``[...]``. N, the layers that there are; a constant to the gradient.
      top: pytree of float arrays ``[..., features]``, the deepest of them where the loop has kept
        it beside the others, else None: its gradient does not cost a pass over all L places.

    >>> layers = Layers(jnp.arange(6.0).reshape(1, 3, 2), jnp.array([2]))
    >>> layers.deepest, layers.present
    (Array([[2., 3.]], dtype=float32), Array([[ True,  True, False]], dtype=bool))
    """

    states: Any
    count: jax.Array  # type: ignore[assignment]
    top: Any = None

    @property
    def deepest(self) -> Any:
        """u^N, ``[..., features]``; zeros where there is no layer."""
        if self.top is not None:
            return self.top
        axis = self.count.ndim
        index = jnp.maximum(self.count - 1, 0)

        def take(leaf):
            at = index.reshape(index.shape + (1,) * (leaf.ndim - axis))
            return jnp.take_along_axis(leaf, at, axis=axis).squeeze(axis)

        return jax.tree.map(take, self.states)

    @property
    def present(self) -> jax.Array:
        """Which layers there are, bool ``[..., L]``."""
        limit = jax.tree.leaves(self.states)[0].shape[self.count.ndim]
        return jnp.arange(limit, dtype=self.count.dtype) < self.count[..., None]
