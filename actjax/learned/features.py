"""What a coordinatewise network sees of a gradient."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard


def log_sign(gradient: jax.Array, p: float = 10.0) -> jax.Array:
    """Magnitude and sign of each coordinate (Andrychowicz 2016, appendix A): float [2, *shape].

    (log|g| / p, sign g) where |g| >= e^-p, and (-1, e^p g) below, so that both stay within about
    one for gradients of any scale.

    Args:
      gradient: any shape.
      p: magnitudes below e^-p count as small; must be positive.

    Example:
      >>> import jax.numpy as jnp
      >>> [[round(float(v), 3) for v in row] for row in log_sign(jnp.array([1.0, -1e-8]))]
      [[0.0, -1.0], [1.0, -0.0]]
    """
    if not p > 0:
        raise ValueError(f"p must be a number above 0, got {p!r}.")
    floor = math.exp(-p)
    size = jnp.abs(gradient)
    large = size >= floor
    magnitude = jnp.where(large, jnp.log(jnp.maximum(size, floor)) / p, -1.0)
    direction = jnp.where(large, jnp.sign(gradient), gradient / floor)
    return jnp.stack([magnitude, direction])


def raw(gradient: jax.Array, p: float = 10.0) -> jax.Array:
    """The gradient itself as the only feature: float [1, *shape]; p is not used."""
    del p
    return gradient[None]


PREPROCESS = {"log_sign": log_sign, "raw": raw}


def coordinates(tree) -> jax.Array:
    """All leaves of a pytree laid end to end as float32: float [N]; [0] for a tree without any.

    A complex number is two coordinates: the real parts of its leaf, then the imaginary ones. Leaves
    that an explicit mesh shards are gathered, but for one that is flat and alone.
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    if len(leaves) > 1 or any(leaf.ndim > 1 for leaf in leaves):
        leaves = [_resharded(leaf, PartitionSpec()) for leaf in leaves]
    leaves = [_flat(leaf) for leaf in leaves]
    if len(leaves) == 1:
        return leaves[0]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0, jnp.float32)


def as_tree(values: jax.Array, like):
    """The inverse of `coordinates`: float [N] cut up into the shapes and dtypes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    parts, start = [], 0
    for leaf in map(jnp.asarray, leaves):
        is_complex = jnp.iscomplexobj(leaf)
        size = leaf.size * (2 if is_complex else 1)
        part = values[start : start + size] if len(leaves) > 1 else values
        if is_complex:
            part = lax.complex(part[: leaf.size], part[leaf.size :])
        part = part.reshape(leaf.shape).astype(leaf.dtype)
        parts.append(_resharded(part, jax.typeof(leaf).sharding.spec, like=leaf))
        start += size
    return jax.tree.unflatten(structure, parts)


def check_params(params):
    """Refuses leaves that have no gradient: integers, keys, functions."""
    for leaf in jax.tree.leaves(params):
        kind = getattr(leaf, "dtype", type(leaf))
        number = kind in (float, complex) or hasattr(leaf, "dtype")
        if not number or not jnp.issubdtype(kind, jnp.inexact):
            raise ValueError(
                "params must hold arrays of floating-point or complex numbers alone "
                f"(keep what is not trained out of them), got {getattr(kind, '__name__', kind)}."
            )


def _resharded(leaf: jax.Array, spec: PartitionSpec, like: jax.Array | None = None) -> jax.Array:
    """The leaf laid out by `spec` on the explicit mesh of `like`, or itself where there is none."""
    mesh = jax.typeof(leaf if like is None else like).sharding.mesh
    same = jax.typeof(leaf).sharding.spec == spec
    if same or mesh.empty or AxisType.Explicit not in mesh.axis_types:
        return leaf
    return reshard(leaf, NamedSharding(mesh, spec))


def _flat(leaf) -> jax.Array:
    flat = jnp.ravel(leaf)
    if jnp.iscomplexobj(flat):
        flat = jnp.concatenate([flat.real, flat.imag])
    return flat.astype(jnp.float32)
