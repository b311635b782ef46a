"""Small tools for pytrees of arrays that lead with a row axis."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from actjax._loop.devices import by_device


def is_float(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def floats(leaves: Sequence) -> list:
    """The leaves that have gradients."""
    return [leaf for leaf in leaves if is_float(leaf)]


def merge(leaves: Sequence, of_floats: Sequence) -> list:
    """`leaves` with others in the places of its floats."""
    rest = iter(of_floats)
    return [next(rest) if is_float(leaf) else leaf for leaf in leaves]


def averaged(mean: Any, state: Any) -> tuple[bool, ...]:
    """Which leaves of a state leave their mean behind; `mean` as a `Rule` has it."""
    flags, leaves = jax.tree.leaves(jax.tree.broadcast(mean, state)), jax.tree.leaves(state)
    return tuple(bool(flag) and is_float(leaf) for flag, leaf in zip(flags, leaves, strict=True))


def per_row(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """`values`, one a row, shaped to go with the rows of `leaf`."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - 1))


def select(mask: jax.Array, new: Any, old: Any) -> Any:
    """Rows of `new` where `mask`, else of `old`; both pytrees of ``[rows, ...]``."""
    return jax.tree.map(lambda a, b: jnp.where(per_row(mask, a), a, b), new, old)


def scale(weight: jax.Array, leaf: jax.Array) -> jax.Array:
    """The rows of `leaf` by `weight`, one a row, in the dtype of `leaf`."""
    return per_row(weight, leaf).astype(leaf.dtype) * leaf


def fill_padding(xs: Any, lengths: jax.Array | None) -> Any:
    """`xs`, ``[B, T, ...]``, with each sequence's last real input beyond its length.

    Padding meets no result, but its steps are taken, and a cotangent of zero times the infinite
    derivative of a step is NaN. No constant is safe for every step: one may look its input up in a
    table, another divide by its norm. What the step takes anyway is. A sequence without any input
    is given another's; where none has any, the padding stays, and `guarded` stands in its way.
    """
    return xs if lengths is None else _of_rows(_filled, None, (xs, lengths))


def last_inputs(xs: Any, lengths: jax.Array) -> Any:
    """Each sequence's last real input, ``[B, ...]``; of one without any, another's or padding."""
    return _of_rows(_last_inputs, None, (xs, lengths))


def _filled(_, rows):
    xs, lengths = rows

    def filled(leaf, last):
        live = jnp.arange(leaf.shape[1], dtype=lengths.dtype)[None] < lengths[:, None]
        live = live.reshape(live.shape + (1,) * (leaf.ndim - 2))
        last = lax.stop_gradient(last) if is_float(leaf) else last
        return jnp.where(live, leaf, last[:, None])

    return jax.tree.map(filled, xs, _last_inputs(_, rows))


def _last_inputs(_, rows):
    xs, lengths = rows
    has_any = lengths > 0
    row = jnp.where(has_any, jnp.arange(lengths.shape[0]), jnp.argmax(has_any))
    last = jnp.maximum(lengths[row] - 1, 0)
    return jax.tree.map(lambda leaf: leaf.at[row, last].get(mode="clip"), xs)


_of_rows = jax.jit(by_device, static_argnums=0)


def guarded(tree: Any, lengths: jax.Array | None) -> Any:
    """`tree`, through which no cotangent comes where no sequence has any input."""
    if lengths is None:
        return tree
    any_live = jnp.any(lengths > 0)
    guard = lambda leaf: jnp.where(any_live, leaf, lax.stop_gradient(leaf))
    return jax.tree.map(lambda leaf: guard(leaf) if is_float(leaf) else leaf, tree)


def row_sum(leaf: jax.Array) -> jax.Array:
    """The sum of each row, ``[rows]``."""
    return leaf.sum(range(1, leaf.ndim))


def zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def like_inputs(*arrays: Any) -> jax.Array:
    """A float32 zero that varies over devices as the arrays together do, to fill buffers with."""
    first = [_numbers(leaf).ravel()[:1].sum() for leaf in jax.tree.leaves(arrays)]
    return sum(((value != value) & False).astype(jnp.float32) for value in first)


def vary(tree: Any, zero: jax.Array) -> Any:
    """Lets the arrays vary over devices as `zero` does, where `shard_map` tells them apart."""
    varies = lambda leaf: getattr(jax.typeof(leaf), "manual_axis_type", None)

    def varied(leaf):
        if varies(leaf) == varies(zero):
            return leaf
        numbers = _numbers(leaf) + zero.astype(_numbers(leaf).dtype)
        if _is_key(leaf):
            return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
        return numbers

    return jax.tree.map(varied, tree)


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf) -> jax.Array:
    """The leaf or, if it holds PRNG keys, the integers that they are made of."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def blank(zero: jax.Array, shape: Sequence[int], dtype) -> jax.Array:
    return jnp.broadcast_to(zero.astype(dtype), shape)


def empty(zero: jax.Array, shape: Sequence[int], dtype) -> jax.Array:
    """As `blank`, with whatever the memory holds."""
    return vary(lax.empty(tuple(shape), dtype), zero)


def cast(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like)


def add(a: Any, b: Any) -> Any:
    """The sum in the dtypes of `a`."""
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), a, b)


def without_keys(step: Callable, state):
    """A step whose PRNG keys in the state are the integers they are made of, that state, and the
    way back."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    if not any(map(is_key, jax.tree.leaves(state))):
        return step, state, lambda state: state
    impls = [jax.random.key_impl(leaf) if is_key(leaf) else None for leaf in jax.tree.leaves(state)]

    def opened(state):
        return jax.tree.map(lambda s: jax.random.key_data(s) if is_key(s) else s, state)

    def read(state):
        leaves, tree = jax.tree.flatten(state)
        pairs = zip(leaves, impls, strict=True)
        wrap = lambda s, impl: s if impl is None else jax.random.wrap_key_data(s, impl=impl)
        return tree.unflatten([wrap(*pair) for pair in pairs])

    def taken(params, state, x, first):
        new, halt = step(params, read(state), x, first)
        return opened(new), halt

    return taken, opened(state), read
