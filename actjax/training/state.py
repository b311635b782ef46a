"""The record a training run carries from step to step, and all that a checkpoint holds."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from actjax.training.partition import check_unshared, hide, show, split


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
    # that of some optimizers holds the parameters themselves
    opt_state = show(own_state(as_transformation(optimizer).init(params)))
    return TrainState(jnp.zeros((), jnp.int32), model, opt_state, extra)


def as_transformation(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """An optimizer that may be given what others need besides the gradient."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        kind = type(optimizer).__name__
        raise ValueError(f"optimizer must be an Optax transformation, got an object of {kind}.")
    if not isinstance(optimizer, (optax.GradientTransformationExtraArgs, optax.MultiSteps)):
        optimizer = optax.with_extra_args_support(optimizer)
    parameters = inspect.signature(optimizer.update).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}

    def update(updates, state, params=None, **extra):
        known = {name: value for name, value in extra.items() if takes_all or name in names}
        with as_optax_computes():
            return optimizer.update(updates, state, params, **known)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def as_optax_computes():
    """The context of Optax's own arithmetic, which mixes types."""
    return jax.numpy_dtype_promotion("standard")


def apply_updates(params: Any, updates: Any) -> Any:
    """As `optax.apply_updates`, for updates of any type."""
    with as_optax_computes():
        return optax.apply_updates(params, updates)


def own_state(tree: Any) -> Any:
    """A copy in buffers of its own, with strong types, of which `hide` has hidden the functions."""

    def own(leaf):
        leaf = jnp.asarray(leaf)  # a Python number has no dtype
        return jnp.array(leaf, dtype=leaf.dtype, copy=True)

    return jax.tree.map(own, hide(tree))
