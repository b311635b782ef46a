"""A user's script as a type checker sees it: `make types`. It is not run.

What the public names take and give is said by their annotations, and `assert_type` fails where one
is not what it was meant to be.
"""

from collections.abc import Callable
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import actjax
from actjax import budget, halting, learned, losses, tasks, training
from actjax.learned import problems


def step(params: jax.Array, state: jax.Array, x: jax.Array, first: jax.Array):
    return jnp.tanh(params * state + x), jax.nn.sigmoid(state[:, 0])


def pure_functions(state: jax.Array, xs: jax.Array) -> None:
    _, record = actjax.ponder(step, 0.5, state, xs[:, 0], max_steps=3)
    assert_type(record, actjax.Ponder)
    _, _, record = actjax.unroll(step, 0.5, state, xs, max_steps=3, loop="scan", lengths=[1, 2])
    assert_type(record.steps, jax.Array)
    assert_type(record.cost, jax.Array)
    layers = actjax.Layers(state, jnp.ones(3, int))
    assert_type(layers.present, jax.Array)
    weights = actjax.halting_weights(jnp.array([0.5, 0.6]))
    assert_type(weights, halting.HaltingWeights)


def networks(xs: jax.Array) -> None:
    model = actjax.ACT(3, 8, cell=nnx.LSTMCell, max_steps=5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    model.max_steps = 10
    both = actjax.Seq2Seq(model, model)
    decoded = both(xs, steps=3)
    assert_type(decoded, actjax.Decoded)
    assert_type(decoded.ponder, actjax.Ponder)
    for result in actjax.stream(model, [np.ones((4, 3))], lanes=2):
        assert_type(result, actjax.Result)
        assert_type(result.index, int)
    actjax.LFACT(3, 8, max_layers=4, combine="mlp", rngs=nnx.Rngs(0))
    actjax.RNN(3, 8, rngs=nnx.Rngs(0))
    actjax.Repeat(3, 8, repeats=2, rngs=nnx.Rngs(0))


def own_training(model: actjax.ACT) -> None:
    adam = optax.adam(1e-3)

    def sample(key: jax.Array, data: Any) -> tasks.Batch:
        return tasks.parity.sample(key, 8, bits=4)

    def loss(model: actjax.ACT, batch: tasks.Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, outputs, record = model(batch.inputs)
        return (outputs**2).mean() + record.cost.mean(), losses.ponder_metrics(record)

    train_step = training.make_train_step(sample, loss, adam, mesh=training.make_mesh())
    state = training.init_state(model, adam)
    assert_type(state, training.TrainState)
    state = training.fit(train_step, state, key=jax.random.key(0), steps=3)
    assert_type(state.step, jax.Array)
    states = training.stack_states(lambda key: state, jnp.ones(3))
    swept = training.sweep(train_step, states, keys=jax.random.split(jax.random.key(0)), steps=3)
    assert_type(swept, training.Sweep)
    controller = budget.hold(3.0)
    assert_type(controller.update(controller.init(), jnp.ones(())).tau, jax.Array)


def optimizers(loss: Callable[[Any], jax.Array], params: Any) -> None:
    network = learned.CoordinatewiseLSTM(rngs=nnx.Rngs(0))
    act = learned.act_optimizer(network, learned.Head(20, rngs=nnx.Rngs(0)))
    assert_type(act, optax.GradientTransformationExtraArgs)
    found = learned.minimize(act, loss, params, max_steps=10)
    assert_type(found, learned.Minimum)
    assert_type(found.steps, jax.Array)
    assert_type(problems.quadratic(10), problems.Family)
