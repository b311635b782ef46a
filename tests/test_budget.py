"""Tau controllers on a simulated plant: a network whose ponder follows tau slowly and noisily."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from actjax import budget


def plant(ponder, tau, key, *, exponent=0.4, speed=0.01, noise=0.2):
    """A network's mean ponder one update on: it drifts to tau's own level, between 2 and 21."""
    level = jnp.clip(1 + 0.5 * tau**-exponent, 2.0, 21.0)
    return ponder + speed * (level - ponder) + noise * speed * jax.random.normal(key)


@functools.partial(jax.jit, static_argnames=("controller", "updates", "speed"))
def simulate(controller, state, ponder, *, updates, speed=0.01):
    def update(carry, index):
        state, ponder = carry
        key = jax.random.fold_in(jax.random.key(0), index)
        ponder = plant(ponder, state.tau, key, speed=speed)
        state = controller.update(state, ponder)
        return (state, ponder), (ponder, state.tau)

    first = state.updates
    return jax.lax.scan(update, (state, ponder), first + jnp.arange(updates))


@pytest.mark.parametrize("tau", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("target", [3.0, 8.0])
def test_hold_reaches_its_budget_from_any_tau(target, tau):
    controller = budget.hold(target, tau=tau)
    _, (ponder, taus) = simulate(controller, controller.init(), jnp.asarray(4.0), updates=20_000)
    np.testing.assert_allclose(ponder[-2000:].mean(), target, rtol=0.02)
    assert ponder[-2000:].std() < 0.05 * target
    assert taus.max() <= 1.001


@pytest.mark.parametrize("tau", [1e-5, 1e-1])
def test_hold_does_not_overshoot_where_the_network_is_slow(tau):
    """A network that has solved its task has no reason to ponder more again."""
    controller = budget.hold(3.0, tau=tau)
    start = (controller.init(), jnp.asarray(4.0))
    _, (ponder, _) = simulate(controller, *start, updates=10_000, speed=1e-3)
    assert ponder.min() > 2.7
    np.testing.assert_allclose(ponder[-4000:], 3.0, rtol=0.1)


@pytest.mark.parametrize("tau", [1e-3, 1.0])
def test_hold_lets_no_start_press_halting_to_one_step(tau):
    """There no gradient is left: a network that has come to a ponder of 2 stays there."""
    controller = budget.hold(3.0, tau=tau)

    def update(carry, index):
        state, ponder = carry
        after = plant(ponder, state.tau, jax.random.fold_in(jax.random.key(0), index))
        after = jnp.where(ponder < 2.05, ponder, after)
        state = controller.update(state, after)
        return (state, after), after

    start = controller.init(), jnp.asarray(2.6)
    _, ponder = jax.jit(lambda: jax.lax.scan(update, start, jnp.arange(10_000)))()
    assert ponder.min() > 2.5
    np.testing.assert_allclose(ponder[-4000:], 3.0, rtol=0.1)


def test_a_measured_ponder_of_nothing_leaves_tau_a_number():
    for proportional, expected in ((0, 1.0), (12.0, 0.0)):
        controller = budget.hold(3.0, proportional=proportional)
        state = controller.update(controller.init(), 0.0)
        assert float(state.tau) == pytest.approx(expected * float(state.dual))
        assert 0 < state.dual < 1e-3


def test_hold_stops_at_its_limits_and_comes_back():
    controller = budget.hold(3.0, tau=0.1, min_tau=0.05, max_tau=0.2)
    state = controller.init()
    push = jax.jit(
        lambda state, ponder: jax.lax.fori_loop(
            0, 3000, lambda _, s: controller.update(s, ponder), state
        )
    )
    above = push(state, 9.0)
    assert np.isclose(above.dual, 0.2) and above.tau == above.dual
    below = push(above, 2.0)
    assert np.isclose(below.dual, 0.05) and below.tau == 0
    assert push(below, 9.0).tau > 0.1  # no wind-up: a long stay at a limit is not remembered


def test_hold_resumes_to_the_same_numbers():
    controller = budget.hold(3.0)
    start = (controller.init(), 4 * jnp.ones(()))  # not of a weak type, which is lost on the way
    whole, _ = simulate(controller, *start, updates=600)
    half, _ = simulate(controller, *start, updates=300)
    rest, _ = simulate(controller, *half, updates=300)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(rest), strict=True):
        np.testing.assert_array_equal(a, b)


def test_hold_maps_over_an_ensemble_of_budgets():
    targets, taus = jnp.array([3.0, 5.0]), jnp.array([1e-2, 1e-4])

    def first_update(target, tau):
        controller = budget.hold(target, tau=tau)
        return controller.update(controller.init(), 4.0)

    states = jax.vmap(first_update)(targets, taus)
    for i in range(2):
        alone = budget.hold(float(targets[i]), tau=float(taus[i]))
        expected = alone.update(alone.init(), 4.0)
        np.testing.assert_allclose(states.tau[i], expected.tau, rtol=1e-6)


def test_fixed_and_schedule_only_watch_the_ponder():
    controller = budget.fixed(0.0)
    state = controller.update(controller.update(controller.init(), 4.0), 2.0)
    assert (state.tau, state.ponder, state.updates) == (0.0, 3.0, 2)
    controller = budget.schedule(optax.linear_schedule(1.0, 0.0, 4))
    state = controller.init()
    assert state.tau == 1.0
    assert controller.update(controller.update(state, 4.0), 4.0).tau == 0.5


def test_advice_only_where_halting_is_stuck():
    assert "collapsed to one step" in budget.halting_advice(1.001, max_steps=100)
    assert "limit (mean N = 99.0 of max_steps = 100)" in budget.halting_advice(99.0, max_steps=100)
    assert "a ponder budget" in budget.halting_advice(1.0, max_steps=100)
    assert "a ponder budget" not in budget.halting_advice(1.0, max_steps=100, held=True)
    assert budget.halting_advice(1.5, max_steps=100) is None
    assert budget.halting_advice(90.0, max_steps=100) is None
    assert budget.halting_advice(1.0, max_steps=1) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: budget.hold(2.0), "ponder must be above 2, the cost of one step, got 2.0"),
        (lambda: budget.hold(3.0, tau=2.0), "tau must be from 1e-06 to 1, got 2.0"),
        (
            lambda: budget.hold(3.0, min_tau=0.0),
            "min_tau must be above 0 and below max_tau = 1.0, got 0.0",
        ),
        (lambda: budget.hold(3.0, integral=-1.0), "integral must be at least 0, got -1.0"),
        (lambda: budget.hold(3.0, window=0), "window must be an integer of at least 1, got 0"),
        (lambda: budget.fixed(-1.0), "tau must be at least 0, got -1.0"),
        (lambda: budget.warm_up("a", 10), "tau must be at least 0, got 'a'"),
        (lambda: budget.warm_up(float("inf"), 10), "tau must be at least 0, got inf"),
        (lambda: budget.hold(None), "ponder must be above 2, the cost of one step, got None"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
