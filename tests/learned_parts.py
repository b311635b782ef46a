"""Small learned optimizers that the tests of `actjax.learned` share."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from actjax.learned import (
    CoordinatewiseLSTM,
    Graves,
    Head,
    HorizonPrior,
    MassRule,
    Softmax,
    StickBreaking,
    act_optimizer,
    lstm_optimizer,
)
from actjax.training.state import as_transformation

H = 3
POSTERIORS = (Softmax(HorizonPrior(0.7)), StickBreaking(HorizonPrior(0.7)), Graves())
PARAMS = {"w": jnp.array([[0.5, -1.0]]), "b": jnp.ones(())}


def network(seed=0, **options):
    return CoordinatewiseLSTM(H, rngs=nnx.Rngs(seed), **options)


def head(seed=1, **options):
    made = Head(H, width=2, rngs=nnx.Rngs(seed), **options)
    made.kernel[...] = jnp.ones_like(made.kernel[...])
    return made


def act(posterior=POSTERIORS[1], stop=MassRule(1.0), **options):  # noqa: B008
    return act_optimizer(network(), head(), posterior, stop=stop, **options)


def halting_at(step):
    return act(stop=lambda belief: belief.steps >= step)


OPTIMIZERS = {
    "lstm": lambda: lstm_optimizer(network()),
    "bfloat16": lambda: lstm_optimizer(network(), state_dtype=jnp.bfloat16),
    **{type(p).__name__: lambda p=p: act(p) for p in POSTERIORS},
}


def updates_of(optimizer, params, gradients, steps=2):
    """Every update over a few steps of one compiled scan."""
    optimizer = as_transformation(optimizer)

    @jax.jit
    def run(params, gradients):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(gradients, state, params, value=jnp.float32(1.0))
            return (optax.apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)

    (_, state), updates = run(params, gradients)
    return updates, state
