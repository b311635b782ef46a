"""The record a training run carries from step to step, and all that a checkpoint holds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array


class TrainState(NamedTuple):
    """Everything a training step reads and writes.

    Attributes:
      step: int32 scalar, the number of updates done.
      model: the parameters: any pytree, usually a Flax NNX module.
      opt_state: the state of the Optax optimizer.
      extra: any further pytree a step carries, for example the state of a ponder budget.
    """

    step: Array
    model: Any
    opt_state: Any
    extra: Any = ()


def init_state(model: Any, optimizer: optax.GradientTransformation, extra: Any = ()) -> TrainState:
    """The state before the first update: step 0 and a fresh optimizer state."""
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model), extra)


def own_state(state: TrainState) -> TrainState:
    """A copy of `state` in buffers of its own, with strong types, safe to donate."""

    def own(leaf):
        leaf = jnp.asarray(leaf)  # a Python number has no dtype
        return jnp.array(leaf, dtype=leaf.dtype, copy=True)

    return jax.tree.map(own, state)
