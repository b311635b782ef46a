"""Optax's optimizers with their learning rate tuned: what a learned optimizer must beat."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from actjax.learned.problems.family import Family
from experiments.learned.options import LearnedOptions

MAKE = {
    "sgd": optax.sgd,
    "nag": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop,
    "adam": optax.adam,
    "adam9": functools.partial(optax.adam, b1=0.9, b2=0.9),
}
RATES = tuple(10.0 ** (k / 4) for k in range(-10, 3))  # quarter decades
IMAGE_RATES = tuple(10.0 ** (k / 8) for k in range(-20, 1))  # eighth decades
TUNING_SEED = 11


class Found(NamedTuple):
    """Losses [steps, problems], and the parameters at the end, leaves [problems, ...]."""

    losses: jax.Array
    params: Any


def curves(
    make_family,
    name: str,
    learning_rate,
    key: jax.Array,
    *,
    count: int,
    steps: int,
    data: Any = (),
    validation: bool = False,
) -> Found:
    """Losses after each update on `count` fresh problems, and where they end.

    Problems and minibatches are those that `actjax.learned.meta.start` draws with this key.
    """
    family: Family = make_family(data)
    score = family.validation if validation else family.loss

    def one(problem_key, batch_key):
        params, problem = family.sample(problem_key)
        optimizer = MAKE[name](learning_rate)

        def step(carry, index):
            params, state = carry
            here = jax.random.fold_in(batch_key, index)
            gradient = jax.grad(family.loss)(params, problem, here)
            with jax.numpy_dtype_promotion("standard"):  # Optax's own arithmetic mixes types
                updates, state = optimizer.update(gradient, state, params)
                params = optax.apply_updates(params, updates)
            after = jax.random.fold_in(batch_key, index + 1)
            return (params, state), score(params, problem, after)

        start = params, optimizer.init(params)
        (params, _), losses = lax.scan(step, start, jnp.arange(steps))
        return losses, params

    key_problem, key_batch = jax.random.split(key)
    keys = jax.random.split(key_problem, count), jax.random.split(key_batch, count)
    return Found(*jax.vmap(one, out_axes=(1, 0))(*keys))


def tune(
    make_family,
    name: str,
    options: LearnedOptions,
    *,
    data: Any = (),
    grid: tuple[float, ...] = RATES,
    validation: bool = False,
) -> dict[str, float]:
    """The learning rates with the lowest mean final and mean summed loss on held-out problems.

    With `validation` the loss is the one on held-out minibatches, by which images are judged.
    """

    @jax.jit
    def run(learning_rate, data):
        sizes = {"count": options.tuning_size, "steps": options.horizon, "data": data}
        key = jax.random.key(TUNING_SEED)
        score = {"validation": validation}
        found = curves(make_family, name, learning_rate, key, **sizes, **score).losses
        return found[-1].mean(), found.mean(1).sum()

    scores = np.array([run(rate, data) for rate in grid], np.float64)
    scores[~np.isfinite(scores)] = np.inf
    final, summed = scores.argmin(0)
    return {"final": grid[final], "summed": grid[summed]}
