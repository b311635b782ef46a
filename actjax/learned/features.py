"""What a coordinatewise network sees of a gradient."""

import math
from collections.abc import Sequence

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
    return jnp.stack(log_sign_rows(gradient, p))


def log_sign_rows(gradient: jax.Array, p: float) -> tuple[jax.Array, jax.Array]:
    """The two of `log_sign`, each of the gradient's shape."""
    if not p > 0:
        raise ValueError(f"p must be a number above 0, got {p!r}.")
    floor = math.exp(-p)
    size = jnp.abs(gradient)
    large = size >= floor
    magnitude = jnp.where(large, jnp.log(jnp.maximum(size, floor)) / p, -1.0)
    direction = jnp.where(large, jnp.sign(gradient), gradient / floor)
    return magnitude, direction


def raw(gradient: jax.Array) -> jax.Array:
    """The gradient itself as the only feature: float [1, *shape]."""
    return gradient[None]


def adam(moments: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradient in units of its own size, by running means as Adam keeps them.

    After RNNprop (Lv et al. 2017, "Learning Gradient Descent: Better Generalization and Longer
    Horizons", https://arxiv.org/abs/1703.03633), which sees g and m in units of sqrt(v), with one
    decay for both. Here, of unbiased running means m of g and v of g^2,

        g / sqrt(v_.99),  m_.9 / sqrt(v_.99),  m_.98 / sqrt(v_.99),  log(v_.9 / v_.99) / 2,

    and log(1 + t) / 5 for step t: a change of scale of the loss changes none of them, as long as
    gradients are above about 1e-7. Those above 1e18 count as 1e18, whose square float32 holds.

    Args:
      moments: [MOMENT_ROWS, N] of the steps before: the four means, and t; zeros at the start.
      gradient: float [N].

    Returns:
      The moments with this gradient, and float [5, N].

    Example:
      >>> import jax.numpy as jnp
      >>> moments, seen = adam(jnp.zeros((5, 2)), jnp.array([1e-3, -5.0]))
      >>> [[round(float(value), 3) for value in row] for row in seen[:2]]
      [[1.0, -1.0], [1.0, -1.0]]
    """
    rows, seen = adam_rows(moments, gradient)
    return jnp.stack(rows), jnp.stack(seen)


def adam_rows(
    moments: jax.Array | Sequence[jax.Array], gradient: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The moments' and the features' rows of `adam`, each of the gradient's shape."""
    count = moments[4] + 1
    gradient = jnp.clip(gradient, -MOST, MOST)
    square = gradient * gradient
    values = gradient, gradient, square, square
    rows, means = [], []
    for row, decay, value in zip(moments[:4], DECAYS, values, strict=True):
        rows.append(decay * row + (1 - decay) * value)
        means.append(rows[-1] / -jnp.expm1(count * math.log(decay)))
    first, slow, fast_square, slow_square = means
    over = lax.rsqrt(slow_square + TINY)
    ratio = 0.5 * jnp.log((fast_square + TINY) / (slow_square + TINY))
    seen = gradient * over, first * over, slow * over, jnp.clip(ratio, -3, 3), jnp.log1p(count) / 5
    return [*rows, count], list(seen)


def leaf_scales(params, *, batched: bool = False) -> jax.Array:
    """log of the root mean square of the leaf each coordinate belongs to, over 3: float [N].

    In a leaf below 1e-3, as biases are at the start, it is that of 1e-3, and at most that of 1e15.
    What it tells is mostly the fan-in, by which weights are drawn and steps should be smaller.

    Args:
      params: a pytree.
      batched: the last axis of every leaf counts problems, each with a leaf of its own.
    """

    def scale(leaf):
        leaf = jnp.asarray(leaf)
        if not leaf.size:  # there is no mean
            return jnp.zeros(leaf.shape, jnp.float32)
        axes = tuple(range(leaf.ndim - batched))
        size = jnp.minimum(jnp.abs(leaf).astype(jnp.float32), 1e15)  # a square that float32 holds
        mean = jnp.mean(jnp.square(size), axes, keepdims=True)
        value = jnp.log(jnp.maximum(mean, 1e-6)) / 6
        filled = jnp.zeros_like(leaf, value.dtype) + value
        return lax.complex(filled, filled) if jnp.iscomplexobj(leaf) else filled

    return coordinates(jax.tree.map(scale, params))


DECAYS = (0.9, 0.98, 0.9, 0.99)  # of two means of g and two of its square
MOMENT_ROWS = len(DECAYS) + 1
TINY = 1e-16
MOST = 1e18
PREPROCESS = {"log_sign": 2, "raw": 1, "adam": 5}  # name -> features


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


def check_params(params, name: str = "params"):
    """Refuses leaves that have no gradient: integers, keys, functions."""
    for leaf in jax.tree.leaves(params):
        kind = getattr(leaf, "dtype", type(leaf))
        number = kind in (float, complex) or hasattr(leaf, "dtype")
        if not number or not jnp.issubdtype(kind, jnp.inexact):
            raise ValueError(
                f"{name} must hold arrays of floating-point or complex numbers alone "
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
