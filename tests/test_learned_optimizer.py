"""Learned optimizers as Optax citizens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from actjax.learned import (
    CoordinatewiseLSTM,
    Graves,
    Head,
    HorizonPrior,
    LearnedOptimizer,
    MassRule,
    Softmax,
    StickBreaking,
    act_optimizer,
    lstm_optimizer,
    meta,
    minimize,
)
from actjax.learned.network import GroupedLSTM, lstm_gates
from actjax.learned.problems import quadratic, regression

pytestmark = pytest.mark.usefixtures("quick_compilation")
H = 4
FAMILY = quadratic(3, "gaussian")
PARAMS = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(()), "none": jnp.zeros((0, 2))}
POSTERIOR = StickBreaking(HorizonPrior(0.7))


def network(seed=0, **options):
    return CoordinatewiseLSTM(H, rngs=nnx.Rngs(seed), **options)


def head(seed=1):
    made = Head(H, width=3, bias=-1.0, rngs=nnx.Rngs(seed))
    made.kernel[...] = jnp.array([3.0, -2.0, 4.0])
    return made


def act(**options):
    return act_optimizer(network(), head(), POSTERIOR, **options)


def run(optimizer, params, gradients, steps=3):
    """Every update over a few steps, under jit."""

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradients, state, params, value=jnp.ones(()))
        return optax.apply_updates(params, updates), state, updates

    optimizer = optax.with_extra_args_support(optimizer)
    state, found = optimizer.init(params), []
    for _ in range(steps):
        params, state, updates = step(params, state)
        found.append(updates)
    return found, state


def reference_lstm(kernel, x, h, c):
    z = kernel @ np.concatenate([x, h, np.ones((1, x.shape[1]))])
    i, f, o, g = np.split(z, 4)
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def test_network_is_the_papers_equations():
    net = network(output_scale=0.5)
    gradient = np.array([0.3, -1e-6, 20.0])
    state, update = net(net.initial_state(jnp.zeros(3)), jnp.asarray(gradient, jnp.float32))
    x = np.array([[np.log(0.3) / 10, -1, np.log(20) / 10], [1, -1e-6 * np.exp(10), 1]])
    for layer, kernel in enumerate(net.kernels):
        x, c = reference_lstm(np.asarray(kernel[...]), x, np.zeros((H, 3)), np.zeros((H, 3)))
        np.testing.assert_allclose(state.cell[layer], c, rtol=1e-5, atol=1e-6)
    expected = 0.5 * np.asarray(net.output_kernel[...]) @ x
    np.testing.assert_allclose(update, expected, rtol=1e-4, atol=2e-7)  # sums of terms near 1


def test_gates_have_the_derivative_of_their_formula():
    def plain(z, c):
        i, f, o, g = jnp.split(z, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return c, jax.nn.sigmoid(o) * jnp.tanh(c)

    z, c = (jax.random.normal(jax.random.key(n), (rows, 5)) for n, rows in ((0, 4 * H), (1, H)))
    weigh = lambda pair: (pair[0] * 0.7 + pair[1] ** 2).sum()
    modes = {
        "reverse": lambda f: jax.grad(f, argnums=(0, 1)),
        "forward": lambda f: lambda z, c: jax.jvp(f, (z, c), (c[:1] * z, -c)),
        "forward over reverse": lambda f: (
            lambda z, c: jax.jvp(jax.grad(f, argnums=(0, 1)), (z, c), (c[:1] * z, -c))
        ),
        "reverse over reverse": lambda f: jax.grad(
            lambda z, c: sum((d**2).sum() for d in jax.grad(f, argnums=(0, 1))(z, c)), (0, 1)
        ),
    }
    for mode in modes.values():
        found, wanted = (
            jax.tree.leaves(jax.jit(mode(lambda z, c, f=f: weigh(f(z, c))))(z, c))
            for f in (lstm_gates, plain)
        )
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)  # sums of terms near 1
    _, back = jax.vjp(lstm_gates, z, c)  # which keeps z and c, and a factor for each row of z
    assert sum(leaf.size for leaf in jax.tree.leaves(back)) <= z.size + c.size + len(z)


def unhalted():
    """An ACT optimizer that never stops."""
    return act(stop=lambda belief: belief.steps < 0)


@pytest.mark.parametrize("make", [lambda: lstm_optimizer(network()), unhalted])
def test_optax_contract(make):
    gradients = jax.tree.map(lambda p: jnp.cos(p), PARAMS)
    updates, state = run(make(), PARAMS, gradients)
    assert jax.tree.structure(updates[0]) == jax.tree.structure(PARAMS)
    assert jax.tree.map(jnp.shape, updates[0]) == jax.tree.map(jnp.shape, PARAMS)
    assert int(state.count) == 3 and np.abs(updates[2]["w"]).min() > 0
    # one leaf at a time moves as all together do: the network is coordinatewise
    alone, _ = run(lstm_optimizer(network()), PARAMS["w"], gradients["w"])
    np.testing.assert_allclose(alone[2], updates[2]["w"], rtol=1e-5, atol=2e-7)
    chained, _ = run(optax.chain(optax.scale(1.0), make(), optax.scale(-2.0)), PARAMS, gradients)
    np.testing.assert_allclose(chained[2]["w"], -2 * updates[2]["w"], rtol=1e-5, atol=2e-7)
    masked, _ = run(optax.masked(make(), {"w": False, "b": True, "none": True}), PARAMS, gradients)
    np.testing.assert_allclose(masked[0]["w"], gradients["w"])
    assert float(masked[0]["b"]) == pytest.approx(float(updates[0]["b"]), rel=1e-5, abs=2e-7)
    injected, _ = run(
        optax.inject_hyperparams(lambda scale: optax.chain(make(), optax.scale(scale)))(0.5),
        PARAMS,
        gradients,
    )
    np.testing.assert_allclose(injected[1]["w"], 0.5 * updates[1]["w"], rtol=1e-5, atol=2e-7)
    halves = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    assert run(make(), halves, halves, 1)[0][0]["w"].dtype == jnp.bfloat16


def test_groups_are_partitions():
    first, second = network(0), network(5)
    params = {"a": jnp.ones(2), "b": jnp.arange(3.0)}
    together, _ = run(lstm_optimizer(GroupedLSTM([first, second], (2, 3))), params, params)
    apart, _ = run(
        optax.partition(
            {"a": lstm_optimizer(first), "b": lstm_optimizer(second)}, {"a": "a", "b": "b"}
        ),
        params,
        params,
    )
    for name in params:
        np.testing.assert_allclose(together[2][name], apart[2][name], rtol=1e-5, atol=2e-7)


def test_updates_are_zero_after_halting():
    updates, state = run(act(stop=lambda belief: belief.steps >= 2), PARAMS, PARAMS, steps=4)
    assert bool(state.halted) and int(state.count) == 2
    assert np.abs(updates[1]["w"]).min() > 0
    assert not any(np.any(leaf) for late in updates[2:] for leaf in jax.tree.leaves(late))
    assert 0 < float(state.posterior.mass) < 1


@pytest.mark.parametrize("made_there", [False, True])
@pytest.mark.parametrize("posterior", [Softmax(HorizonPrior(0.7)), POSTERIOR, Graves()], ids=type)
def test_float32_parameters_are_minimised_under_x64(posterior, made_there):
    with jax.enable_x64(False):
        made = (network(layers=1), head())
    with jax.enable_x64(True):
        optimizer = act_optimizer(
            *((network(layers=1), head()) if made_there else made), posterior, stop=MassRule(1.0)
        )
        params = jnp.zeros(3, jnp.float32)
        found = minimize(optimizer, lambda x: ((x - 1) ** 2).sum(), params, max_steps=2)
    assert int(found.steps) == 2 and found.params.dtype == jnp.float32
    assert found.state.memory.dtype == (jnp.float64 if made_there else jnp.float32)
    assert found.state.posterior.logit.dtype == jnp.float32


@pytest.mark.parametrize("nonfinite", ["skip", "halt"])
@pytest.mark.parametrize("make", [lambda **o: lstm_optimizer(network(), **o), act])
def test_nonfinite_gradients_do_not_spread(make, nonfinite):
    optimizer = make(nonfinite=nonfinite)
    params = jnp.ones(3)
    good, bad = jnp.ones(3), jnp.array([1.0, jnp.nan, 1.0])
    state = optimizer.init(params)
    updates, state = optimizer.update(bad, state, params, value=jnp.ones(()))
    assert not np.any(updates) and int(state.skipped) == 1 and int(state.count) == 0
    updates, state = optimizer.update(good, state, params, value=jnp.ones(()))
    fresh = optimizer.update(good, optimizer.init(params), params, value=jnp.ones(()))[0]
    np.testing.assert_allclose(updates, fresh if nonfinite == "skip" else 0 * fresh)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.memory))


def test_minimize_stops_each_problem_by_itself():
    keys = jax.random.split(jax.random.key(5), 6)
    optimizer = act(stop=MassRule(0.95))
    starts, data = jax.vmap(FAMILY.sample)(keys)

    def solve(start, data):
        return minimize(optimizer, lambda p: FAMILY.loss(p, data), start, max_steps=30)

    together = jax.jit(jax.vmap(solve))(starts, data)
    steps = []
    one = jax.jit(solve)
    for n in range(6):
        alone = one(*jax.tree.map(lambda leaf, n=n: leaf[n], (starts, data)))
        steps.append(int(alone.steps))
        np.testing.assert_allclose(alone.params, together.params[n], rtol=1e-4, atol=1e-5)
    assert steps == list(together.steps) and bool(together.halted.all())
    assert len(set(steps)) > 1 and max(steps) < 30


def test_minimize_is_what_meta_training_unrolls():
    learned = LearnedOptimizer(network(), head())
    rollout = meta.start(learned.network, FAMILY, jax.random.key(0), 2)
    after, curves = jax.jit(lambda r: meta.unroll(learned, FAMILY, r, 5))(rollout)
    data = jax.tree.map(lambda leaf: leaf[..., 1], rollout.data)
    never = act(stop=lambda belief: belief.steps < 0)
    found = minimize(never, lambda p: FAMILY.loss(p, data), rollout.params[:, 1], max_steps=5)
    np.testing.assert_allclose(found.params, after.params[:, 1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.loss, curves.losses[4, 1], rtol=1e-4)
    mass = 1 - np.prod(1 - jax.nn.sigmoid(curves.scores[:, 1]))
    np.testing.assert_allclose(found.state.posterior.mass, mass, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CoordinatewiseLSTM(0, rngs=nnx.Rngs(0)), "hidden_features must be"),
        (lambda: CoordinatewiseLSTM(4, preprocess="x", rngs=nnx.Rngs(0)), "preprocess must be"),
        (lambda: lstm_optimizer(network(), nonfinite="no"), "nonfinite must be"),
        (lambda: MassRule(2.0), "threshold must be a number from 0 to 1, got 2.0."),
        (
            lambda: act().update(jnp.ones(2), act().init(jnp.ones(2)), jnp.ones(2)),
            "value must be the loss",
        ),
        (
            lambda: minimize(optax.sgd(0.1), jnp.sum, jnp.ones(2), max_steps=0),
            "max_steps must be an integer of at least 1, got 0",
        ),
        *(
            (
                lambda steps=steps: minimize(optax.sgd(0.1), jnp.sum, jnp.ones(2), max_steps=steps),
                f"max_steps must be an integer of at least 1, got {said}",
            )
            for steps, said in (
                (2.5, "2.5"),
                (True, "True"),
                (jnp.float32(2), "float32"),
                (jnp.int32(0), "0"),
            )
        ),
        (
            lambda: meta.unroll(
                LearnedOptimizer(network(see_params=True)), FAMILY, None, 2, drawn=jnp.arange(2)
            ),
            "drawn must be None but for first-order",
        ),
        (lambda: regression(beta=-1.0), "beta must be a number above 0, got -1.0."),
        (lambda: quadratic(draw="x"), "draw must be"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
