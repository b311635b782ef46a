"""Noise that belongs to a row: what a cell draws for one input does not depend on its neighbours.

A loop takes its rows as they come, and none may know how many others there are. So every draw has a
key of its own, folded from the caller's with what it is drawn for:

    key --sequence--> row --input t--> --ponder step n--> --stream of the module's-->

By this the numbers are the same in both loops, with any number of lanes, alone or in a batch.

The modules do it with what they are given as `rngs`. For a pure step of `actjax.unroll` the inputs
carry the keys, and the state counts the steps, from 1 where `first` is true:

>>> import actjax
>>> def step(params, state, inputs, first):
...     (h, n), (x, key) = state, inputs
...     n = jnp.where(first, 1, n + 1)
...     noise = jax.vmap(lambda key, n: jax.random.normal(jax.random.fold_in(key, n), (4,)))
...     h = jnp.tanh(params * h + x + noise(key, n.astype(jnp.uint32)))
...     return (h, n), jax.nn.sigmoid(h[:, 0])
>>> start = jnp.zeros((3, 4)), jnp.zeros(3)
>>> inputs = jnp.ones((3, 7, 4)), jax.random.split(jax.random.key(0), (3, 7))
>>> _, (states, _), record = actjax.unroll(step, 0.5, start, inputs, max_steps=10)
>>> states.shape
(3, 7, 4)
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from actjax._variables import renewed, stream_names, variables


def as_keys(rngs: Any) -> dict[str, Array]:
    """The keys of `rngs` by stream: an `nnx.Rngs`, drawn from once, a mapping, or a key."""
    if isinstance(rngs, nnx.Rngs):
        try:
            return {name: stream() for name, stream in rngs.items()}
        except flax.errors.TraceContextError:
            raise ValueError(
                "rngs must be made in, or given to, the function that is transformed, "
                "got nnx.Rngs from outside of it, whose counts cannot be advanced there."
            ) from None
    if isinstance(rngs, Mapping) and rngs:
        return {name: _typed(key) for name, key in rngs.items()}
    return {"default": _typed(rngs)}


def _typed(key: Any) -> Array:
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return key
    if dtype == jnp.uint32 and jnp.ndim(key) > 0:
        return jax.random.wrap_key_data(key)
    raise ValueError(
        f"rngs must be nnx.Rngs, a PRNG key or keys by the names of streams, got {key!r}."
    )


def fold(rngs: Any, data: Any) -> dict[str, Array]:
    """The keys of `rngs`, ``[]`` or ``[batch]`` each, folded with the number `data`."""
    rows = jax.vmap(jax.random.fold_in, (0, None))
    each = lambda key: rows(key, data) if key.ndim else jax.random.fold_in(key, data)
    return {name: each(key) for name, key in as_keys(rngs).items()}


def input_keys(rngs: Any, streams: tuple[str, ...], batch: int, time: int) -> tuple[Array, ...]:
    """For each of `streams` the keys of all inputs, ``[batch, time]``.

    A stream that `rngs` lacks has the one called "default", or the only one that there is.
    """
    keys = as_keys(rngs)
    only = next(iter(keys.values())) if len(keys) == 1 else None
    fold_each = jax.vmap(jax.random.fold_in, (None, 0))

    def of_stream(name):
        key = keys.get(name, keys.get("default", only))
        if key is None:
            wanted = " or ".join(map(repr, dict.fromkeys([name, "default"])))
            raise ValueError(f"rngs must have the stream {wanted}, got {sorted(keys)}.")
        if key.shape not in ((), (batch,)):
            raise ValueError(
                f"rngs must hold one key, or one for each of the {batch} sequences, "
                f"got keys of shape {key.shape}."
            )
        rows = fold_each(key, jnp.arange(batch)) if key.ndim == 0 else key
        return jax.vmap(fold_each, (0, None))(rows, jnp.arange(time))

    return tuple(map(of_stream, streams))


def by_row(
    call: Callable, modules: Any, streams: tuple[str, ...], keys: tuple, n: Array, *rows: Any
) -> Any:
    """``call(modules, *rows)``, where the modules draw for each row with keys of its own.

    Args:
      call: takes the modules and pytrees of ``[rows, ...]``, and returns such.
      modules: what draws, a pytree of modules.
      streams, keys: the names of the streams that draw, and of each the inputs' keys, ``[rows]``.
      n: the ponder step, a number ``[rows]``.
      rows: pytrees of arrays ``[rows, ...]``.
    """

    def one(keys, n, *row):
        step_keys = [jax.random.fold_in(key, n) for key in keys]
        own = _reseeded(modules, dict(zip(streams, step_keys, strict=True)))
        result = call(own, *jax.tree.map(lambda leaf: leaf[None], row))
        return jax.tree.map(lambda leaf: leaf[0], result)

    return jax.vmap(one)(keys, n.astype(jnp.uint32), *rows)


def _reseeded(modules: Any, keys: dict[str, Array]) -> Any:
    """A copy of the modules whose streams of the names in `keys` begin anew, each with its own."""
    modules = renewed(modules)
    names, place = stream_names(modules), 0
    for path, state in variables(modules).items():
        if names.get(path) not in keys:
            continue
        if isinstance(state, nnx.RngKey):
            shape = state.get_value().shape
            key = jax.random.fold_in(keys[names[path]], place)
            state.set_value(jax.random.split(key, shape) if shape else key)
            place += 1
        else:
            state.set_value(jnp.zeros_like(state.get_value()))
    return modules
