"""Keeping the weights that do best on validation data, inside the compiled training loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from actjax._checks import check_positive
from actjax.training.metrics import check_names
from actjax.training.partition import hide, show
from actjax.training.state import TrainState, own_state
from actjax.training.step import Finish, TrainStep, with_finish


class Best(NamedTuple):
    """The best weights so far, carried in `TrainState.extra`.

    Attributes:
      extra: what the run's own step carries there.
      score: their score, the higher the better; -inf before the first validation.
      step: int32, the update after which they were scored.
      model: the weights.
    """

    extra: Any
    score: Array
    step: Array
    model: Any


def with_best(state: TrainState) -> TrainState:
    """A fresh training state that `keep_best` can go on with."""
    model = show(own_state(state.model))  # both are donated, which no buffer can be twice
    score = jnp.full_like(state.step, -jnp.inf, dtype=float)  # on the same devices
    best = Best(state.extra, score, jnp.zeros_like(state.step), model)
    return state._replace(extra=best)


def keep_best(
    train_step: TrainStep, score: Callable[[Any, Any], Array], *, every: int
) -> TrainStep:
    """A training step that validates after every `every` updates and keeps the best weights.

    `fit` and `sweep` validate what they return once more where the last validation was before their
    last update; their checkpoints do not have that one, so that a run may go on from them as if it
    had not stopped.

    Args:
      train_step: the step to follow, which sees `Best.extra` as its `TrainState.extra`.
      score: `(model, data) -> float scalar`, the higher the better; `data` is the step's own. What
        it writes to the model is dropped.
      every: updates between validations. With it equal to the updates of a row of metrics, the
        metric "validation_max" of a row is the score of its one validation.

    Returns:
      A step for states made with `with_best`. A score that is not a number is never the best.
    """
    check_positive("every", every)

    def validate(state: TrainState, best: Best, data: Any):
        model = jax.tree.map(lambda leaf: leaf, state.model)  # the score's own to write to
        value = score(model, data)
        if jnp.shape(value):
            raise ValueError(f"score must return a scalar, got shape {jnp.shape(value)}.")
        value = jnp.asarray(value).astype(best.score.dtype)
        here = hide(best._replace(score=value, step=state.step, model=state.model))
        better = value > best.score
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), here, hide(best)), value

    def step(state: TrainState, key: Array, data: Any = ()):
        best = state.extra
        state, metrics = train_step(state._replace(extra=best.extra), key, data)
        check_names(metrics, ("validation_max",))
        best, value = lax.cond(
            state.step % every == 0,
            lambda best: validate(state, show(best), data),
            lambda best: (best, jnp.full_like(best.score, -jnp.inf)),
            hide(best._replace(extra=state.extra)),
        )
        return state._replace(extra=show(best)), metrics | {"validation_max": value}

    def finish(state: TrainState, data: Any) -> TrainState:
        return state._replace(extra=show(validate(state, state.extra, data)[0]))

    return with_finish(step, Finish(due=lambda step: step % every != 0, run=finish))
