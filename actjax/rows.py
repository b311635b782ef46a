"""Small tools for pytrees of arrays that lead with a row axis."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def is_float(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def per_row(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """`values`, one a row, shaped to go with the rows of `leaf`."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - 1))


def select(mask: jax.Array, new: Any, old: Any) -> Any:
    """Rows of `new` where `mask`, else of `old`; both pytrees of ``[rows, ...]``."""
    return jax.tree.map(lambda a, b: jnp.where(per_row(mask, a), a, b), new, old)


def scale(weight: jax.Array, leaf: jax.Array) -> jax.Array:
    """The rows of `leaf` by `weight`, one a row, in the dtype of `leaf`."""
    return per_row(weight, leaf).astype(leaf.dtype) * leaf


def zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def like_inputs(*arrays: Any) -> jax.Array:
    """A float32 zero that varies over devices as the arrays together do, to fill buffers with."""
    first = [leaf.ravel()[:1].sum() for leaf in jax.tree.leaves(arrays)]
    return sum(((value != value) & False).astype(jnp.float32) for value in first)


def vary(tree: Any, zero: jax.Array) -> Any:
    """Lets the arrays vary over devices as `zero` does, where `shard_map` tells them apart."""
    varies = lambda leaf: getattr(jax.typeof(leaf), "manual_axis_type", None)  # noqa: E731
    return jax.tree.map(
        lambda leaf: leaf if varies(leaf) == varies(zero) else leaf + zero.astype(leaf.dtype), tree
    )


def blank(zero: jax.Array, shape: Sequence[int], dtype) -> jax.Array:
    return jnp.broadcast_to(zero.astype(dtype), shape)


def cast(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like)


def add(a: Any, b: Any) -> Any:
    """The sum in the dtypes of `a`."""
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), a, b)
