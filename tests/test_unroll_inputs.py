"""What `unroll` and its kin are given: any lengths, padding, keys, numbers, empty leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from actjax.plan import make_plan

pytestmark = pytest.mark.usefixtures("quick_compilation")
LOOPS = ("scan", "while")


def step(w, state, x, first):
    state = jnp.tanh(w * state + x)
    return state, jax.nn.sigmoid(state[:, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, list])
@pytest.mark.parametrize("time", [5, 200])
def test_lengths_of_any_integers(dtype, time):
    """Among them those that cannot hold T or a negative number, with lanes served from a queue."""
    lengths = [0, 5, 0, 2]
    given = lengths if dtype is list else np.array(lengths, dtype)
    run = lambda lengths: actjax.unroll(  # noqa: E731
        step, 0.5, jnp.zeros((4, 2)), jnp.ones((4, time, 2)), max_steps=4, lengths=lengths, lanes=2
    )
    _, states, ponder = run(given) if dtype is list else jax.jit(run)(given)
    live = np.arange(time) < np.array(lengths)[:, None]
    np.testing.assert_array_equal(ponder.steps > 0, live)
    np.testing.assert_array_equal(np.any(states, -1), live)


def by_noise(w, state):
    return w * jax.random.normal(jax.random.PRNGKey(3), state.shape)


def by_index(w, state):
    return w * jnp.arange(len(state), dtype=state.dtype)[:, None]


def by_table(w, state):
    return w * jnp.array([0.1, 0.7, -0.3, 0.5])[jnp.arange(len(state))][:, None]


def by_recomputation(w, state):
    """Row indices inside a call, which are no part of the trace's own equations."""
    indexed = lambda w, s: jnp.tanh(w * s * jnp.arange(1.0, len(s) + 1)[:, None])  # noqa: E731
    return jax.checkpoint(indexed)(w, jax.lax.stop_gradient(state))


def by_a_count(w, state):
    return w * state + w * (state * (1 / len(state)))


@pytest.mark.parametrize("term", [by_noise, by_index, by_table, by_recomputation, by_a_count])
def test_weights_that_meet_what_differs_by_row_have_their_gradients(term):
    """No batch of many iterations' rows repeats the rows that one iteration had."""

    def noisy(w, state, x, first):
        state = jnp.tanh(state + x + term(w, state))
        return state, jax.nn.sigmoid(state[:, 0])

    def total(w, loop):
        arguments = jnp.zeros((4, 3)), jnp.ones((4, 2, 3))
        return actjax.unroll(noisy, w, *arguments, max_steps=5, lanes=4, loop=loop)[1].sum()

    grads = [jax.jit(jax.grad(lambda w, loop=loop: total(w, loop)))(0.3) for loop in LOOPS]
    np.testing.assert_allclose(grads[1], grads[0], rtol=1e-5)


MODELS = {
    "act": lambda cell: actjax.ACT(3, 8, cell=cell, max_steps=4, rngs=nnx.Rngs(0)),
    "lfact": lambda cell: actjax.LFACT(3, 8, cell=cell, max_layers=4, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("cell", [nnx.SimpleCell, nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell])
def test_the_networks_take_their_weight_gradients_in_large_products(kind, cell, monkeypatch):
    plans = []
    monkeypatch.setattr(
        "actjax.loops.make_plan", lambda *a, **k: plans.append(make_plan(*a, **k)) or plans[-1]
    )
    jax.eval_shape(lambda model: model(jnp.ones((8, 20, 3)))[1], MODELS[kind](cell))
    assert [plan.late is not None for plan in plans] == [True]
    assert plans[0].chunk > 1
