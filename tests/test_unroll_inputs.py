"""What `unroll` and its kin are given: any lengths, padding, keys, numbers, empty leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import actjax
from actjax._loop.plan import make_plan

pytestmark = pytest.mark.usefixtures("quick_compilation")
LOOPS = ("scan", "while")


def step(w, state, x, first):
    state = jnp.tanh(w * state + x)
    return state, jax.nn.sigmoid(state[:, 0])


@pytest.mark.parametrize(
    ("dtype", "time"),
    [(np.uint8, 5), (np.uint8, 200), (np.int8, 200), (np.uint16, 5), (np.uint32, 5), (list, 5)],
)
def test_lengths_of_any_integers(dtype, time):
    """Among them those that cannot hold T or a negative number, with lanes served from a queue."""
    lengths = [0, 5, 0, 2]
    given = lengths if dtype is list else np.array(lengths, dtype)
    run = lambda lengths: actjax.unroll(
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
    indexed = lambda w, s: jnp.tanh(w * s * jnp.arange(1.0, len(s) + 1)[:, None])
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


def by_division(w, state):
    return jnp.log(w * jax.lax.stop_gradient(state))


def by_a_power(w, state):
    return (w * jax.lax.stop_gradient(state)) ** -1


@pytest.mark.parametrize("term", [by_division, by_a_power])
def test_rows_that_were_never_written_give_no_nan(term):
    """The late product takes a whole chunk of iterations' rows, of which the last may be blank."""

    def divides(w, state, x, first):
        state = 2 + jnp.tanh(x + term(w, state))
        return state, jax.nn.sigmoid(state[:, 0])

    def total(w, loop):
        arguments = jnp.full((4, 3), 2.0), jnp.ones((4, 2, 3))
        return actjax.unroll(divides, w, *arguments, max_steps=5, lanes=4, loop=loop)[1].sum()

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
        "actjax._loop.adaptive.make_plan",
        lambda *a, **k: plans.append(make_plan(*a, **k)) or plans[-1],
    )
    jax.eval_shape(lambda model: model(jnp.ones((8, 20, 3)))[1], MODELS[kind](cell))
    assert [plan.late is not None for plan in plans] == [True]
    assert plans[0].chunk > 1


def layer_step(w, state, x, below, n):
    return step(w, state + below.deepest, x, n == 1)


def layers_of(state):
    """Five places, one layer in them."""
    places = jax.tree.map(lambda leaf: jnp.pad(leaf[:, None], ((0, 0), (0, 4), (0, 0))), state)
    return actjax.Layers(places, jnp.ones(len(jax.tree.leaves(state)[0]), jnp.int32))


def states_of(kind, w, state, xs, step=step, layer_step=layer_step, **options):
    """The states of every input, by one of the ways of `unroll` and its kin."""
    if kind == "repeat":
        return actjax.repeat(step, w, state, xs, repeats=2, **options)[1]
    if kind.startswith("layers"):
        layers = layers_of(state)
        loop = kind.removeprefix("layers-")
        return actjax.unroll_layers(layer_step, w, layers, xs, loop=loop, **options)[1].deepest
    return actjax.unroll(step, w, state, xs, max_steps=4, loop=kind, **options)[1]


KINDS = ("scan", "while", "layers-scan", "layers-while", "repeat")


@pytest.mark.parametrize("kind", KINDS)
def test_no_padding_is_too_bad(kind):
    lengths = np.array([1, 3, 0])

    def total(w, state, xs):
        return (states_of(kind, w, state, xs, lengths=lengths) ** 2).sum()

    xs = np.ones((3, 4, 2), np.float32)
    spoilt = np.where((np.arange(4) < lengths[:, None])[..., None], xs, np.nan)
    run = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    grads, grads_spoilt = (run(jnp.full((1, 2), 0.5), jnp.zeros((3, 2)), x) for x in (xs, spoilt))
    jax.tree.map(np.testing.assert_array_equal, grads_spoilt, grads)


@pytest.mark.parametrize(
    "make",
    [
        lambda: actjax.ACT(2, 4, max_steps=3, rngs=nnx.Rngs(0)),
        lambda: actjax.LFACT(2, 4, max_layers=3, rngs=nnx.Rngs(0)),
        lambda: actjax.RNN(2, 4, rngs=nnx.Rngs(0)),
    ],
)
def test_no_padding_of_the_networks_is_too_bad(make):
    lengths = np.array([1, 3])
    xs = np.ones((2, 4, 2), np.float32)
    spoilt = np.where((np.arange(4) < lengths[:, None])[..., None], xs, np.inf)
    run = jax.jit(jax.grad(lambda model, xs: model(xs, lengths=lengths)[1].sum()))
    jax.tree.map(np.testing.assert_array_equal, run(make(), spoilt), run(make(), xs))


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_plain_numbers(kind):
    """Typed PRNG keys among the parameters, one for each input, and numbers of Python."""
    keys = jax.random.split(jax.random.key(1), (3, 2))
    mixed = jax.random.key(2)

    def noisy(params, state, x, *rest):
        w, key = params
        x, own = x
        draw = jax.vmap(lambda k: jax.random.normal(k, (2,)))
        x = x + draw(own) + jax.random.normal(key, (1, 2)) + jax.random.normal(mixed, (1, 2))
        return step(w, state, x, rest[-1])

    def total(w):
        xs = jnp.ones((3, 2, 2)), keys
        arguments = (w, jax.random.key(0)), jnp.zeros((3, 2)), xs
        return states_of(kind, *arguments, step=noisy, layer_step=noisy).sum()

    assert np.isfinite(jax.jit(jax.grad(total))(0.5))
    xs, state = np.ones((3, 2, 2), np.float32), np.zeros((3, 2), np.float32)
    assert states_of(kind, 0.5, state, xs).shape == xs.shape


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_may_have_an_empty_leaf(kind):
    def with_nothing(w, state, x, *rest):
        new, halt = step(w, state[0], x, rest[-1])
        return (new, state[1]), halt

    def alone(w, state, x, *rest):
        return step(w, state, x, rest[-1])

    def total(w, state, taken):
        given = {"step": taken, "layer_step": taken}
        return jax.tree.leaves(states_of(kind, w, state, jnp.ones((3, 2, 2)), **given))[0].sum()

    state = jnp.zeros((3, 2))
    expected = jax.jit(jax.grad(lambda w: total(w, state, alone)))(0.5)
    grad = jax.jit(jax.grad(lambda w: total(w, (state, jnp.zeros((3, 0))), with_nothing)))(0.5)
    np.testing.assert_allclose(grad, expected, rtol=1e-5)


def test_effects_are_refused_by_the_adaptive_loop(capfd):
    def talks(w, state, x, first):
        jax.debug.print("x {}", x.sum())
        return step(w, state, x, first)

    arguments = talks, 0.5, jnp.zeros((1, 2)), jnp.ones((1, 1, 2))
    with pytest.raises(ValueError, match=r"no effects.*loop='scan'"):
        actjax.unroll(*arguments, max_steps=2)
    actjax.unroll(*arguments, max_steps=2, loop="scan")[1].block_until_ready()
    jax.effects_barrier()
    assert capfd.readouterr().out.count("x 2.0") == 2
