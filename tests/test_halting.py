"""The halting rule against the equations, and what published implementations get wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from actjax import Ponder, halting_weights
from actjax.halting import halting_dtype
from tests import reference

EPSILON = 0.01


def slow_rule(halts):
    """N, R and the weights, through the reference's loop over a state that holds nothing."""
    halts = iter(halts)
    step = lambda state, x, first: (state, next(halts))
    _, n, remainder, weights = reference.ponder_one(
        step, [np.zeros(1)], None, max_steps=12, epsilon=EPSILON
    )
    return n, remainder, weights


def test_weights_follow_the_equations():
    rng = np.random.default_rng(0)
    halts = rng.uniform(0, 1, (500, 12)) ** rng.choice([0.5, 1, 3, 8], (500, 1))
    rule = halting_weights(jnp.asarray(halts, jnp.float32), epsilon=EPSILON)
    for row, weights, steps, remainder in zip(halts.astype(np.float32), *rule, strict=True):
        n, r, p = slow_rule(row)
        assert steps == n
        np.testing.assert_allclose(remainder, r, atol=1e-6)
        np.testing.assert_allclose(weights, p + [0] * (12 - n), atol=1e-6)
    np.testing.assert_allclose(rule.weights.sum(-1), 1, atol=1e-6)
    assert {1, 12} < set(np.asarray(rule.steps).tolist())


def test_the_limit_keeps_all_mass():
    rule = halting_weights(jnp.full(4, 0.1))
    assert rule.steps == 4
    np.testing.assert_allclose(rule.weights, [0.1, 0.1, 0.1, 0.7], rtol=1e-6)


def test_one_step_costs_two():
    rule = halting_weights(jnp.array([0.995, 0.5]))
    assert Ponder(rule.steps, rule.remainder).cost == 2


@pytest.mark.parametrize(("first", "steps"), [(0.99, 1), (0.9899, 2)])
def test_epsilon_lets_a_first_step_halt(first, steps):
    assert halting_weights(jnp.array([first, 0.5], jnp.float32), epsilon=0.01).steps == steps


def test_gradient_is_that_of_the_paper():
    halts = jnp.array([0.3, 0.4, 0.6, 0.2])
    values, tau = jnp.array([1.0, -2.0, 0.5, 9.0]), 0.7

    def loss(halts):
        rule = halting_weights(halts)
        return rule.weights @ values + tau * rule.remainder

    # N = 3: dL/dh^n = v^n - v^N - tau below N, and 0 from N on (eqs 14 to 20).
    np.testing.assert_allclose(jax.grad(loss)(halts), [1 - 0.5 - tau, -2.5 - tau, 0, 0], atol=1e-6)


def test_bfloat16_is_summed_in_float32():
    rule = halting_weights(jnp.full(300, 0.004, jnp.bfloat16))
    assert rule.weights.dtype == jnp.float32
    assert int(rule.steps) == np.ceil(0.99 / float(jnp.bfloat16(0.004)))


def test_the_dtype_of_halting_needs_no_promotion():
    with jax.numpy_dtype_promotion("strict"):
        found = [halting_dtype(d) for d in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64)]
    assert found == [jnp.float32, jnp.float32, jnp.float32, jnp.float64]
