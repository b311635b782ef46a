"""Keeping the weights that do best on validation data, inside the compiled training loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from actjax.training.state import TrainState
from actjax.training.step import TrainStep


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
    model = jax.tree.map(jnp.copy, state.model)  # both are donated, which no buffer can be twice
    best = Best(state.extra, jnp.full((), -jnp.inf), jnp.zeros((), jnp.int32), model)
    return state._replace(extra=best)


def keep_best(
    train_step: TrainStep, score: Callable[[Any, Any], Array], *, every: int
) -> TrainStep:
    """A training step that validates after every `every` updates and keeps the best weights.

    Args:
      train_step: the step to follow, which sees `Best.extra` as its `TrainState.extra`.
      score: `(model, data) -> float scalar`, the higher the better; `data` is the step's own.
      every: updates between validations. With it equal to the updates of a row of metrics, the
        metric "validation_max" of a row is the score of its one validation.

    Returns:
      A step for states made with `with_best`. A score that is not a number is never the best.
    """

    def step(state: TrainState, key: Array, data: Any = ()):
        best = state.extra
        state, metrics = train_step(state._replace(extra=best.extra), key, data)

        def validate(best: Best):
            value = score(state.model, data).astype(best.score.dtype)
            here = best._replace(score=value, step=state.step, model=state.model)
            better = value > best.score
            return jax.tree.map(lambda new, old: jnp.where(better, new, old), here, best), value

        skip = lambda best: (best, jnp.full_like(best.score, -jnp.inf))
        due = state.step % every == 0
        best, value = lax.cond(due, validate, skip, best._replace(extra=state.extra))
        return state._replace(extra=best), metrics | {"validation_max": value}

    return step
