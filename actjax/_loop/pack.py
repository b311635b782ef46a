"""Arrays side by side: one buffer a dtype, so that an iteration writes few."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


class Pack:
    """How the arrays of a pytree lie side by side, columns of one array for each dtype.

    On a GPU every write of an iteration is a launch of its own, which costs more than what is
    written; a CPU copies each array once more to get it there, so that there they lie apart.

    Args:
      like: pytree of arrays or shapes.
      rows: those that lead with so many rows are laid together, the others lie apart.
      together: whether any are.
      most: bytes beyond which an array lies apart, as where a product reads it: out of columns it
        would have to be copied.

    Attributes:
      shapes: of the arrays that they are packed into, each of some ``[rows, columns]``.
    """

    def __init__(
        self,
        like: Any,
        rows: int,
        *,
        together: bool,
        most: float = math.inf,
    ):
        leaves, self._tree = jax.tree.flatten(like)
        self._leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        groups = {}
        for i, leaf in enumerate(self._leaves):
            key = i
            small = leaf.size * leaf.dtype.itemsize <= most
            if together and small and leaf.shape[:1] == (rows,):
                key = jnp.dtype(_kept_as(leaf))
            groups.setdefault(key, []).append(i)
        self._groups = list(groups.items())
        self.shapes = [self._shape(*group, rows) for group in self._groups]

    def _shape(self, key, members: Sequence[int], rows: int) -> jax.ShapeDtypeStruct:
        if isinstance(key, int):
            return self._leaves[key]
        columns = sum(math.prod(self._leaves[i].shape[1:]) for i in members)
        return jax.ShapeDtypeStruct((rows, columns), key)

    def pack(self, tree: Any) -> list[jax.Array]:
        """The arrays of a tree like that given, whatever the number of rows, side by side."""
        leaves, packed = jax.tree.leaves(tree), []
        for key, members in self._groups:
            parts = [leaves[i] for i in members]
            if not isinstance(key, int):
                parts = [_columns(part).astype(key) for part in parts]
            packed.append(parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1))
        return packed

    def unpack(self, packed: Sequence[jax.Array]) -> Any:
        """Undoes `pack`; the packed arrays may lead with further axes."""
        leaves: list[Any] = [None] * len(self._leaves)
        for (key, members), array in zip(self._groups, packed, strict=True):
            if isinstance(key, int):
                leaves[key] = array
                continue
            begin = 0
            for i in members:
                leaf = self._leaves[i]
                end = begin + math.prod(leaf.shape[1:])
                part = array[..., begin:end].reshape(*array.shape[:-1], *leaf.shape[1:])
                leaves[i], begin = part.astype(leaf.dtype), end
        return self._tree.unflatten(leaves)


def _kept_as(leaf):
    """The dtype of the array that it goes to: one flag a row is kept as an integer."""
    if leaf.ndim == 1 and leaf.dtype == bool:
        return jnp.int32
    return leaf.dtype


def _columns(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(len(leaf), math.prod(leaf.shape[1:]))
