"""`minimize` with any optimizer, and complex parameters everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from actjax.learned import (
    LearnedOptimizer,
    lstm_optimizer,
    meta,
    minimize,
)
from actjax.learned.problems import (
    Family,
)
from actjax.training.state import as_optax_computes
from tests.learned_parts import (
    OPTIMIZERS,
    halting_at,
    network,
    updates_of,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


# Derivatives


@pytest.mark.parametrize("make", [lambda: lstm_optimizer(network()), lambda: halting_at(3)])
def test_what_minimize_finds_has_a_derivative_in_forward_mode(make):
    """That of a loop of known length, which has one in reverse mode."""
    optimizer, start = make(), jnp.array([0.5, -1.0])

    def loss(x, target):
        return jnp.sum((x - target) ** 2)

    def found(target):
        return minimize(optimizer, lambda x: loss(x, target), start, max_steps=3).loss

    def looped(target):
        def step(carry, _):
            x, state = carry
            value, slope = jax.value_and_grad(loss)(x, target)
            updates, state = optimizer.update(slope, state, x, value=value)
            return (x + updates, state), None

        (x, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=3)
        return loss(x, target)

    target = jnp.array([0.3, 0.7])
    forward, reverse = jax.jit(jax.jacfwd(found))(target), jax.jit(jax.grad(looped))(target)
    np.testing.assert_allclose(forward, reverse, rtol=1e-5)
    assert np.abs(forward).min() > 0.1


# Complex parameters


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1), optax.adam(0.1), optax.lbfgs(), optax.polyak_sgd()],
    ids=["sgd", "adam", "lbfgs", "polyak"],
)
def test_complex_parameters_go_downhill(optimizer):
    loss = lambda z: jnp.abs(z["a"] - 0.3 - 0.7j) ** 2 + (z["b"] - 1) ** 2
    found = minimize(optimizer, loss, {"a": 1 + 2j, "b": 0.0}, max_steps=100)
    assert abs(found.params["a"] - 0.3 - 0.7j) < 1e-2 and found.loss < 1e-3
    assert found.params["a"].dtype == jnp.result_type(complex)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_complex_number_is_two_coordinates(make):
    pair = {"a": jnp.array([0.5, -2.0]), "b": jnp.array([1e-6, 3.0])}
    both = jax.lax.complex(pair["a"], pair["b"])
    apart, _ = updates_of(make(), pair, pair)
    found, _ = updates_of(make(), both, both)
    np.testing.assert_allclose(found.real, apart["a"], rtol=1e-5)
    np.testing.assert_allclose(found.imag, apart["b"], rtol=1e-5)
    assert np.abs(found.imag).min() > 0


@pytest.mark.parametrize("second_order", [False, True])
def test_problems_in_complex_parameters_are_those_in_real_ones(second_order):
    def sample(key):
        return jnp.array([0.2 + 0.1j, -0.4j]), jax.random.normal(key, (4,))

    def loss(z, data, key):
        return jnp.sum(jnp.abs(z * (1 + 2j) - jax.lax.complex(data[:2], data[2:])) ** 2)

    twin = Family(
        lambda key: (lambda z, data: ((z.real, z.imag), data))(*sample(key)),
        lambda pair, data, key: loss(jax.lax.complex(*pair), data, key),
        None,
        None,
    )

    def value(learned, family):
        start = meta.start(learned.network, family, jax.random.key(0), 3)
        return meta.unroll(learned, family, start, 3, second_order=second_order)[1].losses.sum()

    learned = LearnedOptimizer(network(layers=1))
    (a, da), (b, db) = (
        jax.jit(jax.value_and_grad(lambda o, family=family: value(o, family)))(learned)
        for family in (Family(sample, loss, None, None), twin)
    )
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(da), jax.tree.leaves(db), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * float(jnp.abs(y).max()))


# Optimizers that look at the loss


def bowl(x):
    return jnp.sum(jnp.array([1.0, 30.0]) * (x - 1) ** 2)


SEARCHES = {
    "lbfgs": optax.lbfgs(),
    "polyak": optax.polyak_sgd(),
    "plateau": optax.chain(optax.sgd(0.03), optax.contrib.reduce_on_plateau(patience=3)),
    "momo": optax.contrib.momo(0.1),
    "backtracking": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20, store_grad=True)
    ),
    "behind": optax.chain(optax.lbfgs(), optax.scale(0.5)),
    "wrapped": optax.apply_if_finite(optax.lbfgs(), 3),
    "adam": optax.adam(0.1),
}


@pytest.mark.parametrize("optimizer", SEARCHES.values(), ids=SEARCHES)
def test_minimize_is_the_loop_of_optax_documents(optimizer):
    found = jax.jit(lambda x: minimize(optimizer, bowl, x, max_steps=9))(jnp.zeros(2))
    optimizer = optax.with_extra_args_support(optimizer)

    @jax.jit
    @as_optax_computes()
    def step(params, state):
        value, grad = jax.value_and_grad(bowl)(params)
        more = {"value": value, "grad": grad, "value_fn": bowl}
        updates, state = optimizer.update(grad, state, params, **more)
        return optax.apply_updates(params, updates), state

    params = jnp.zeros(2)
    state = optimizer.init(params)
    for _ in range(9):
        params, state = step(params, state)
    np.testing.assert_allclose(found.params, params, rtol=1e-4, atol=1e-5)
    assert found.loss < 0.7 * bowl(jnp.zeros(2)) and int(found.steps) == 9


def test_a_search_with_the_last_word_is_not_asked_twice():
    def evaluations(optimizer):
        text = str(jax.make_jaxpr(lambda x: minimize(optimizer, bowl, x, max_steps=2))(1.0))
        return text.count("cond[")

    assert evaluations(optax.lbfgs()) > evaluations(SEARCHES["behind"])
