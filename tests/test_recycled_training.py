"""Recycled lanes and averaged weights, each beside what a plain loop makes of single steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from actjax import training
from tests.test_unroll import assert_trees_close

pytestmark = pytest.mark.usefixtures("quick_compilation")
D = 4
SAME = {"rtol": 1e-5, "atol": 1e-5}
LANES, LIMIT = 32, 4


def sample(key, data):
    return jax.random.normal(key, (LANES, D))


def start(model, x):
    return jnp.full_like(x, 0.5)


def towards_rest(model, x, y):
    y = jnp.tanh(model(x + y))
    return (y**2).mean(), (y, jnp.abs(y).mean(-1) < 0.5, {"seen": y.mean()})


def recycled(explore=0.0, average=None, rate=0.1):
    model, optimizer = nnx.Linear(D, D, rngs=nnx.Rngs(0)), optax.sgd(rate)
    step = training.make_recycled_step(
        sample, towards_rest, optimizer, start=start, max_steps=LIMIT, explore=explore
    )
    state = training.init_recycled(model, optimizer, sample, start, jax.random.key(3))
    if average is None:
        return step, state
    return training.keep_average(step, average), training.with_average(state)


@pytest.mark.parametrize("explore", [0.0, 1.0])
def test_a_lane_that_is_done_takes_a_new_row(explore):
    step, state = recycled(explore)
    step, early, late = jax.jit(step), 0, 0
    for n in range(8):
        before, model = state.extra, state.model
        state, metrics = step(state, jax.random.key(n))
        after = state.extra
        loss = lambda model: towards_rest(model, before.batch, before.carried)[0]  # noqa: B023
        value, slope = jax.value_and_grad(loss)(model)  # of this step alone
        np.testing.assert_allclose(metrics["loss"], value, **SAME)
        expected = jax.tree.map(lambda w, g: w - 0.1 * g, model, slope)
        assert_trees_close(state.model, expected, rtol=1e-5)

        _, (y, done, _) = towards_rest(model, before.batch, before.carried)
        count = before.steps + 1
        ended = (done & (count >= before.least)) | (count == LIMIT)
        np.testing.assert_allclose(metrics["recycled"], ended.mean(), **SAME)
        np.testing.assert_array_equal(after.steps, jnp.where(ended, 0, count))
        np.testing.assert_array_equal((after.batch == before.batch).all(1), ~ended)
        want = jnp.where(ended[:, None], start(model, y), y)
        np.testing.assert_allclose(after.carried, want, **SAME)
        np.testing.assert_array_equal(after.least[~ended], before.least[~ended])
        fresh = np.asarray(after.least[ended])
        assert ((2 <= fresh) & (fresh <= LIMIT)).all() if explore else (fresh == 0).all()
        early += int((ended & (count < LIMIT)).sum())
        late += int((ended & (count == LIMIT) & ~done).sum())
    assert early and late  # both ways to end were seen


def test_a_run_of_recycled_lanes_goes_on_as_if_it_had_not_stopped(tmp_path):
    def run(folder, *counts):
        for count in counts:
            step, state = recycled(0.5, average=0.9)
            options = {"log_every": 3, "checkpoint_every": 3, "directory": folder}
            state = training.fit(step, state, key=jax.random.key(1), steps=count, **options)
        return state

    whole, stopped = run(tmp_path / "whole", 6), run(tmp_path / "stopped", 3, 6)
    jax.tree.map(np.testing.assert_array_equal, whole, stopped)


def test_the_average_is_that_of_the_weights_so_far():
    step, state = recycled(average=0.8)
    step, weights = jax.jit(step), []
    for n in range(4):
        state, _ = step(state, jax.random.key(n))
        weights.append(np.asarray(state.model.kernel[...]))
    shares = np.array([0.8 ** (3 - n) for n in range(4)])
    want = np.einsum("n,nij->ij", shares / shares.sum(), np.stack(weights))
    averaged = training.averaged_model(state, 0.8)
    np.testing.assert_allclose(averaged.kernel[...], want, **SAME)
    with pytest.raises(ValueError, match="decay must be between 0 and 1, got 1"):
        training.keep_average(step, 1)


def test_averaging_keeps_what_a_step_has_to_finish():
    optimizer, model = optax.sgd(0.1), nnx.Linear(D, 1, rngs=nnx.Rngs(0))
    loss = lambda model, x: ((model(x) ** 2).mean(), {})
    score = lambda model, data: -(model.kernel[...] ** 2).sum()
    step = training.keep_best(training.make_train_step(sample, loss, optimizer), score, every=2)
    state = training.with_average(training.with_best(training.init_state(model, optimizer)))
    state = training.fit(training.keep_average(step, 0.9), state, key=jax.random.key(0), steps=3)
    assert int(state.extra.extra.step) == 3  # the last update was validated too
