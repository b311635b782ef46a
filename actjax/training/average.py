"""An exponential moving average of the weights beside those that are trained."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from actjax.training.partition import merge, split
from actjax.training.state import TrainState, as_optax_computes
from actjax.training.step import Finish, TrainStep, finish_of, with_finish


class Averaged(NamedTuple):
    """The average, carried in `TrainState.extra`.

    Attributes:
      extra: what the run's own step carries there.
      average: `optax.EmaState`, over the parameters alone.
    """

    extra: Any
    average: optax.EmaState


def with_average(state: TrainState, *, wrt: Any = None) -> TrainState:
    """A fresh training state that `keep_average` can go on with."""
    params, _ = split(state.model, wrt)
    fresh = optax.ema(0.0).init(params)
    fresh = fresh._replace(count=jnp.zeros_like(state.step))  # on the devices that it counts for
    return state._replace(extra=Averaged(state.extra, fresh))


def keep_average(train_step: TrainStep, decay: float, *, wrt: Any = None) -> TrainStep:
    """A training step that also averages the weights: ``decay * average + (1 - decay) * weights``.

    Args:
      train_step: the step to follow, which sees `Averaged.extra` as its `TrainState.extra`.
      decay: in (0, 1), 0.999 say: the average reaches over about 1 / (1 - decay) updates.
      wrt: as in `make_train_step`.

    Returns:
      A step for states made with `with_average`; `averaged_model` gives the model of averages.
    """
    ema = _ema(decay)

    def step(state: TrainState, key: Array, data: Any = ()):
        held = state.extra
        state, metrics = train_step(state._replace(extra=held.extra), key, data)
        with as_optax_computes():
            _, average = ema.update(split(state.model, wrt)[0], held.average)
        return state._replace(extra=Averaged(state.extra, average)), metrics

    followed = finish_of(train_step)
    if followed is None:
        return step

    def finish(state: TrainState, data: Any) -> TrainState:
        held = state.extra
        state = followed.run(state._replace(extra=held.extra), data)
        return state._replace(extra=Averaged(state.extra, held.average))

    return with_finish(step, Finish(followed.due, finish))


def averaged_model(state: TrainState, decay: float, *, wrt: Any = None) -> Any:
    """The model with its averaged weights, freed of the bias towards the zeros they begin as.

    Args:
      state: of a `keep_average` step of this `decay`, after at least one update.
    """
    average = state.extra.average
    with as_optax_computes():
        params = optax.tree.bias_correction(average.ema, decay, average.count)
    like, rest = split(state.model, wrt)
    params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, like)
    return merge(params, rest)


def _ema(decay: float) -> optax.GradientTransformation:
    if not 0 < decay < 1:
        raise ValueError(f"decay must be between 0 and 1, got {decay!r}.")
    return optax.ema(decay, debias=False)
