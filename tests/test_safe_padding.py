"""What is computed for nothing, padding and the steps after halting, never makes a NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from tests.test_unroll_inputs import KINDS, states_of

pytestmark = pytest.mark.usefixtures("quick_compilation")
TABLE = jnp.linspace(-1.0, 1.0, 15).reshape(5, 3)


def looked_up(weights, state, index, *rest):
    """NaN for an index past the table's end."""
    state = jnp.tanh(state @ weights + jnp.take(TABLE, index, axis=0))
    return state, jax.nn.sigmoid(state[:, 0])


def by_its_norm(weights, state, x, *rest):
    """Infinitely steep at an input of zero."""
    state = jnp.tanh(state @ weights + x / jnp.sqrt((x**2).sum(-1, keepdims=True)))
    return state, jax.nn.sigmoid(state[:, 0])


def with_keys(weights, state, x, *rest):
    """Keys among the inputs, and the logarithm of another that is positive."""
    key, rate = x
    noise = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(key)
    state = jnp.tanh(state @ weights + noise * jnp.log(rate)[:, None])
    return state, jax.nn.sigmoid(state[:, 0])


def inputs(step, lengths):
    """Inputs that the step can take up to each length, and padding that it cannot take."""
    live = np.arange(3)[None] < np.array(lengths)[:, None]
    if step is looked_up:
        return jnp.asarray(np.where(live, 2, 99))
    if step is by_its_norm:
        return jnp.asarray(np.where(live[..., None], np.ones(3, np.float32), 0))
    keys = jax.random.split(jax.random.key(0), live.shape)
    return keys, jnp.asarray(np.where(live, np.float32(0.5), -1))


def finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("step", [looked_up, by_its_norm, with_keys])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_whatever_the_padding_holds(kind, step):
    """Sequences of all lengths, none at all among them, and a batch of nothing but padding."""

    def total(weights, state, xs, lengths):
        options = {} if kind in ("repeat", "scan", "layers-scan") else {"lanes": 2}
        given = {"step": step, "layer_step": step}
        states = states_of(kind, weights, state, xs, lengths=lengths, **given, **options)
        return (states**2).sum()

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    for lengths in ([3, 1, 0, 2], [0, 0, 0, 0]):
        xs = inputs(step, lengths)
        value, grads = run(jnp.eye(3), jnp.zeros((4, 3)), xs, jnp.array(lengths))
        assert np.isfinite(value) and finite(grads)
        assert np.any(grads[0]) == any(lengths)


class LoudCell(nnx.SimpleCell):
    """A cell that `actjax` does not know, infinitely steep at an input of zero."""

    def __call__(self, carry, inputs):
        x = inputs[:, :3]
        return super().__call__(carry, jnp.sqrt(jnp.abs(x)) / jnp.sqrt((x**2).sum(-1))[:, None])


MODELS = {
    "act": lambda: actjax.ACT(3, 4, cell=loud, max_steps=3, rngs=nnx.Rngs(0)),
    "act-scan": lambda: actjax.ACT(3, 4, cell=loud, max_steps=3, loop="scan", rngs=nnx.Rngs(0)),
    "repeat": lambda: actjax.Repeat(3, 4, cell=loud, repeats=2, rngs=nnx.Rngs(0)),
    "lfact": lambda: actjax.LFACT(3, 4, cell=loud, max_layers=3, rngs=nnx.Rngs(0)),
}


def loud(in_features, hidden_features, *, rngs):
    return LoudCell(3, hidden_features, rngs=rngs)


@pytest.mark.parametrize("name", MODELS)
def test_the_networks_too(name):
    xs = jnp.where(jnp.arange(3)[None, :, None] < jnp.array([3, 1, 0])[:, None, None], 1.0, 0.0)
    xs = jnp.broadcast_to(xs, (3, 3, 3))
    loss = lambda model: (model(xs, lengths=jnp.array([3, 1, 0]))[1] ** 2).sum()
    assert finite(jax.jit(jax.value_and_grad(loss))(MODELS[name]()))


def test_no_lane_of_a_stream_is_given_padding():
    """The lanes without a sequence and the ends of chunks are met by no NaN check either."""
    with jax.debug_nans(True):
        results = actjax.stream_batch(
            MODELS["act"](), [np.ones((n, 3), np.float32) for n in (3, 1)], lanes=3, chunk=2
        )
    assert [len(result.outputs) for result in results] == [3, 1]


@pytest.mark.parametrize("loop", ["scan", "while"])
def test_rows_that_have_halted_do_not_overflow(loop):
    """p = 3: after two steps of M = 100 it is 0.6 * 3 + 0.4 * 9, and the hundredth would be inf."""
    step = lambda p, state, x, *rest: (state * p, jnp.full(len(state), 0.6))
    arguments = jnp.ones((1, 1)), jnp.ones((1, 1, 1))
    mean = lambda p: actjax.unroll(step, p, *arguments, max_steps=100, loop=loop)[1].sum()
    value, grad = jax.jit(jax.value_and_grad(mean))(3.0)
    np.testing.assert_allclose([value, grad], [5.4, 3.0], rtol=1e-6)

    start = actjax.Layers(jnp.ones((1, 100, 1)), jnp.ones(1, jnp.int32))
    deepest = lambda p: actjax.unroll_layers(step, p, start, arguments[1], loop=loop)[1].deepest
    value, grad = jax.jit(jax.value_and_grad(lambda p: deepest(p).sum()))(3.0)
    np.testing.assert_allclose([value, grad], [9.0, 6.0], rtol=1e-6)


def test_repetitions_of_padding_do_not_overflow():
    """Thirty a input are 1e30 at 10; the padding of the second would be 1e60."""
    step = lambda p, state, x, *rest: (state * p, jnp.full(len(state), 0.6))
    final = lambda p: actjax.repeat(
        step, p, jnp.ones((2, 1)), jnp.ones((2, 2, 1)), repeats=30, lengths=jnp.array([1, 0])
    )[0].sum()
    value, grad = jax.jit(jax.value_and_grad(final))(10.0)
    np.testing.assert_allclose([value, grad], [1e30, 3e30], rtol=1e-5)
