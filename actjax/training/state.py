"""The record a training run carries from step to step, and all that a checkpoint holds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from actjax.training.partition import check_unshared, hide, split


class TrainState(NamedTuple):
    """Everything a training step reads and writes.

    Attributes:
      step: int32 scalar, the number of updates done.
      model: any pytree, usually a Flax NNX module: its parameters and all else that it holds.
      opt_state: the state of the Optax optimizer, over the parameters alone.
      extra: any further pytree a step carries, for example the state of a ponder budget.
    """

    step: Array
    model: Any
    opt_state: Any
    extra: Any = ()


def init_state(
    model: Any, optimizer: optax.GradientTransformation, extra: Any = (), *, wrt: Any = None
) -> TrainState:
    """The state before the first update: step 0 and a fresh optimizer state.

    Args:
      model: see `TrainState`.
      optimizer: an Optax transformation.
      extra: see `TrainState`.
      wrt: an NNX filter, which of the model is trained; as in `make_train_step`.

    Raises:
      ValueError: nothing is trained, or the model holds one variable in two places.
    """
    check_unshared(model)
    params, _ = split(model, wrt)
    if not jax.tree.leaves(params):
        raise ValueError(f"wrt must choose at least one floating-point array, got {wrt!r}.")
    opt_state = as_transformation(optimizer).init(params)
    return TrainState(jnp.zeros((), jnp.int32), model, opt_state, extra)


def as_transformation(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """An optimizer that takes what others need besides the gradient, and may leave it."""
    if isinstance(optimizer, optax.MultiSteps):
        return optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"optimizer must be an Optax transformation, got {optimizer!r}.")
    return optax.with_extra_args_support(optimizer)


def own_state(state: TrainState) -> TrainState:
    """A copy of `state` in buffers of its own, with strong types, safe to donate and to carry."""

    def own(leaf):
        leaf = jnp.asarray(leaf)  # a Python number has no dtype
        return jnp.array(leaf, dtype=leaf.dtype, copy=True)

    return jax.tree.map(own, hide(state))
